"""One callback for what is logged after every epoch: log(run, entry), from `distill` and from every process of a study that trains.

    def log(run, entry):
        print(name_of_run(run), entry["step"], numbers(entry))

    kd.distill(student, kd.KD(), teacher, data, recipe, after_epoch=kd.logged(log, name="my student"))
    KD_LOGGER=mine:log dvc repro rco            log of mine.py, in the repository or wherever Python finds it

run: what determines the run: in a study its whole description with its key (kd/study/runs.py), of a teacher its kind ("route" or
"supernet"), network, key and what else determines it, in a call of `logged` what is given there. entry: a dict, the
epoch's entry in the curve: lesson, phase, epoch, loss by term and, where the student learns, accuracies in percent; and "step", the
number of the epoch in the run, from 1, with those that prepare.
examples/loggers.py has TensorBoard, W&B, MLflow and DVCLive.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from kd.errors import ConfigError, nearest


def logged(log: Callable[[dict, dict], Any], /, **run: Any) -> Callable:
    """An `after_epoch` of `distill` that calls log(run, entry)."""

    def after_epoch(result, student):
        log(run, {"step": len(result.curve), **result.last})

    return after_epoch


def logged_or_said(log: Callable[[dict, dict], Any], tell: Callable[[str], Any], /, **run: Any) -> Callable:
    """As `logged`, but where the logger fails, tell(a line) says so once and the run goes on without it."""
    told, failed = logged(log, **run), False

    def after_epoch(result, student):
        nonlocal failed
        try:
            if not failed:
                told(result, student)
        except Exception as error:  # whatever a server that does not answer raises
            failed = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            tell(f"KD_LOGGER={os.environ['KD_LOGGER']} failed ({reason:.200}); {run['key']} goes on without it")

    return after_epoch


def logger_asked() -> Callable | None:
    """The function that the environment variable KD_LOGGER names, or None; ConfigError if it is not found."""
    text = os.environ.get("KD_LOGGER")
    if not text:
        return None
    name, _, attribute = text.partition(":")
    try:
        module = import_module(name)
    except (ImportError, ValueError) as error:
        remedy = "write MODULE:FUNCTION, of a module that Python finds (PYTHONPATH)"
        raise ConfigError(f"KD_LOGGER={text}: {error}; {remedy}") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        reason = f"{name} has no function {attribute!r}{nearest(attribute, known)}"
        raise ConfigError(f"KD_LOGGER={text}: {reason}; write MODULE:FUNCTION")
    return function


def numbers(entry: dict) -> dict[str, float]:
    """The numbers of an entry by flat names: {"loss/kd": 0.31, "test": 93.1, "validation": 92.2}."""
    found = {f"loss/{term}": value for term, value in entry["loss"].items()}
    return found | {name: entry[name] for name in ("test", "validation") if name in entry}


def name_of_run(run: dict) -> str:
    """A run in words, for a folder's name: in a study "rco-kd+srm-cnn3x4-seed0-ca418a99" or "route-cnn6x16-4b1d0e3f", else its values."""
    if "key" not in run:
        return "-".join(map(str, run.values())) or "run"
    if "kind" in run:
        return f"{run['kind']}-{run['network']}-{run['key'][:8]}"
    curriculum = [] if run["curriculum"] == "fixed" else [run["curriculum"]]
    return "-".join([*curriculum, "+".join(run["knowledge"]), run["student"], f"seed{run['seed']}", run["key"][:8]])
