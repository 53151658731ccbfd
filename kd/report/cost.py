"""What training costs: of the combined study in multiply-adds, of a whole profile in measured time and memory."""

from collections import defaultdict

import numpy as np
import pandas as pd

from kd.errors import ConfigError
from kd.report import effects
from kd.report.markdown import grid_of
from kd.statistics import interval
from kd.study.executor import duration
from kd.study.parameters import study_parameters
from kd.study.plan import timed_runs
from kd.study.records import method_name


def costs(runs):
    """A line a method of the table `combined`: accuracy (mean, interval), cost relative to KD's, parameters, front.

    runs: as for `effects.accuracies`, of one pair. front: `on_front` of cost and mean.
    """
    found = []
    for name, group in runs[runs["table"] == "combined"].groupby("method", sort=False):
        mean, width = interval(group["top1_last"])
        spent = group["training_multiply_adds"].mean()
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
    rows, devices = defaultdict(lambda: {"runs": 0, "seconds": 0.0, "epochs": 0, "memory": 0, "asked": 0, "made": 0}), set()
    for record, machine in timed_runs(profile):
        row = rows[method_name(record["run"])]
        row["runs"] += 1
        row["seconds"] += machine["seconds"]
        row["epochs"] += record["epochs"]
        for what, count in (machine.get("teacher_passes") or {}).items():
            row[what] += count
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
    total, count, asked, made = (sum(row[what] for row in rows.values()) for what in ("seconds", "runs", "asked", "made"))
    head = ["method", "runs", "seconds a student epoch", "times KD's", "peak memory of the process, MiB"]
    spent = f"{count} runs of students took {duration(total)} of processes' time in all ({'; '.join(sorted(devices))})"
    text = f"{spent}; several ran side by side. Preparing phases and evaluation are included."
    if asked:
        text += f" Of a teacher's forward passes that they asked for ({asked:,} batches), {made:,} were made: the others were shared."
    return f"# Hardware and time: {profile}\n\n{text}\n\n{grid_of(head, lines)}\n"
