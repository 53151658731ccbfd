"""What determines a run, and training it: from a dictionary to a record.

A run is a dictionary that holds all that determines its result but the program; its key is the md5 of that dictionary. A record
carries no time, host or version, so that the same run gives the same bytes; those go into the machine's record beside it.
"""

import json
from functools import cache
from hashlib import md5

import torch

from kd.data.stream import open_data_for
from kd.loop import Run
from kd.methods import Teachers, make
from kd.models import build, complexity
from kd.recipe import Recipe
from kd.study.settings import settings
from kd.teachers import Route, SubNetworks


def key_of(run):
    """md5 of what determines a run, 16 hexadecimal digits."""
    return md5(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


@cache
def open_data(path, images_per_class=0, device="cpu"):
    """The Data in a file of stage data, on the device; with `images_per_class` above 0 that many training images of each class."""
    found = settings()
    data = open_data_for(path, found.memory_share, device, decoders=found.decoders)
    return data.subset(images_per_class, 0) if images_per_class else data


@cache
def open_teacher(kind, path, device, **expected):
    """The Route (kind "route") or SubNetworks ("supernet") in a file; ConfigError where it is not of what is `expected`."""
    return {"route": Route, "supernet": SubNetworks}[kind](path, device, **expected)


def begin_run(run, paths, data, device, **options):
    """What determines a run, as a kd.loop.Run that is ready to train: student, method, teachers, recipe.

    paths: {"data": file, "route": file, "supernet": file}, the last two where the run's teacher needs them. data: what `open_data`
    gives of the first, or a Shared of it. options: checkpoint, report and ask of kd.loop.Run.
    """
    expected = {"network": run["teacher"], "data": run["data_md5"]}
    sources = {kind: open_teacher(kind, paths[kind], device, **expected) for kind in ("route", "supernet") if kind in paths}
    torch.manual_seed(run["seed"])
    student = build(run["student"], len(data.classes), data.image_shape[0]).to(device)
    recipe, method = Recipe.of(run["recipe"]), make(run["knowledge"], run["curriculum"], run["parameters"])
    return Run(student, method, Teachers(**sources), data, recipe, run["seed"], **options)


def record_of(run, trained):
    """(record, {"student": weights, "knowledge": weights}) of a run whose kd.loop.Run is `trained`."""
    student, result, data = trained.student, trained.result, trained.data
    parameters, operations = complexity(student, data.image_shape)
    epochs = [entry for entry in result.curve if "test" in entry]
    record = {
        "key": key_of(run),
        "run": run,
        "epochs": len(epochs),
        "top1_last": epochs[-1]["test"],
        "top1_val": epochs[-1]["validation"],
        "top1_best_test": max(entry["test"] for entry in epochs),
        "parameters": parameters,
        "multiply_adds": operations,
        "extra_parameters": result.extra_parameters,
        "teacher_epochs": round(result.teacher_images / len(data.labels["train"]), 3),
        "training_multiply_adds": training_multiply_adds(trained, len(epochs), operations),
        "teacher_top1": teacher_accuracy(trained),
        "lessons": [vars(lesson) for lesson in result.lessons],
        "curve": result.curve,
        "measured": result.measured,
    }
    return json.loads(json.dumps(rounded(record))), trained.weights()


def training_multiply_adds(trained, epochs, operations):
    """Multiply-adds of training, for one training image, of a finished kd.loop.Run whose student has so many in a forward pass.

    Student: 3 forward passes' worth an epoch (forward, gradient of weights, gradient of activations). Teacher: the passes that were
    made, shared out over the lessons' teachers by their epochs. The method's own modules are left out: their parameters are counted.
    """
    data, result = trained.data, trained.result
    spent, each, weights = 3.0 * epochs * operations, [], []
    for lesson in result.lessons:
        networks = [trained.teachers[lesson.source][index] for index in lesson.indices] if trained.teachers else []
        if networks:
            each.append(sum(complexity(network, data.image_shape)[1] for network in networks) / len(networks))
            weights.append(lesson.epochs * len(networks))
    if each:
        average = sum(value * weight for value, weight in zip(each, weights, strict=True)) / sum(weights)
        spent += int(result.teacher_images) / len(data.labels["train"]) * average
    return spent


def teacher_accuracy(trained):
    """Test accuracy in percent of the last teacher of a finished kd.loop.Run, as its file states it; None without one."""
    lesson = trained.result.lessons[-1]
    accuracy = getattr(trained.teachers[lesson.source], "accuracy", None) if trained.teachers else None
    return accuracy[lesson.indices[-1]]["test"] if accuracy else None


def rounded(value):
    """Floats to nine significant digits: below that lies noise of no interest, and the files become half as long."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if value == value else None
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value
