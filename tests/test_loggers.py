"""One callback for what is logged after every epoch, from the library and from a study's workers."""

import json
import sys

import pytest
import tiny

from kd.errors import ConfigError
from kd.loggers import logged, logger_asked, name_of_run, numbers
from kd.methods.hints import FitNet
from kd.study import executor, store
from kd.study.group import train_group
from kd.study.runs import key_of
from kd.study.study import train_teacher
from kd.teachers import train_route, train_supernet


def test_the_library_tells_every_epoch_in_order():
    told = []
    log = logged(lambda run, entry: told.append((run, entry)), name="mine", seed=3)
    result, *_ = tiny.run(FitNet(stage="initial", warm_up=0.5), tiny.teacher(), after_epoch=log)
    assert [entry["step"] for _, entry in told] == list(range(1, len(result.curve) + 1))
    assert [{k: v for k, v in entry.items() if k != "step"} for _, entry in told] == result.curve
    assert all(run == {"name": "mine", "seed": 3} for run, _ in told)
    assert {entry["phase"] for _, entry in told} == {"hints", "lesson"}  # what prepares is told as well


def test_numbers_and_names():
    entry = {"phase": "lesson", "epoch": 2, "loss": {"kd": 0.5, "labels": 1.0}, "validation": 90.0, "test": 91.0}
    assert numbers(entry) == {"loss/kd": 0.5, "loss/labels": 1.0, "test": 91.0, "validation": 90.0}
    run = {"knowledge": ["kd", "srm"], "curriculum": "rco", "student": "cnn3x4", "seed": 2, "key": "0123456789abcdef"}
    assert name_of_run(run) == "rco-kd+srm-cnn3x4-seed2-01234567"
    assert name_of_run(run | {"curriculum": "fixed"}) == "kd+srm-cnn3x4-seed2-01234567"
    assert name_of_run({"name": "mine", "seed": 3}) == "mine-3" and name_of_run({}) == "run"
    teacher = {"route": "cnn3x8", "kind": "route", "network": "cnn3x8", "seed": 0, "key": "0123456789abcdef"}
    assert name_of_run(teacher) == "route-cnn3x8-01234567"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `mine` whose log(run, entry) writes lines to told.jsonl, and whose broken(run, entry) raises."""
    code = f"""
import json
def log(run, entry):
    with open({str(tmp_path / "told.jsonl")!r}, "a") as file:
        file.write(json.dumps([run["key"], run["seed"], entry]) + "\\n")
def broken(run, entry):
    raise OSError("the server does not answer")
