"""Made-up parameters, records and accuracies, for the tests of what is planned and reported."""

import json

import numpy as np
import pandas as pd
import yaml

from kd.report import cost, effects
from kd.study import profiles
from kd.study.records import frame, method_name
from kd.study.tables import load_table


def write_params(path, **changes):
    """A params.yaml that is whole: the digits profile's, with `changes`."""
    path.write_text(yaml.safe_dump(yaml.safe_load(profiles.compose("digits")) | {"profile": "made_up"} | changes))


def record_of(key, knowledge=("kd",), curriculum="fixed", seed=0, accuracy=90.0, **changes):
    """A finished run's record, as far as reports read it."""
    run = {"profile": "digits", "data": "digits", "data_md5": "d" * 32, "teacher": "big", "student": "small", "seed": seed}
    run |= {"teacher_md5": {"route": "t" * 32}, "knowledge": list(knowledge), "curriculum": curriculum}
    run |= {"parameters": {"kd": {"temperature": 4.0}, "fixed": {}}, "recipe": {"epochs": 20}}
    record = {"key": key, "program": "p", "run": run, "epochs": 20, "teacher_epochs": 20.0}
    record |= {"top1_last": accuracy, "top1_val": accuracy, "top1_best_test": accuracy}
    return record | {"parameters": 10, "multiply_adds": 100, "extra_parameters": 5} | changes


def made_up_records(accuracy_of, table="kd_main", seeds=(0, 1, 2), pair="big -> small", rows=None):
    """Records with their table, row and pair, of the rows of a real table, with accuracy_of(method's name, seed)."""
    made = []
    for row in load_table(table)["rows"]:
        if "not_run" in row or (rows and row["row"] not in rows):
            continue
        knowledge, curriculum = row.get("knowledge", ["kd"]), row.get("curriculum", "fixed")
        source = "supernet" if curriculum == "pwkd" else "route"
        lessons = [{"source": source, "indices": [0], "epochs": 15}, {"source": source, "indices": [1], "epochs": 5}]
        for seed in seeds:
            accuracy = accuracy_of(method_name({"knowledge": knowledge, "curriculum": curriculum}), seed)
            record = record_of(f"{table}-{row['row']}-{seed}", knowledge, curriculum, seed, accuracy, lessons=lessons)
            made.append(record | {"table": table, "row": row["row"], "pair": pair})
    return made


def write_runs(root, made, profile="digits", stage="kd"):
    """What a stage leaves under runs/, of `made_up_records`."""
    folder = root / "runs" / profile / stage
    folder.mkdir(parents=True)
    rows = [{k: r[k] for k in ("table", "row", "pair", "key")} | {"seed": r["run"]["seed"]} for r in made]
    kept = [{k: v for k, v in r.items() if k not in ("table", "row", "pair")} for r in made]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (folder / "rows.json").write_text(json.dumps(rows))


def accuracy_kd_better(method, seed):
    return {"labels": 90.0, "kd": 93.0}.get(method, 92.0) + 0.2 * seed + 0.01 * seed**2 * (method == "kd")


# --- a made-up table

TABLE = {
    "name": "made_up",
    "title": "A made-up table",
    "caption": "  Nothing ran. ",
    "baseline": "KD",
    "reported_for": "CIFAR-100, big -> small",
    "rows": [
        {"row": "student alone", "reported": {"value": 60.5, "tier": "A", "source": "first source"}},
        {"row": "KD"},
        {"row": "better", "reported": {"value": 63.0, "tier": "C", "source": "second source"}},
        {"row": "alike", "reported": {"value": 62.0, "tier": "A", "source": "first source"}},
        {"row": "once"},
        {
            "row": "never",
            "not_run": "nobody has the data",
            "reported": {"value": 61.0, "tier": "B", "source": "third source"},
        },
    ],
}
TABLE_ACCURACY = {
    "alike": {0: 91.0, 1: 89.0, 2: 90.5},
    "KD": {0: 90.0, 1: 90.0, 2: 91.0},
    "better": {2: 96.1, 0: 95.0, 1: 95.1},  # seeds out of order, as finished
    "student alone": {0: 85.0, 1: 84.9, 2: 86.1},
    "once": {0: 99.0},
}
CONTROLLED = {
    "name": "made_up",
    "title": "Controls",
    "rows": [
        {"row": "KD"},
        {"row": "KD, longer", "note": "a control"},
        {"row": "both", "control": ["KD", "KD, longer"]},
        {"row": "one", "control": ["KD, longer"]},
        {"row": "left out", "control": ["KD"]},
        {"row": "against what is left out", "control": ["left out"]},
    ],
}
CONTROL_ACCURACY = {
    "one": {3: 92.3, 0: 91.0, 1: 91.9, 2: 92.4},
    "both": {0: 93.0, 1: 93.9, 2: 94.6},
    "KD, longer": {0: 91.0, 1: 92.1, 2: 91.5, 3: 92.0},
    "KD": {2: 91.0, 1: 90.3, 0: 90.0},
    "against what is left out": {0: 99.0, 1: 98.0},
}


def runs_of(accuracies, profile="digits"):
    """{row: {seed: accuracy}} as the DataFrame of runs of a table called made_up."""
    rows = [("made_up", row, seed, value) for row, by_seed in accuracies.items() for seed, value in by_seed.items()]
    runs = pd.DataFrame(rows, columns=["table", "row", "seed", "top1_last"])
    return runs.assign(profile=profile, pair="big -> small", epochs=20)


# --- the combined study's grid


def grid(effect, seeds=6, noise=0.1):
    """Accuracies of the whole grid: effect(curriculum, knowledge) plus a seed's common part plus noise; a DataFrame."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 1, seeds)
    values = {name: 90 + effect(*cell) + common + noise * generator.normal(0, 1, seeds) for name, cell in effects.cells().items()}
    return pd.DataFrame(values, index=pd.Index(range(seeds), name="seed"))


def additive(curriculum, knowledge):
    value = {"fixed": 0.0, "rco": 1.0, "pwkd": -1.0}[curriculum]
    return value + 2.0 * ("kd" in knowledge) + 0.5 * ("kr" in knowledge) - 0.7 * ("srm" in knowledge)


def made_up_costs(accuracy):
    """`kd.report.cost.costs` of runs with these accuracies."""
    made = made_up_records(lambda m, s: float(accuracy[m][s]) if m in accuracy else 80.0, "combined", seeds=range(len(accuracy)))
    for record in made:
        teacher = 0.75 * 100 + 0.25 * 1000 if record["run"]["curriculum"] == "pwkd" else 1000
        record["training_multiply_adds"] = 3 * 20 * 100 + 20 * teacher
    return cost.costs(frame(made, "p"))
