"""The methods by the names that tables and parameters use. base.py says what a method is."""

from importlib import import_module

from kd.errors import ConfigError, arguments, nearest, validated
from kd.methods.base import (
    Curriculum,
    Fixed,
    Knowledge,
    Labels,
    Learner,
    Lesson,
    Method,
    Phase,
    Sum,
    Teachers,
    freeze,
    split_epochs,
    state_at,
    state_at_epoch,
    teacher_epochs,
)

__all__ = [
    "CURRICULA", "KNOWLEDGE", "Curriculum", "Fixed", "Knowledge", "Labels", "Learner", "Lesson", "Method", "Phase",
    "Sum", "Teachers", "find", "freeze", "make", "resolved", "split_epochs", "state_at", "state_at_epoch",
    "teacher_epochs",
]  # fmt: skip

# name in tables and parameters: module of this package and class
KNOWLEDGE = {
    "labels": "base.Labels",
    "kd": "kd.KD",
    "fitnet": "hints.FitNet",
    "at": "attention.AT",
    "ft": "factor.FT",
    "kr": "kr.KR",
    "srm": "srm.SRM",
    "iekd": "iekd.IEKD",
    "dml": "dml.DML",
    "iedml": "iekd.IEDML",
}
CURRICULA = {"fixed": "base.Fixed", "rco": "rco.RCO", "pwkd": "pwkd.PWKD"}


def find(name):
    """The class called `name`; an unknown name raises ConfigError naming the nearest one."""
    known = {**KNOWLEDGE, **CURRICULA}
    if name not in known:
        raise ConfigError(f"unknown method {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    module, _, attribute = known[name].rpartition(".")
    return getattr(import_module(f"kd.methods.{module}"), attribute)


def resolved(names, parameters):
    """Every parameter of the named methods, {name: {parameter: value}}: values as they were given, else the defaults.

    An unknown method or parameter raises ConfigError naming the nearest known one, and so does a value that a method's
    signature does not admit. What depends on several parameters at once is checked only when the method is made.
    """
    found = {}
    for name in names:
        declared, given = arguments(find(name)), parameters.get(name) or {}
        validated(declared, given, name, "parameter")
        found[name] = {**{key: field.default for key, field in declared.model_fields.items()}, **given}
    return found


def make(knowledge: list[str], curriculum: str = "fixed", parameters: dict | None = None) -> Method:
    """A Method from names: make(["kd", "srm"], "rco", {"rco": {"delta": 1}}). Raises ConfigError as `resolved` does."""
    if not knowledge:
        raise ConfigError("a method needs at least one kind of knowledge, e.g. knowledge: [kd]")
    options = resolved([*knowledge, curriculum], parameters or {})
    members = [find(name)(**options[name]) for name in knowledge]
    return Method(find(curriculum)(**options[curriculum]), members[0] if len(members) == 1 else Sum(members))
