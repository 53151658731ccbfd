"""What determines a run, and training it: from a dictionary to a record.

A run is a dictionary that holds all that determines its result but the program; its key is the md5 of that dictionary. A record
carries no time, host or version, so that the same run gives the same bytes; those go into the machine's record beside it.
"""

import json
import time
from functools import cache
from hashlib import md5

import torch

from kd.data.stream import open_data_for
from kd.methods import Teachers, make
from kd.models import build, complexity
from kd.recipe import Recipe
from kd.study.settings import machine, settings
from kd.teachers import Route, SubNetworks
from kd.training import distill


def key_of(run):
    """md5 of what determines a run, 16 hexadecimal digits."""
    return md5(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


@cache
def open_data(path, images_per_class=0, device="cpu"):
    """The Data in a file of stage data, on the device; with `images_per_class` above 0 that many training images of each class."""
    data = open_data_for(path, settings().memory_share, device)
    return data.subset(images_per_class, 0) if images_per_class else data


@cache
def open_teacher(kind, path, device, **expected):
    """The Route (kind "route") or SubNetworks ("supernet") in a file; ConfigError where it is not of what is `expected`."""
    return {"route": Route, "supernet": SubNetworks}[kind](path, device, **expected)


def train_run(run, paths, device, checkpoint=None, report=None):
    """Train one run to its end. Returns (record, machine's record, {"student": weights, "knowledge": weights}).

    paths: {"data": file, "route": file, "supernet": file}, the last two where the run's teacher needs them. checkpoint: what
    kd.distill resumes from. report: (text) -> None, called after every epoch of every phase.
    """
    data = open_data(paths["data"], run["images_per_class"], device)
    expected = {"network": run["teacher"], "data": run["data_md5"]}
    sources = {kind: open_teacher(kind, paths[kind], device, **expected) for kind in ("route", "supernet") if kind in paths}
    torch.manual_seed(run["seed"])
    student = build(run["student"], len(data.classes), data.image_shape[0]).to(device)
    recipe, method = Recipe.of(run["recipe"]), make(run["knowledge"], run["curriculum"], run["parameters"])
    began = time.monotonic()
    result = distill(student, method, Teachers(**sources) if sources else None, data, recipe, run["seed"], checkpoint, report)
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
        "lessons": [vars(lesson) for lesson in result.lessons],
        "curve": result.curve,
        "measured": result.measured,
    }
    images = len(result.curve) * len(data.labels["train"])
    spent = {"seconds": round(time.monotonic() - began, 3), "images_per_second": round(images / max(result.seconds, 1e-9), 1)}
    weights = {"student": student.state_dict(), "knowledge": method.knowledge.state_dict()}
    return json.loads(json.dumps(rounded(record))), {"key": record["key"], **spent, **machine(device)}, weights


def rounded(value):
    """Floats to nine significant digits: below that lies noise of no interest, and the files become half as long."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if value == value else None
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value
