"""What a person installs: pins that agree, ranges that admit them, no addresses."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def pins(lines):
    return {r.name.lower(): r for r in map(Requirement, lines)}


def requirements(name="requirements.txt"):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_conda_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert sorted(listed) == sorted(["-e .", *requirements()])


def test_every_package_is_pinned_without_an_address():
    for requirement in pins([*requirements(), *requirements("requirements-ray.txt")]).values():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)) and requirement.url is None
    assert "://" not in (ROOT / "requirements.txt").read_text()
    found = pins(requirements())
    assert str(found["torch"].specifier) == "==2.12.1" and str(found["torchvision"].specifier) == "==0.27.1"


def test_every_pin_admits_the_first_release_of_each_python():
    installed = {name for name, pin in pins(requirements()).items() if pin.marker is None or pin.marker.evaluate()}
    for name in installed:
        wanted = SpecifierSet(metadata.metadata(name).get("Requires-Python") or "")
        for python in ("3.11.0", "3.12.0"):
            assert wanted.contains(python), f"{name} wants Python {wanted}, and make admits {python}"


def test_pins_lie_within_the_ranges():
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, build = written["project"], written["build-system"]["requires"]  # make installs without an isolated build
    wanted = [*project["dependencies"], *build, *(r for extra in project["optional-dependencies"].values() for r in extra)]
    found = pins([*requirements(), *requirements("requirements-ray.txt")])
    for requirement in map(Requirement, wanted):
        version = str(found[requirement.name.lower()].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} does not admit {version}"


def test_the_projects_imports_are_declared():
    import ast
    import sys

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL", "jupyter": "IPython", "ruamel.yaml": "ruamel"}
    wanted = [Requirement(requirement).name.lower() for requirement in project["dependencies"]]
    declared = {names.get(name, name.replace("-", "_")) for name in wanted} | {"kd", "pydantic_core", "ray"}  # a part of pydantic; an extra
    for path in (ROOT / "kd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for module in modules:
                top = module.split(".")[0]
                assert top in sys.stdlib_module_names or top in declared, f"{path.name} imports {top}"
