"""What can be known before anything is trained: whether every run that the parameters ask for can begin."""

import json
import re
from functools import cache

import torch

from kd.data.stream import open_stream
from kd.errors import ConfigError, nearest
from kd.methods import Teachers, make
from kd.models import Supernet, build, probe
from kd.study.parameters import MOST_EPOCHS, buildable
from kd.study.paths import ROOT, STAGES, appendix_paths, notebook_path
from kd.study.records import method_name
from kd.study.search import wanted_by
from kd.study.study import found_in_root
from kd.study.tables import asked_rows, load_table, table_names
from kd.teachers import weights_of


class Planned(list):
    """A route or supernet that is yet to be trained, as far as a curriculum looks at it before its first lesson."""

    def __init__(self, epochs=(), widths=()):
        super().__init__([None] * (len(epochs) or len(widths)))
        self.epochs, self.widths = list(epochs), list(widths)


def check_runs(study, images=None):
    """Raise ConfigError for the first run that a study's parameters ask for and that cannot begin; it names table and row.

    study: a kd.study.plan.Planned, whose data and teachers need not be there. images: how many training images the smallest class has
    (`smallest_class`), once the data are those of the parameters; None: not known yet.
    """
    params = study.params
    check_data(params["data"])
    for file in (params["teacher"].get("weights") or {}).values():
        check_weights(found_in_root(file))
    for network in params["supernets"]:
        Supernet(build(network, 2), params["supernet"]["widths"])
    found, only = set(), params["combined"]["only"]
    for table in (load_table(name) for stage in STAGES for name in table_names(stage)):
        asked = asked_rows(table, params)
        for row in table["rows"]:
            for pair in study.pairs_of(table) if row["row"] in asked else ():
                place = f"{table['stage']}: table {table['name']}, row {row['row']!r}"
                try:
                    run, paths = study.run_of(table, row, pair, 0)
                    check_run(run, paths, params)
                    if images is not None and run["images_per_class"] > images:
                        asked_for = f"{run['images_per_class']} training images of each class are asked for (student_images_per_class, or a row's)"
                        raise ConfigError(f"{asked_for}, and a class has {images}; ask for fewer")
                    if study.facts:
                        _, shape, classes = study.facts
                        check_networks(run["teacher"], run["student"], shape, classes, json.dumps([run["knowledge"], run["parameters"]]))
                except ConfigError as problem:
                    raise ConfigError(f"{place}: {problem}") from None
                found |= {method_name(run)} if table["stage"] == "combined" else set()
    for name in params["searches"]:
        try:
            for _, wanted in wanted_by(name, study):
                for run, paths, *_ in wanted.values():
                    check_run(run, paths, params)
        except ConfigError as problem:
            raise ConfigError(f"searches: {name}: {problem}") from None
    for name in only:
        if found and name not in found:
            raise ConfigError(f"combined.only: no method {name!r}{nearest(name, found)}; tables/combined has {', '.join(sorted(found))}")


def check_data(values):
    """Raise ConfigError if the file or folder whose change means other data (`data.watch`) or they themselves (`data.source`) are not there."""
    for key in ("watch", "source") if (ROOT / "dvc.yaml").exists() else ("source",):  # only DVC watches, and only in the repository
        value = values.get(key)
        if value is not None and not (isinstance(value, str) and (ROOT / value).exists()):
            raise ConfigError(f"data.{key}: {value!r} is not there; write params.yaml anew with `python -m kd use PROFILE`, or correct it")


def check_weights(path):
    """Raise ConfigError unless a file of `teacher.weights` holds a state_dict, all of numbers."""
    for key, value in weights_of(path).items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(f"teacher.weights: {path}: {key} is not all numbers (NaN or infinite); give weights of a training that did not diverge")


def check_run(run, paths, params):
    """Raise ConfigError if a run (kd.study.runs) has no teacher that is trained, or its curriculum has no first lesson."""
    for kind, where in (("route", "teachers"), ("supernet", "supernets")):
        if kind in paths and run["teacher"] not in params[where]:
            raise ConfigError(f"its teacher {run['teacher']} is not listed under {where}: in params.yaml; add it there, or give another pair")
    if run["recipe"]["epochs"] > MOST_EPOCHS:
        raise ConfigError(f"recipe.epochs: {run['recipe']['epochs']:,} epochs; at most {MOST_EPOCHS:,}")
    buildable(run["student"])
    sources = {"route": Planned(epochs=route_epochs(params["teacher"], run["teacher"])), "supernet": Planned(widths=params["supernet"]["widths"])}
    method = make(run["knowledge"], run["curriculum"], run["parameters"])
    budget = method.lesson_epochs(run["recipe"]["epochs"])
    if run["parameters"][run["curriculum"]].get("first") != "search":  # that one looks at the student
        method.curriculum.next([], budget, Teachers(**{kind: sources[kind] for kind in sources if kind in paths}), None, None)


def check_looked_into(study, stage):
    """Raise ConfigError for the first row that the notebooks of a method's stage look into, whatever is asked for, and that will not run."""
    asked = study.asked("kd", stage)
    for path in (notebook_path(stage), *appendix_paths(stage)):
        for table, row in looked_into(path):
            if row not in asked_rows(load_table(table), study.params) and study.row_of(table, row)[0] not in asked:
                remedy = f"ask for it, e.g. {stage}: {{{table}: all}}, or leave stage {stage} out by naming others, as in `dvc repro rco`"
                raise ConfigError(f"run.{stage}: notebook {path.stem} looks into row {row!r} of table {table}, which is not asked for; {remedy}")


@cache
def looked_into(path):
    """[(table, row), ...] that a notebook names in the cells which always run."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    always = [cell for cell in cells if not any(tag.startswith("needs-") for tag in cell["metadata"].get("tags", ()))]
    return [found for cell in always for found in re.findall(r'study\.(?:trained|record|curves)\("(\w+)", "([^"]+)"', "".join(cell["source"]))]


def smallest_class(path):
    """How many training images the smallest class has in a file of stage data."""
    data = open_stream(path)
    return int(torch.bincount(data.labels["train"], minlength=len(data.classes)).min())


@cache
def check_networks(teacher, student, shape, classes, knowledge):
    """Raise ConfigError if a method does not fit its networks: a stage that one of them does not have, numbers of stages that differ.

    teacher: "" for none. shape: (C, H, W). knowledge: [names, parameters] as JSON. Looks at one blank image; random numbers stay as they were.
    """
    names, parameters = json.loads(knowledge)
    part = make(names, "fixed", {name: parameters[name] for name in names}).knowledge
    mine, its_teacher = outputs(student, shape, classes), outputs(teacher, shape, classes) if teacher else (None, None)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        part.build(mine[0], its_teacher[0], mine[1], its_teacher[1])


@cache
def outputs(network, shape, classes):
    """(network, its Output for one blank image). ConfigError for a network that the images are too small for."""
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():  # on "meta", weights are initialised by an import of torch._dynamo, a second
            module = build(network, classes, shape[0]).eval()
            return module, probe(module, shape)
    except ConfigError as problem:
        raise ConfigError(f"{problem}; give another network, or a larger data.size") from None


def route_epochs(teacher, network):
    """The epochs after which a teacher's states are saved; teacher: the section of params.yaml. As kd.teachers.train_route and adopt_route."""
    if network in teacher.get("weights", {}):
        return [1]
    every, epochs = teacher["every"], teacher["epochs"]
    if every > epochs:
        raise ConfigError(f"teacher.every: {every} must lie between 1 and the teacher's {epochs} epochs")
    return [epoch for epoch in range(1, epochs + 1) if epoch % every == 0 or epoch == epochs]
