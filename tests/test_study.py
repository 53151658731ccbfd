"""What a person may get wrong around a study, each named in one line before anything is trained or removed."""

import copy
import sys

import pytest
import tiny
import torch

from kd import __main__, study
from kd.errors import Problem
from kd.notebooks import read
from kd.parameters import check_study, load_parameters
from kd.recipe import Recipe
from kd.teachers import train_route

DIGITS = load_parameters(str(study.ROOT / "profiles" / "digits.yaml"))


@pytest.mark.parametrize("path", sorted((study.ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_has_the_outline(path):
    values = load_parameters(str(path))
    assert check_study(values, path.name) is values and values["profile"] == path.stem


WRONG = {
    "seedz: 5": (lambda v: v.update(seedz=v.pop("seeds")), "unknown 'seedz' (did you mean 'seeds'?)"),
    "no profile": (lambda v: v.pop("profile"), "lacks profile"),
    "no data": (lambda v: v.update(data=None), "data: None must be a mapping"),
    "data without a name": (lambda v: v["data"].pop("name"), "lacks data.name"),
    "two seeds in letters": (lambda v: v.update(seeds="two"), "seeds: 'two' must be a whole number"),
    "no seeds": (lambda v: v.update(grid_seeds=0), "grid_seeds: 0 must be 1 or more"),
    "teacher.sed": (lambda v: v["teacher"].update(sed=1), "unknown teacher.'sed' (did you mean 'seed'?)"),
    "supernet.width": (lambda v: v.update(supernet={"widths": [1.0]}), "lacks supernet.distil_in_place"),
    "run: all": (lambda v: v.update(run="all"), "run: 'all' must be a mapping of stages"),
    "run.iekdd": (lambda v: v["run"].update(iekdd="all"), "unknown run.'iekdd' (did you mean 'iekd'?)"),
    "run.kd: [kd_main]": (lambda v: v["run"].update(kd=["kd_main"]), "run.kd: ['kd_main'] must be all, or a mapping"),
    "pairs.defualt": (lambda v: v["pairs"].update(defualt=v["pairs"].pop("default")), "unknown pairs.'defualt'"),
    "pairs.srmm": (lambda v: v["pairs"].update(srmm=["a", "b"]), "(did you mean 'srm'?)"),
    "half a pair": (lambda v: v["pairs"].update(default=["cnn6x16"]), "must be [teacher, student]"),
    "recipes.srmm": (lambda v: v.update(recipes={"srmm": {}}), "recipes.srmm: neither a stage"),
}


@pytest.mark.parametrize("change, said", WRONG.values(), ids=WRONG)
def test_a_wrong_outline_is_named(change, said):
    values = copy.deepcopy(DIGITS)
    change(values)
    with pytest.raises(Problem) as caught:
        check_study(values, "params.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, said", [("seeds: [1", "not YAML"), ("", "lacks"), ("- 1", "a mapping"), ("caf\udce9", "cannot be read")])
def test_a_file_that_is_no_parameters_is_named(text, said, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))
    with pytest.raises(Problem, match=said):
        study.parameters_file()


@pytest.mark.parametrize("name, value", [("KD_WORKERS", "zero"), ("KD_WORKERS", "-3"), ("KD_THREADS", "abc"), ("KD_MEMORY_SHARE", "half"), ("KD_DEVICE", "cdua")])
def test_a_wrong_setting_is_named(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(Problem, match=f"{name}={value}"):
        study.setting(name, float, 0.5) if name == "KD_MEMORY_SHARE" else (study.workers_and_device(), study.threads())


def test_a_teacher_under_another_name_is_refused(tmp_path, monkeypatch):
    data, recipe = tiny.data(), Recipe(epochs=1, batch_size=16)
    train_route("cnn3x8", data, recipe, 1, tmp_path / "models" / "digits" / "routes" / "cnn3x4.safetensors")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    with pytest.raises(Problem, match="cnn3x8"):
        study.open_teacher("route", str(study.teacher_file("digits", "route", "cnn3x4")), "cpu", network="cnn3x4", data=data.md5)


def command(*arguments):
    """Run `python -m kd` in this process. Returns the exit code, 0 where it says none."""
    before = sys.argv
    sys.argv = ["kd", *map(str, arguments)]
    try:
        __main__.main()
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


def test_a_folder_that_no_stage_wrote_is_not_emptied(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    wanted = ("run", study.ROOT / "notebooks" / "01_kd.ipynb", "--out", tmp_path / "out.ipynb", "--output", tmp_path)
    assert command(*wanted) == 2
    assert "thesis.tex" in capsys.readouterr().err and (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_the_system_refuses_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command("code", "--out", tmp_path / "file" / "folder") == 2
    said = capsys.readouterr().err
    assert said.startswith("kd: ") and len(said.splitlines()) == 1


def test_notebooks_are_cleaned(tmp_path):
    source = study.ROOT / "notebooks" / "01_kd.ipynb"
    notebook = read(source)
    notebook.cells[1].execution_count = 7
    from nbformat import write

    write(notebook, tmp_path / "used.ipynb")
    assert command("clean", tmp_path / "used.ipynb") == 0
    assert (tmp_path / "used.ipynb").read_bytes() == source.read_bytes()


def test_no_edited_parameters_are_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    monkeypatch.setattr(__main__, "plannable", lambda profile: None)
    (tmp_path / "profiles").symlink_to(study.ROOT / "profiles")
    for text in ("my first edit\n", "my second edit\n", "my first edit\n"):
        (tmp_path / "params.yaml").write_text(text)
        assert command("use", "digits") == 0
    kept = {path.read_text() for path in tmp_path.glob("params.yaml.bak*")}
    assert kept == {"my first edit\n", "my second edit\n"} and len(list(tmp_path.glob("params.yaml.bak*"))) == 2


def test_threads_are_one_unless_asked(monkeypatch):
    monkeypatch.delenv("KD_THREADS", raising=False)
    monkeypatch.setenv("KD_DEVICE", "cpu")
    before = torch.get_num_threads()
    try:
        assert study.use_device() == "cpu" and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
