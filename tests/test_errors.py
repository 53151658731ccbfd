"""What annotations admit, and the one line that says what they do not."""

import inspect
from typing import Annotated, Literal

import pytest
import torch

import kd
from kd.errors import ConfigError, PositiveInt, Section, Share, Worded, checked, several, validated
from kd.methods import CURRICULA, KNOWLEDGE, find, resolved

PARAMETERS = [(name, p) for name in [*KNOWLEDGE, *CURRICULA] for p in resolved([name], {})[name]]
WHOLE = {"teacher": {"epochs": 1}}


class Teacher(Section):
    epochs: PositiveInt
    rate: float = 0.1
    widths: several(Share) = ()


class Study(Section):
    teacher: Teacher
    run: dict[str, Literal["all"] | list[str]] = {}
    pairs: dict[str, Annotated[tuple[str, str], Worded("[teacher, student]")]] = {}


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_every_parameter_of_a_method_is_declared_and_refuses_another_kind(name, parameter):
    declared = inspect.signature(find(name)).parameters[parameter]
    assert declared.annotation is not declared.empty
    wrong = {parameter: object()}
    for refuse in (lambda: find(name)(**wrong), lambda: resolved([name], {name: wrong})):
        with pytest.raises(ConfigError, match=rf"^{name}\.{parameter}: <object object at \w+> must be ") as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_a_method_takes_its_values_as_they_are_given():
    given = {"kd": {"temperature": 1, "alpha": 1, "label_weight": 1}, "srm": {"taps": [0, 1]}, "rco": {"first": 1}}
    found = resolved(list(given), given)
    kept = [found["kd"]["temperature"], kd.KD(**given["kd"]).temperature, found["rco"]["first"], kd.RCO(first=1).first]
    assert [(type(value), value) for value in kept] == [(int, 1)] * 4
    taps = given["srm"]["taps"]
    assert found["srm"]["taps"] is taps and kd.SRM(taps=taps).taps is taps
    assert list(found["kd"]) == ["temperature", "alpha", "label_weight"] and resolved(["labels"], {}) == {"labels": {}}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (3, "x.yaml: 3 must be a mapping"),
        ({}, "x.yaml: teacher: missing"),
        ({"teacher": {"sed": 1}}, "x.yaml: teacher: unknown key 'sed'; known: epochs, rate, widths"),
        ({"teacher": {}, "ruin": 1}, "x.yaml: unknown key 'ruin' (did you mean 'run'?); known: teacher, run, pairs"),
        ({"teacher": {"epochs": 1, "rate": float("nan")}}, "x.yaml: teacher.rate: nan must be a finite number"),
        ({"teacher": {"epochs": 1, "widths": [1, True]}}, "x.yaml: teacher.widths.1: True must be a number"),
        (WHOLE | {"run": {"kd": "al"}}, "x.yaml: run.kd: 'al' must be 'all' or a list (did you mean 'all'?)"),
        (WHOLE | {"run": {"kd": ["a", 1]}}, "x.yaml: run.kd.1: 1 must be a text"),
        (WHOLE | {"pairs": {"kd": ["a"]}}, "x.yaml: pairs.kd: ['a'] must be [teacher, student]"),
    ],
)
def test_a_section_refuses_in_one_line_that_names_the_place(values, line):
    with pytest.raises(ConfigError) as caught:
        validated(Study, values, "x.yaml")
    assert str(caught.value) == line


def test_a_section_keeps_what_it_declares():
    found = validated(Study, {"teacher": {"epochs": 2, "widths": [0.5, 1]}}, "x.yaml")
    assert found.teacher == Teacher(epochs=2, widths=[0.5, 1]) and found.teacher.widths == (0.5, 1.0)


def test_a_single_value_and_a_function_are_checked_alike():
    assert validated(int, 3, "data.size") == 3
    for wrong in (True, 2.5, "3", torch.zeros(2, 2)):
        with pytest.raises(ConfigError, match=r"data\.size: .* must be a whole number") as caught:
            validated(int, wrong, "data.size")
        assert "\n" not in str(caught.value)

    @checked("data")
    def load(name: str, size: PositiveInt | None = None):
        """Load."""
        return name, size

    assert load("digits", size=3) == ("digits", 3) and list(inspect.signature(load).parameters) == ["name", "size"]
    for wrong, words in (((), "data.name: missing"), (("digits", 0), "data.size: 0 must be greater than 0")):
        with pytest.raises(ConfigError, match=words):
            load(*wrong)
