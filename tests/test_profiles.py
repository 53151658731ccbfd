"""Profiles: what differs from the base is put together with it; `use` writes params.yaml or leaves it as it was."""

import shutil
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from kd.errors import ConfigError
from kd.study.profiles import about, compose, names, use

ROOT = Path(__file__).resolve().parent.parent
as_dvc_reads = YAML(typ="safe", pure=True).load


def merged(base, own):
    """What a profile means, said in values: mappings merge, everything else replaces."""
    if not (isinstance(base, dict) and base and isinstance(own, dict)):
        return own
    return base | {key: merged(base.get(key), value) for key, value in own.items()}


@pytest.fixture
def project(tmp_path):
    """The parts of a checkout that `use` reads."""
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "data.dvc", tmp_path)
    return tmp_path


def test_what_a_reader_must_know_stays_in_the_profile():
    assert all("about" not in as_dvc_reads(compose(name)) for name in names())
    assert about("digits")[0].startswith("8x8 pixels") and about("nothing of the kind") == []


def profile(project, text, name="mine"):
    (project / "profiles" / f"{name}.yaml").write_bytes(text.encode(errors="surrogateescape"))
    return compose(name, root=project)


@pytest.mark.parametrize("name", names(ROOT))
def test_a_profile_is_the_base_and_what_it_says(name):
    text = compose(name, root=ROOT)
    base, own = (as_dvc_reads((ROOT / "profiles" / f"{file}.yaml").read_text()) for file in ("base", name))
    expected = merged(base, {"profile": name} | own)
    assert expected.pop("about") == about(name) and as_dvc_reads(text) == expected
    assert list(as_dvc_reads(text)) == [key for key in base if key != "about"]


def test_a_reason_goes_with_its_value(project):
    text = profile(project, "# Mine.\n\nkr:\n  weight: 10.0 # searched\n  keep: 0.25\nseeds: 2\n")
    assert "  weight: 10.0 # searched\n" in text
    assert "  keep: 0.25 # share of the teacher's coordinates that the sparse recoding keeps; ours\n" in text
    assert "\nseeds: 2 # runs a row in main comparisons; the intervals are over these\n" in text
    assert "\n# Mine.\n\nprofile: mine # names the folders" in text


@pytest.mark.parametrize(
    "own, said",
    [
        ("teachr:\n  epochs: 2", r"profiles/mine.yaml: unknown key 'teachr' \(did you mean 'teacher'\?\)"),
        ("teacher:\n  epoch: 2", r"teacher: unknown key 'epoch' \(did you mean 'epochs'\?\)"),
        ("kr:\n  wieght: 2", r"kr: unknown parameter 'wieght' \(did you mean 'weight'\?\)"),
        ("recipe:\n  precison: bf16", r"unknown .*'precison' \(did you mean 'precision'\?\)"),
        ("data:\n  sise: 32", r"data: unknown 'sise' \(did you mean 'size'\?\)"),
        ("kr: 2", "kr: 2 must be a mapping"),
        ("seeds: 0", "seeds: 0 must be greater than 0"),
        ("kr: [", "mine.yaml or base.yaml: not YAML"),
        ("kr: caf\udce9", "mine.yaml or base.yaml: not YAML"),
        ("- kr", "must hold a mapping"),
    ],
)
def test_a_mistake_in_a_profile_is_named(project, own, said):
    with pytest.raises(ConfigError, match=said) as caught:
        profile(project, own)
    assert "\n" not in str(caught.value)


def test_keys_of_the_code_need_not_stand_in_the_base(project):
    own = "recipe:\n  momentum: 0.5\ndata:\n  images_per_class: 3\npairs:\n  kr: [a, b]\n"
    values = as_dvc_reads(profile(project, own))
    assert values["recipe"]["momentum"] == 0.5 and values["data"]["images_per_class"] == 3
    assert values["pairs"] == {"default": ["resnet56", "resnet20"], "kr": ["a", "b"]}


@pytest.mark.parametrize("name", ["x; touch pwned", "my study", "-x", ".x", "$x", "ä"])
def test_a_name_that_the_shell_would_read_is_refused(project, name):
    with pytest.raises(ConfigError, match="letters, digits"):
        profile(project, "seeds: 1", name=name)