number = 3
"""
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "told.jsonl"
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    "value,words",
    [
        ("nowhere:log", "KD_LOGGER=nowhere:log: No module named 'nowhere'; write MODULE:FUNCTION"),
        ("mine:lag", r"mine has no function 'lag' \(did you mean 'log'\?\); write MODULE:FUNCTION"),
        ("mine:number", "mine has no function 'number'"),
        ("mine", "mine has no function ''"),
        (":log", "KD_LOGGER=:log: "),
    ],
)
def test_a_logger_that_is_not_there_is_named(module, monkeypatch, value, words):
    monkeypatch.setenv("KD_LOGGER", value)
    with pytest.raises(ConfigError, match=words) as caught:
        logger_asked()
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        executor.run_parallel([], "kd")  # before any worker starts


def trained_in_worker(folder, monkeypatch, seeds=(0, 1)):
    """Train as a worker does, in this process, a run a seed on the tiny data. Returns (keys, what the worker said)."""
    said, data = [], tiny.data()
    monkeypatch.setattr(store, "STORE", folder / "store")
    data.save(folder / "images.safetensors")
    train_route("cnn3x8", data, tiny.RECIPE, 1, folder / "route.safetensors")
    task = []
    for seed in seeds:
        run = {"profile": "p", "data": "tiny", "data_md5": data.md5, "images_per_class": 0, "student": "cnn3x4"}
        run |= {
            "teacher": "cnn3x8",
            "teacher_md5": {},
            "knowledge": ["kd"],
            "curriculum": "fixed",
            "parameters": {"kd": {}, "fixed": {}},
        }
        run |= {"recipe": tiny.RECIPE.as_dict(), "seed": seed}
        paths = {"data": str(folder / "images.safetensors"), "route": str(folder / "route.safetensors")}
        task.append((run, paths, False))
    train_group(task, "cpu", said.append)
    return [key_of(run) for run, *_ in task], said


def test_a_worker_tells_every_epoch_of_each_run(module, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_LOGGER", "mine:log")
    keys, _ = trained_in_worker(tmp_path, monkeypatch)
    told = [json.loads(line) for line in module.read_text().splitlines()]
    for seed, key in enumerate(keys):
        mine = [entry for found, number, entry in told if found == key and number == seed]
        assert [entry["step"] for entry in mine] == [1, 2, 3, 4] and all("test" in entry for entry in mine)


def records(folder):
    return {path.name: json.loads(path.read_text())["record"] for path in (folder / "store").rglob("*.json")}


def test_training_goes_on_where_a_logger_fails(module, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_LOGGER", "mine:broken")
    keys, said = trained_in_worker(tmp_path, monkeypatch)
    warnings = [text for text in said if isinstance(text, str) and "KD_LOGGER" in text]
    reason = "failed (OSError: the server does not answer)"
    assert warnings == [f"KD_LOGGER=mine:broken {reason}; {key} goes on without it" for key in keys]
    with_it = records(tmp_path)
    (tmp_path / "other").mkdir()
    monkeypatch.delenv("KD_LOGGER")
    trained_in_worker(tmp_path / "other", monkeypatch)
    assert len(with_it) == 2 and with_it == records(tmp_path / "other")


def taught(folder, train, **values):
    """Train a teacher as a stage does, in this process. Returns the file's bytes."""
    data = tiny.data()
    data.save(folder / "images.safetensors")
    run = {"kind": "teacher", "network": "cnn3x8", "seed": 0, "key": "0123456789abcdef"}
    path = folder / "teacher.safetensors"
    train_teacher(train, run, "cnn3x8", str(folder / "images.safetensors"), tiny.RECIPE, {"path": path, **values})
    return path.read_bytes()


@pytest.mark.parametrize("train,values", [(train_route, {"every": 2}), (train_supernet, {"widths": (0.5, 1.0)})])
def test_teachers_are_logged_and_learn_the_same(module, tmp_path, monkeypatch, train, values):
    unlogged = taught(tmp_path, train, **values)
    monkeypatch.setenv("KD_LOGGER", "mine:log")
    assert taught(tmp_path, train, **values) == unlogged
    told = [json.loads(line) for line in module.read_text().splitlines()]
    assert [entry["step"] for *_, entry in told] == list(range(1, tiny.RECIPE.epochs + 1)) and all(entry["loss"] for *_, entry in told)
    assert all(("test" in entry) == (train is train_route) for *_, entry in told)
    monkeypatch.setenv("KD_LOGGER", "mine:broken")
    assert taught(tmp_path, train, **values) == unlogged
    monkeypatch.setenv("KD_LOGGER", "mine:nothing")
    with pytest.raises(ConfigError, match="mine has no function 'nothing'"):
        taught(tmp_path, train, **values)


@pytest.mark.parametrize(
    "name,package,left",
    [("dvclive", "dvclive", "dvclive/*/plots/metrics/test.tsv"), ("tensorboard", "tensorboard", "logs/*/events*")],
)
def test_the_examples_run(name, package, left, tmp_path, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_LOGGER", f"examples.loggers:{name}")
    monkeypatch.setattr("examples.loggers.WRITERS", {})
    _, said = trained_in_worker(tmp_path, monkeypatch)
    assert not [text for text in said if isinstance(text, str) and "KD_LOGGER" in text]
    found = sorted(tmp_path.glob(left))
    assert len(found) == 2  # a folder a run
    if name == "dvclive":
        assert [line.split("\t")[0] for line in found[0].read_text().splitlines()] == ["step", "1", "2", "3", "4"]
