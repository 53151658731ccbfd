"""params.yaml: every parameter of a study, declared here, checked whole before anything runs."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from kd.data import NAMES as DATA_NAMES
from kd.data import load_data
from kd.errors import (
    ConfigError,
    Positive,
    PositiveInt,
    Section,
    Share,
    arguments,
    nearest,
    repeated,
    several,
    validated,
)
from kd.methods import CURRICULA, KNOWLEDGE, resolved
from kd.models import build
from kd.recipe import Recipe
from kd.study.paths import FILES, ROOT, STAGES
from kd.study.tables import asked_rows, load_table, table_names
from kd.study.yaml_files import parse_value

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"  # it becomes the name of folders, and a word of the commands that DVC gives to the shell
FIRST_SEED = 1000  # of a search's runs; the tables' seeds begin at 0: a parameter must not be chosen on the runs that it is then reported on
MOST_EPOCHS = 100_000  # more than that is a slip of the keyboard
Pair = several(str)
Seeds = Annotated[int, Interval(gt=0, le=FIRST_SEED)]
Epochs = Annotated[int, Interval(gt=0, le=MOST_EPOCHS)]


class Teacher(Section):
    epochs: Epochs
    learning_rate: Positive
    milestones: several(Share) | None
    every: PositiveInt
    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    weights: dict[str, str] = {}


class SupernetOf(Section):
    widths: several(Share)
    distil_in_place: bool
    start: Literal["teacher", "scratch"]
    epochs: Epochs | None
    learning_rate: Positive | None


class Search(Section):
    seeds: Seeds
    epochs: Positive


class Combined(Section):
    only: several(str)


class Parameters(Section):
    """The sections of params.yaml. What a method's section may hold, the method declares; `recipe` is kd.Recipe's, `data` load_data's."""

    profile: str
    data: dict[str, Any]
    recipe: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    student_images_per_class: PositiveInt | None
    seeds: Seeds
    grid_seeds: Seeds
    run: dict[str, Literal["all"] | dict[str, Literal["all"] | several(str)]]
    searches: several(str)
    search: Search
    teachers: several(str)
    supernets: several(str)
    pairs: dict[str, Pair | several(Pair)]
    teacher: Teacher
    supernet: SupernetOf
    kd: dict[str, Any]
    kr: dict[str, Any]
    srm: dict[str, Any]
    rco: dict[str, Any]
    iekd: dict[str, Any]
    pwkd: dict[str, Any]
    fitnet: dict[str, Any]
    at: dict[str, Any]
    ft: dict[str, Any]
    dml: dict[str, Any]
    iedml: dict[str, Any]
    combined: Combined


def study_parameters():
    """The parameters in force: params.yaml, or the file named by the environment variable KD_PARAMS; checked."""
    path = Path(os.environ.get("KD_PARAMS", ROOT / "params.yaml"))
    if not path.exists():
        raise ConfigError(f"{path} is missing; write one with `python -m kd use digits`")
    return check_study(load_parameters(str(path)), path.name)


@cache
def buildable(network):
    """Raise ConfigError for a network that there is not."""
    build(network, 2)


def check_name(text, what):
    """Raise ConfigError for a name, of a profile or a network, that may not become a path or a word of a shell's command."""
    if not re.fullmatch(NAME, text):
        raise ConfigError(f"{what}: {text!r} must be of letters, digits and . _ - alone, the first a letter or digit")


def check_study(values, name):
    """`values` of a params.yaml called `name`, as they are, if everything in them fits; else ConfigError, naming the first that does not."""

    def known(given, names, where):
        for key in given:
            if key not in names:
                raise ConfigError(f"{name}: {where}: unknown {key!r}{nearest(key, names)}; known: {', '.join(map(str, names))}")

    validated(Parameters, values, name)
    check_name(values["profile"], f"{name}: profile")
    known([values["data"].get("name")], DATA_NAMES, "data.name")
    known(values["data"], ["watch", *arguments(load_data).model_fields], "data")
    validated(arguments(load_data), {key: value for key, value in values["data"].items() if key != "watch"}, "data")
    Recipe.of(values["recipe"])
    known(values["run"], STAGES, "run")
    for stage, chosen in values["run"].items():
        for table in chosen if isinstance(chosen, dict) else ():
            known([table], table_names(stage), f"run.{stage}")
            asked_rows(load_table(table), values)
    searches = sorted(path.stem for path in (FILES / "searches").glob("*.yaml"))
    known(values["searches"], searches, "searches")
    for key in ("searches", "teachers", "supernets"):
        if twice := repeated(values[key]):
            raise ConfigError(f"{name}: {key}: {twice} stands there twice; delete one")
    known(values["pairs"], ["default", *STAGES, *table_names(), *searches], "pairs")
    if "default" not in values["pairs"]:
        raise ConfigError(f"{name} lacks pairs.default, e.g. default: [cnn6x16, cnn3x4]")
    for key, found in values["pairs"].items():
        for pair in found if found and isinstance(found[0], list) else [found]:
            if len(pair) != 2:
                raise ConfigError(f"{name}: pairs.{key}: {pair!r} must be [teacher, student], or a list of such")
    networks = [*values["teachers"], *values["supernets"], *(key for key in values["recipes"] if key not in STAGES)]
    for network in networks:
        try:
            buildable(network)
        except ConfigError as problem:
            raise ConfigError(f"{name}: {problem} (under teachers, supernets or recipes)") from None
    known(values["teacher"].get("weights") or {}, values["teachers"], "teacher.weights")
    for network in values["supernets"]:
        if network not in values["teachers"]:
            reason = "a supernet grows from the plain teacher, and is compared with it"
            raise ConfigError(f"{name}: supernets: {network} is not among teachers, and {reason}")
    for method in {**KNOWLEDGE, **CURRICULA}:
        resolved([method], {method: values.get(method) or {}})
    return values


def load_parameters(file):
    """The mapping in a YAML file; with "FILE:SECTION" (dots lead further in) the mapping under that key."""
    path, section = (file, "") if Path(file).is_file() or ":" not in file else file.rpartition(":")[::2]
    try:
        found = parse_value(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such parameters file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): mend it, or write it anew with `python -m kd use PROFILE`") from None
    except ConfigError as problem:
        raise ConfigError(f"{path}: {problem}") from None
    for key in filter(None, section.split(".")):
        if not isinstance(found, dict) or key not in found:
            known = found if isinstance(found, dict) else []
            raise ConfigError(f"{path} has no section {section!r}{nearest(key, known)}")
        found = found[key]
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{file}: expected a mapping of parameters, got {found!r}")
    return found or {}
