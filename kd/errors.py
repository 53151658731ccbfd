"""ConfigError for whatever a person can put right, and declarations that arguments and files are checked against.

    @checked("kd")                                  refuses arguments that the annotations of __init__ do not admit
    class KD(Knowledge):
        def __init__(self, temperature: Positive = 4.0): ...

    class Teacher(Section):                         the keys of a file, or of a mapping in it
        epochs: PositiveInt
        seed: int = 0

    validated(Teacher, mapping, "params.yaml")      a Teacher, or "params.yaml: epochs: 0 must be greater than 0"

A whole number is admitted where a float is declared; true and false are no numbers, and numbers must be finite.
"""

import inspect
import re
from dataclasses import dataclass
from functools import cache, wraps
from typing import Annotated

from annotated_types import Ge, Gt, Interval
from pydantic import BaseModel, ConfigDict, Strict, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError, core_schema

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(gt=0, le=1)]
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]

# what a value of the wrong kind must be, in the words of YAML rather than Python; keys are pydantic's
KINDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "longer",
}


class ConfigError(Exception):
    """Bad input. The message is one line that names the thing and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


def nearest(name, known):
    """The hint " (did you mean 'x'?)" for a misspelt `name` among `known` strings, or "" when none is close."""
    from difflib import get_close_matches

    close = get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def repeated(names):
    """The first of `names`, a list of strings, that stands there twice, or None."""
    return next((name for name in names if names.count(name) > 1), None)


class Section(BaseModel):
    """The keys of a file, or of a mapping in it: a pydantic model that refuses keys it does not declare."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values):
        known = cls.model_fields
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                words = f"{key!r}{nearest(key, known)}; known: {', '.join(known) or 'none'}"
                raise PydanticCustomError("unknown", words)
        return values


def several(kind):
    """The type of a list or tuple of `kind`."""
    return Annotated[tuple[kind, ...], Strict(False)]


@dataclass(frozen=True)
class Worded:
    """Words for what a type admits: Annotated[int | Literal["all"], Worded("'all', or a number of rows")]."""

    words: str

    def __get_pydantic_core_schema__(self, kind, schema_of):
        return core_schema.custom_error_schema(schema_of(kind), "worded", custom_error_message=self.words)


def validated(kind, value, place, noun="key"):
    """`value` as a `kind`, a Section or another type; ConfigError, naming `place` and the path inside, if it is none.

    noun: what unknown names are called. A Section turns 1 into 1.0 where it declares a float, and a list into a tuple
    where it declares several; whoever needs the value as it was given uses `value` itself.
    """
    try:
        return _holder(kind)(value=value).value
    except ValidationError as error:
        raise ConfigError(_one_line(error, value, place, noun)) from None


@cache
def _holder(kind):
    return create_model("Holder", __base__=Section, value=(kind, ...))


def _one_line(error, whole, place, noun):
    """What pydantic found wrong with the value `whole`, of several things the first, in one line."""
    found = []
    for problem in error.errors(include_url=False):
        path, value = (), whole
        for step in problem["loc"][1:]:  # among them pydantic's names for a union's members, left out here
            known = range(len(value)) if isinstance(value, list | tuple) else value if isinstance(value, dict) else ()
            if step in known:
                path, value = (*path, str(step)), value[step]
        path += (str(problem["loc"][-1]),) if problem["type"] == "missing" else ()
        found.append((path, value, problem))
    found = [one for one in found if one[0][:1] == found[0][0][:1]]
    path, value, first = max(found, key=lambda one: len(one[0]))  # the innermost complaint says most
    where = (f"{place}." if place.isidentifier() else f"{place}: ") + ".".join(path) if path else place
    if first["type"] in ("missing", "unknown"):
        return f"{where}: missing" if first["type"] == "missing" else f"{where}: unknown {noun} {first['msg']}"
    problems = [problem for other, _, problem in found if other == path]
    words = [KINDS.get(problem["type"], problem["msg"].removeprefix("Input should be ")) for problem in problems]
    words = " or ".join(dict.fromkeys(words))  # each alternative of a union once
    hint = nearest(value, re.findall("'(.*?)'", words)) if isinstance(value, str) else ""
    shown = repr(value).replace("\n", " ")
    return f"{where}: {shown:.80} must be {words}{hint}"


def checked(place, noun="parameter"):
    """Decorates a function, or a class for its __init__: arguments that the annotations do not admit raise ConfigError.

    place: the name that messages begin with, as in "kd.alpha: ...". The arguments are passed on as they were given.
    """

    def decorate(target):
        is_class = isinstance(target, type)
        function = target.__init__ if is_class else target
        names = list(inspect.signature(target).parameters)

        @wraps(function)
        def checked_first(*args, **kwargs):
            given = dict(zip(names, args[1:] if is_class else args, strict=False)) | kwargs
            validated(arguments(target), given, place, noun)
            return function(*args, **kwargs)

        if is_class:
            target.__init__ = checked_first
        return target if is_class else checked_first

    return decorate


@cache
def arguments(target):
    """The Section made of a function's parameters, or of those of a class's __init__."""
    declared = [p for p in inspect.signature(target).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    fields = {p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in declared}
    return create_model(target.__name__, __base__=Section, **fields)
