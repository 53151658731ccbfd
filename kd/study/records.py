"""Records of finished runs: read, named by their method, and as a DataFrame."""

import json
from pathlib import Path

import pandas as pd

from kd.errors import ConfigError
from kd.study.teacher_training import teacher_training

COLUMNS = {
    "profile": "what params.yaml was written from",
    "data": "data set",
    "table": "file in tables/ that asks for the run",
    "row": "row of that table",
    "method": "curriculum * (knowledge + ...)",
    "pair": "teacher -> student",
    "seed": "fixes initial weights, order of images and augmentation; shared by all methods",
    "epochs": "epochs in which the student learnt, warm-up included",
    "parameters": "of the student",
    "multiply_adds": "of the student, for one image",
    "extra_parameters": "of the method: regressors, encoders, codebooks; not needed after training",
    "teacher_epochs": "passes of the training images through a teacher",
    "training_multiply_adds": "of training, student and teacher, for one training image",
    "teacher_training": "of training the teacher, once for all runs that share it, in the same measure; of a supernet with what it grew from",
    "teacher_top1": "test accuracy in percent of the run's last teacher",
    "top1_last": "test accuracy in percent after the last epoch: the headline",
    "top1_val": "validation accuracy in percent after the last epoch",
    "top1_best_test": "best test accuracy over epochs, in percent: chosen on test, never a headline",
    "data_md5": "md5 of the tensors the run saw",
    "teacher_md5": "md5 of the teacher's file",
    "key": "md5 of all that determines the run",
}


def read_records(folder):
    """The records a stage left in `folder`; none when it has not run."""
    path = Path(folder) / "records.jsonl"
    return [parsed(line, path) for line in path.read_bytes().splitlines()] if path.exists() else []


def read_json(path, absent):
    """The value of a JSON file, or `absent` where there is none. ConfigError for a damaged one."""
    return parsed(path.read_bytes(), path) if path.exists() else absent


def parsed(text, path):
    """The value of a JSON text (str or bytes), all or a line of the file `path`; ConfigError, naming the file, for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigError(f"{path} is damaged; delete it and run `dvc repro` again") from None


def frame(records, profile):
    """Records, each with its table, row and pair, as a DataFrame with the columns of COLUMNS."""
    rows, spent = [], {}
    for record in records:
        run = record["run"]
        taught = json.dumps([run["teacher"], run["teacher_md5"], run.get("images_per_class")])
        if taught not in spent:
            spent[taught] = teacher_training(run, profile)
        row = {"profile": profile, "data": run["data"], "method": method_name(run), "data_md5": run["data_md5"]}
        row |= {"teacher_md5": " ".join(run["teacher_md5"].values()), "seed": run["seed"], "teacher_training": spent[taught]}
        row |= {name: record[name] for name in COLUMNS if name in record}
        row |= {name: float(f"{row[name]:.6g}") for name in row if name.startswith("top1") and row[name] is not None}  # as results.csv has them
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def method_name(run):
    """"rco * (kd + srm)" of a run."""
    knowledge = " + ".join(run["knowledge"])
    if run["curriculum"] == "fixed":
        return knowledge
    return f"{run['curriculum']} * ({knowledge})" if len(run["knowledge"]) > 1 else f"{run['curriculum']} * {knowledge}"
