"""The package installed elsewhere: a wheel with its data files, used from a folder that is no repository."""

import ast
import os
import subprocess
import sys
import zipfile

import pytest
from pipeline import ROOT, clone, command

import kd
from kd.study.profiles import compose


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `pip wheel .` builds of a fresh clone."""
    folder, target = clone(tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("wheel")
    command(folder, "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(target))
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Runs (arguments of Python) in a folder of its own, with the wheel installed and the repository out of sight."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    command(elsewhere, "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel))

    def run(*arguments, code=0):
        variables = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "KD_WORKERS": "1"}
        variables.pop("KD_PARAMS", None)
        done = subprocess.run(
            [sys.executable, *arguments], cwd=elsewhere, capture_output=True, text=True, env=variables
        )
        assert done.returncode == code, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    run.folder = elsewhere
    return run


def test_the_wheel_has_every_file_that_the_package_reads(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    kinds = {"tables": "yaml", "profiles": "yaml", "searches": "yaml", "claims": "yaml", "findings": "yaml", "notebooks": "ipynb"}
    wanted = [path for folder, ending in kinds.items() for path in (ROOT / folder).rglob(f"*.{ending}")]
    wanted = {f"kd/files/{path.relative_to(ROOT).as_posix()}" for path in [*wanted, ROOT / "data.dvc"]}
    assert wanted == {name for name in held if name.startswith("kd/files/")}
    assert {"kd/py.typed", "kd/__init__.pyi", "kd/study/wordnet.tsv"} <= held
    assert {name.split("/")[0] for name in held} == {"kd", f"kd_companion-{kd.__version__}.dist-info"}


def test_it_works_as_a_library(python):
    code = """
import kd, importlib.metadata, pathlib
assert "site-packages" not in kd.__file__ and pathlib.Path(kd.__file__).parent.joinpath("files").is_dir(), kd.__file__
assert kd.__version__ == importlib.metadata.version("kd-companion")
data = kd.load_data("digits", cache=None).subset(8, 0)
teacher, student = kd.build("cnn3x8", 10, 1), kd.build("cnn3x4", 10, 1)
recipe = kd.Recipe(epochs=1, optimizer="adamw", learning_rate=0.01, warm_up=0.2)
kd.train(teacher, data, recipe)
kd.distill(student, kd.KD() + kd.AT(), teacher, data, recipe)
kd.save(student, "student.safetensors")
assert kd.evaluate(kd.load("student.safetensors"), data) == kd.evaluate(student, data)
assert kd.load_table("kd_main")["rows"]
try:
    kd.load_data("cifar10")
except kd.ConfigError as problem:
    print(problem)
"""
    said = python("-c", code)
    assert f"{python.folder}/data/raw/cifar-10-python.tar.gz is missing: run `python -m kd fetch cifar10`" in said


def test_the_command_line_works_in_any_folder(python):
    assert "profile smoke" in python("-m", "kd", "use", "smoke")
    assert (python.folder / "params.yaml").read_text() == compose("smoke")
    assert "unknown profile 'smok' (did you mean 'smoke'?)" in python("-m", "kd", "use", "smok", code=2)
    assert "runs" in python("-m", "kd", "plan")
    python("-m", "kd", "stage", "data")
    assert (python.folder / "data" / "smoke" / "images.safetensors").exists()
    said = python("-m", "kd", "repro", code=2)
    assert said.startswith("kd: repro works on the repository's own files") and len(said.splitlines()) == 1


def test_type_checkers_see_the_names_that_python_finds():
    tree = ast.parse((ROOT / "kd" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    assert {(node.module, alias.name) for node in imports for alias in node.names} == {
        (module, name) for module, names in kd.WHERE.items() for name in names
    }
