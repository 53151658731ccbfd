"""The command line: one clear line for what a person can put right."""

import json
import subprocess
import sys

import pytest
import tiny
import yaml
from nbformat import write
from pipeline import clone, command, environment, ran

from kd import __main__
from kd.errors import ConfigError
from kd.pipeline.notebook import read
from kd.recipe import Recipe
from kd.study import paths
from kd.study.runs import open_teacher
from kd.teachers import train_route


def main(*arguments):
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


def test_what_the_system_refuses_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main("run", paths.ROOT / "notebooks" / "01_kd.ipynb", "--out", tmp_path / "file" / "folder" / "out.ipynb") == 2
    said = capsys.readouterr().err
    assert said.startswith("kd: ") and len(said.splitlines()) == 1


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main("plan") == 2 and "the folder in which this was started is gone" in capsys.readouterr().err


def test_notebooks_are_stripped(tmp_path):
    source = paths.ROOT / "notebooks" / "01_kd.ipynb"
    notebook = read(source)
    notebook.cells[1].execution_count = 7
    write(notebook, tmp_path / "used.ipynb")
    assert main("strip", tmp_path / "used.ipynb") == 0
    assert (tmp_path / "used.ipynb").read_bytes() == source.read_bytes()


def test_a_teacher_under_another_name_is_refused(tmp_path, monkeypatch):
    data, recipe = tiny.data(), Recipe(epochs=1, batch_size=16)
    train_route("cnn3x8", data, recipe, 1, tmp_path / "models" / "digits" / "routes" / "cnn3x4.safetensors")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match="cnn3x8"):
        open_teacher("route", str(paths.teacher_path("digits", "route", "cnn3x4")), "cpu", network="cnn3x4", data=data.md5)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A fresh clone in which nothing has run."""
    return clone(tmp_path_factory.mktemp("clone"))


MISTAKES = [
    (["run", "notebooks/01_kd.ipynb", "--out", "x.ipynb", "-p", "temprature=2"], "did you mean 'temperature'"),
    (["run", "notebooks/01_kd.ipynb", "--out", "x.ipynb", "-p", "temperature=warm"], "temperature: expected a number"),
    (["run", "notebooks/01_kd.ipynb", "--out", "x.ipynb", "--params", "params.yaml:kdd"], "did you mean 'kd'"),
    (["use", "digit"], "did you mean 'digits'"),
    (["stage", "rcoo"], "did you mean 'rco'"),
    (["stage", "teacher"], "must be named"),
    (["show", "kd_man", "KD"], "did you mean 'kd_main'"),
    (["show", "kd_main", "KR"], "has no row 'KR'"),
    (["fetch", "cifar1000"], "cifar100"),
]
EACH = """
import contextlib, io, json, sys
from kd.__main__ import main
for arguments in json.load(sys.stdin):
    sys.argv, code = ["kd", *arguments], 0
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, said.getvalue()]))
"""


def test_mistakes_are_named_in_one_line(fresh):
    given = json.dumps([arguments for arguments, _ in MISTAKES])
    done = subprocess.run([sys.executable, "-c", EACH], cwd=fresh, input=given, capture_output=True, text=True, env=environment())
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (arguments, words), (code, said) in zip(MISTAKES, answers, strict=True):
        assert code == 2 and words in said and len(said.splitlines()) == 1, arguments
    assert not done.stderr and not (fresh / "x.ipynb").exists()


def test_the_whole_plan_shows_before_anything_is_there(fresh):
    command(fresh, "kd", "use", "cifar100")
    planned = ran(command(fresh, "dvc", "repro", "--dry"))
    params = yaml.safe_load((fresh / "params.yaml").read_text())
    single = [name for name, stage in yaml.safe_load((fresh / "dvc.yaml").read_text())["stages"].items() if "foreach" not in stage]
    assert set(planned) == {*single, *(f"teacher@{n}" for n in params["teachers"]), *(f"supernet@{n}" for n in params["supernets"])}