@pytest.mark.parametrize("name", ["1e3", "007", "true", "1.5", "x-1.2_3"])
def test_a_name_stays_a_text(project, name):
    assert as_dvc_reads(profile(project, "seeds: 1", name=name))["profile"] == name


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "it's",
        'say "x"',
        "a: b",
        "#a",
        "ä€😀",
        "a\\b",
        "a\nb",
        "\tb\x7f\u2028",
        "${x}",
        "- {a}",
        "x" * 200,
    ],
)
def test_any_path_of_an_archive_survives(project, name, capsys):
    archive = project / name
    archive.mkdir()
    use("imagefolder", str(archive), root=project)
    text = (project / "params.yaml").read_text(encoding="utf-8")
    for values in (as_dvc_reads(text), yaml.safe_load(text)):
        assert values["data"]["source"] == values["data"]["watch"] == str(archive)
        assert values["data"]["size"] == 32
    use("digits", root=project)
    assert "kept" not in capsys.readouterr().out and not list(project.glob("*.bak*"))


def test_dvc_does_not_read_all_of_imagenet(project):
    (project / "photographs").mkdir()
    use("imagenet", str(project / "photographs"), root=project)
    data = yaml.safe_load((project / "params.yaml").read_text())["data"]
    assert data["source"] == str(project / "photographs") and data["watch"] == "requirements.txt"


def test_an_edited_file_is_kept(project, capsys):
    for number, change in (("", "seeds: 7"), ("1", "seeds: 8"), ("1", "seeds: 8")):
        use("digits", root=project)
        assert "kept" not in capsys.readouterr().out
        target = project / "params.yaml"
        edited = target.read_text().replace("seeds: 5", change, 1)
        target.write_text(edited)
        use("smoke", root=project)
        assert f"is kept as params.yaml.bak{number}.\n" in capsys.readouterr().out
        assert (project / f"params.yaml.bak{number}").read_text() == edited
        assert target.read_text() == compose("smoke", root=project)
    assert len(list(project.glob("params.yaml.bak*"))) == 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[", b"data: 3", b"data: {source: 3}"])
def test_a_file_that_is_no_params_is_kept_too(project, content):
    (project / "params.yaml").write_bytes(content)
    (project / "profiles" / "broken.yaml").write_text("nonsense: 1")
    use("digits", root=project)
    assert (project / "params.yaml.bak").read_bytes() == content


def test_it_works_from_another_folder(project, tmp_path_factory, monkeypatch, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "images").mkdir()
    monkeypatch.chdir(elsewhere)
    seen = []
    use("imagefolder", "images", root=project, prepare=lambda *given: seen.append(given))
    assert yaml.safe_load((project / "params.yaml").read_text())["data"]["source"] == str(elsewhere / "images")
    assert seen == [(project, "imagefolder")] and [path.name for path in elsewhere.iterdir()] == ["images"]
    use("cifar100", root=project)
    assert capsys.readouterr().out.endswith("Next: make repro (or: dvc repro)\nFirst: python -m kd fetch cifar100\n")


def refuse(root, profile):
    raise ConfigError("no room for folders")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"name": "digit"}, r"unknown profile 'digit' \(did you mean 'digits'\?\); there are broken, cifar10, "),
        ({"name": "base"}, "unknown profile 'base'"),
        ({"name": "imagefolder"}, "give --archive PATH"),
        ({"name": "imagenet"}, "give --archive PATH"),
        ({"name": "imagefolder", "archive": "missing"}, "missing does not exist"),
        ({"name": "digits", "archive": "."}, "digits reads no archive of yours"),
        ({"name": "broken"}, "unknown key 'nonsense'"),
        ({"name": "smoke", "prepare": refuse}, "no room"),
    ],
)
def test_a_failure_leaves_everything_as_it_was(project, arguments, said):
    (project / "profiles" / "broken.yaml").write_text("nonsense: 1")
    (project / "params.yaml").write_text("seeds: 3 # mine\n")
    before = sorted(project.rglob("*"))
    with pytest.raises(ConfigError, match=said):
        use(**arguments, root=project)
    assert (project / "params.yaml").read_text() == "seeds: 3 # mine\n" and sorted(project.rglob("*")) == before
