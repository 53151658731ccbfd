"""What training costs: of the combined study in multiply-adds, of a whole profile in measured time and memory."""

from collections import defaultdict

import numpy as np
import pandas as pd

from kd.errors import ConfigError
from kd.models import Supernet, build, complexity
from kd.report import effects
from kd.report.markdown import grid_of
from kd.statistics import interval
from kd.study.executor import duration
from kd.study.parameters import study_parameters
from kd.study.plan import timed_runs
from kd.study.records import method_name


def teacher_operations(network, widths, classes, image_shape):
    """Multiply-adds of a forward pass of one image: {"route": of the teacher, "supernet": [of it at each width]}."""
    plain = complexity(build(network, classes, image_shape[0]), image_shape)[1]
    nested, at_width = Supernet(build(network, classes, image_shape[0]), tuple(widths)), []
    for index in range(len(widths)):
        nested.select(index)
        at_width.append(complexity(nested, image_shape)[1])
    return {"route": plain, "supernet": at_width}


def training_operations(record, operations):
    """Multiply-adds of training, for one training image: from a run's record and `teacher_operations`.

    Student: 3 forward passes' worth an epoch (forward, gradient of weights, gradient of activations). Teacher: the
    passes that the record counts, shared out over the lessons' teachers by their epochs. The method's own modules are
    left out: their parameters are counted beside it.
    """
    student = 3 * record["epochs"] * record["multiply_adds"]
    each, weights = [], []
    for lesson in record["lessons"]:
        found = operations[lesson["source"]]
        each.append(np.mean([found[index] if isinstance(found, list) else found for index in lesson["indices"]]))
        weights.append(lesson["epochs"] * len(lesson["indices"]))
    return float(student + record["teacher_epochs"] * np.average(each, weights=weights))


def costs(runs, records, operations):
    """A line a method of the table `combined`: accuracy (mean, interval), cost relative to KD's, parameters, front.

    runs: as for `effects.accuracies`, of one pair. records: {key: record}. front: `on_front` of cost and mean.
    """
    found = []
    for name, group in runs[runs["table"] == "combined"].groupby("method", sort=False):
        mean, width = interval(group["top1_last"])
        spent = np.mean([training_operations(records[key], operations) for key in group["key"]])
        line = {
            "name": name,
            "curriculum": effects.cells().get(name, ["student alone"])[0],
            "mean": mean,
            "interval": width,
        }
        found.append({**line, "multiply_adds": spent, "extra_parameters": group["extra_parameters"].iloc[0]})
    found = pd.DataFrame(found)
    found["cost"] = found["multiply_adds"] / float(found.loc[found["name"] == "kd", "multiply_adds"].iloc[0])
    return found.assign(front=on_front(found["cost"], found["mean"]))


def on_front(cost, value):
    """Which points no other dominates, by being no dearer and no worse, and one of the two strictly."""
    cost, value = np.asarray(cost, float).round(9), np.asarray(value, float).round(9)
    no_worse = (cost[None] <= cost[:, None]) & (value[None] >= value[:, None])
    strictly = (cost[None] < cost[:, None]) | (value[None] > value[:, None])
    return ~(no_worse & strictly).any(1)


def cost(profile=None):
    """Markdown: on what and for how long a profile's students trained, a method a line, as measured."""
    profile = profile or study_parameters()["profile"]
    rows, devices = defaultdict(lambda: {"runs": 0, "seconds": 0.0, "epochs": 0, "memory": 0}), set()
    for record, machine in timed_runs(profile):
        row = rows[method_name(record["run"])]
        row["runs"] += 1
        row["seconds"] += machine["seconds"]
        row["epochs"] += record["epochs"]
        row["memory"] = max(row["memory"], machine["peak_memory_mib"] or 0)
        devices.add(f"{machine['device']}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''} a run")
    if not rows:
        raise ConfigError(
            f"the store has no times of profile {profile}'s runs; `dvc repro` measures them, `dvc pull` brings none"
        )
    each = {name: row["seconds"] / row["epochs"] for name, row in rows.items()}
    plain = each.get("kd", float("nan"))
    lines = [
        [name, rows[name]["runs"], f"{each[name]:.2f}", f"{each[name] / plain:.2f}", rows[name]["memory"]]
        for name in sorted(rows, key=each.get)
    ]
    total, count = (sum(row[what] for row in rows.values()) for what in ("seconds", "runs"))
    head = ["method", "runs", "seconds a student epoch", "times KD's", "peak memory of the process, MiB"]
    spent = f"{count} runs of students took {duration(total)} of processes' time in all ({'; '.join(sorted(devices))})"
    text = f"{spent}; several ran side by side. Preparing phases and evaluation are included."
    return f"# Hardware and time: {profile}\n\n{text}\n\n{grid_of(head, lines)}\n"
