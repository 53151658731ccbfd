"""Records of finished runs: their file, their DataFrame, their method's name."""

import io
import json

import pandas as pd
import pytest
from made_up import accuracy_kd_better, made_up_records, record_of

from kd.errors import ConfigError
from kd.report.tables import load_records, read_results
from kd.study.records import COLUMNS, frame, method_name, read_records

pytest_plugins = ["made_up_root"]


def records(*accuracies):
    """Records of KD, each with its place in a table."""
    place = {"table": "kd_main", "row": "KD", "pair": "big -> small"}
    return [record_of(f"k{seed}", seed=seed, accuracy=accuracy) | place for seed, accuracy in enumerate(accuracies)]


def test_frame_has_the_documented_columns():
    spent = {"training_multiply_adds": 2600.0, "teacher_top1": 98.0}
    runs = frame([record | spent for record in made_up_records(accuracy_kd_better)], "digits")
    assert list(runs.columns) == list(COLUMNS) and len(runs) == 6
    assert not runs.drop(columns="teacher_training").isna().any().any()  # that teacher is not here
    assert set(runs["method"]) == {"labels", "kd"} and set(runs["profile"]) == {"digits"} and set(runs["teacher_md5"]) == {"t" * 32}


def test_the_name_of_a_method():
    assert method_name({"knowledge": ["kd", "srm"], "curriculum": "rco"}) == "rco * (kd + srm)"
    assert method_name({"knowledge": ["kd"], "curriculum": "pwkd"}) == "pwkd * kd"
    assert method_name({"knowledge": ["kd", "kr"], "curriculum": "fixed"}) == "kd + kr"


def test_frame_holds_accuracies_as_results_csv_does():
    runs = frame(records(100 * 501 / 540, 100 / 3), "digits")
    assert runs["top1_last"].tolist() == [92.7778, 33.3333]
    assert pd.read_csv(io.StringIO(runs.to_csv(float_format="%.6g")))["top1_last"].tolist() == runs["top1_last"].tolist()


def test_frame_without_validation_images():
    """Without images held out a run has no validation accuracy, which its record says as null."""
    runs = frame([record | {"top1_val": None} for record in records(90.0)], "digits")
    assert runs["top1_val"].isna().all() and runs["top1_last"].tolist() == [90.0]


def test_what_is_damaged_is_named(tmp_path, root):
    for name in ("records.jsonl", "rows.json"):
        (root / "runs" / "digits" / "kd").mkdir(parents=True, exist_ok=True)
        (root / "runs" / "digits" / "kd" / name).write_bytes(b"{}\n\xff" if name == "rows.json" else b'{"key": 1}\n{"ke')
        with pytest.raises(ConfigError, match=f"{name} is damaged; delete it and run `dvc repro` again"):
            load_records("digits")
        (root / "runs" / "digits" / "kd" / name).unlink()
    for content in (b"", b"x,y\n", b"\xff\xfe", b'profile,pair\n"'):
        (tmp_path / "results.csv").write_bytes(content)
        with pytest.raises(ConfigError, match="results.csv is damaged; delete it and run `dvc repro` again, or restore it from git"):
            read_results(tmp_path / "results.csv")


def test_records_file_round_trip(tmp_path):
    assert read_records(tmp_path) == []
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(90.0, 91.0)))
    assert read_records(tmp_path) == records(90.0, 91.0)
