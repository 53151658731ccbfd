"""What DVC compares between two versions of a study: a method stage's metrics and curves, made from its records.

    reports/PROFILE/metrics/STAGE.json    {row of the stage's main table: mean test accuracy in percent}; kept by git
    runs/PROFILE/curves/STAGE.csv         row, epoch, top1: the same after every epoch; kept by DVC, as the records

For `dvc metrics diff`, `dvc plots show`, `dvc exp show` and their like alone: no report reads them. Only rows of the
main number of seeds stand there, so that a reader can take in the columns of `dvc exp show`; results.csv has every
row.
"""

import csv
import io
import json
from collections import defaultdict
from pathlib import Path

from kd.checkpoints import write_atomically
from kd.study.paths import curves_path, metrics_path, runs_path
from kd.study.records import read_records
from kd.study.tables import load_table

MAIN = {
    "kd": "kd_main",
    "kr": "kr_main",
    "srm": "srm_cifar100",
    "rco": "rco_headline",
    "iekd": "iekd_main",
    "pwkd": "pwkd_main",
    "combined": "common",
}


def write_metrics(profile, stage):
    """Write both files of a stage that has run. A pair of networks beside the table's first is named behind the row."""
    found = accuracies(runs_path(profile, stage), load_table(MAIN[stage]))
    metrics = {row: means[-1] for row, means in found.items()}
    write_atomically(metrics_path(profile, stage), json.dumps(metrics, indent=1) + "\n")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["row", "epoch", "top1"])
    writer.writerows((row, epoch, mean) for row, means in found.items() for epoch, mean in enumerate(means, 1))
    write_atomically(curves_path(profile, stage), lines.getvalue())


def accuracies(folder, table):
    """{row: [mean test accuracy in percent after each epoch in which the student learns]} of a table, in its order."""
    records = {record["key"]: record for record in read_records(folder)}
    rows = json.loads((Path(folder) / "rows.json").read_text())
    rows = [row for row in rows if row["table"] == table["name"]]
    wanted = [row["row"] for row in table["rows"] if row.get("seeds", table.get("seeds", "main")) == "main"]
    found = defaultdict(list)
    for name in wanted:
        for row in (row for row in rows if row["row"] == name):
            place = name if row["pair"] == rows[0]["pair"] else f"{name}, {row['pair']}"
            found[place].append([entry["test"] for entry in records[row["key"]]["curve"] if "test" in entry])
    return {
        place: [round(sum(values) / len(values), 4) for values in zip(*curves, strict=True)]
        for place, curves in found.items()
    }
