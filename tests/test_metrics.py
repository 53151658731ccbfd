"""What DVC compares: metrics and curves of a stage, computed by hand here."""

import json

import pandas as pd
import yaml
from made_up import record_of
from pipeline import ROOT

from kd.study import metrics
from kd.study.metrics import MAIN, accuracies, write_metrics
from kd.study.paths import STAGES, curves_path, metrics_path
from kd.study.tables import load_table

pytest_plugins = ["made_up_root"]
CURVES = {"a": [50.0, 60.0, 70.0], "b": [52.0, 63.0, 71.0], "c": [10.0, 20.0, 30.0], "d": [1.0, 2.0, 3.0]}
TABLE = {"name": "t", "rows": [{"row": "KD"}, {"row": "few", "seeds": "grid"}, {"row": "alone"}, {"row": "never"}]}
ROWS = [("alone", "x -> y", 0, "c"), ("KD", "x -> y", 0, "a"), ("KD", "x -> y", 1, "b"), ("few", "x -> y", 0, "a")]


def write_stage(folder, rows, table="t"):
    """A stage's records, one a key of CURVES, whose first epoch is one of a phase that prepares, and its rows."""
    folder.mkdir(parents=True)
    curve = {key: [{"phase": "codebook"}, *({"phase": "lesson", "test": v} for v in CURVES[key])] for key in CURVES}
    lines = [json.dumps(record_of(key, curve=curve[key])) + "\n" for key in CURVES]
    (folder / "records.jsonl").write_text("".join(lines))
    found = [{"table": table, "row": row, "pair": pair, "seed": seed, "key": key} for row, pair, seed, key in rows]
    (folder / "rows.json").write_text(json.dumps([*found, {"table": "another", "row": "KD", "pair": "p", "key": "d"}]))


def test_means_over_seeds_in_the_tables_order_without_rows_of_few_seeds(tmp_path):
    write_stage(tmp_path / "kd", ROWS)
    assert accuracies(tmp_path / "kd", TABLE) == {"KD": [51.0, 61.5, 70.5], "alone": [10.0, 20.0, 30.0]}


def test_another_pair_is_named(tmp_path):
    write_stage(tmp_path / "kd", [("KD", "x -> y", 0, "a"), ("KD", "z -> y", 0, "c")])
    assert list(accuracies(tmp_path / "kd", TABLE)) == ["KD", "KD, z -> y"]


def test_files_that_dvc_reads(root, monkeypatch):
    monkeypatch.setattr(metrics, "load_table", lambda name: TABLE)
    write_stage(root / "runs" / "p" / "kd", ROWS)
    write_metrics("p", "kd")
    assert json.loads(metrics_path("p", "kd").read_text()) == {"KD": 70.5, "alone": 30.0}
    lines = pd.read_csv(curves_path("p", "kd"))
    assert list(lines.columns) == ["row", "epoch", "top1"]
    assert lines[lines["row"] == "KD"]["epoch"].tolist() == [1, 2, 3]
    assert lines[lines["row"] == "KD"]["top1"].tolist() == [51.0, 61.5, 70.5]


def test_a_profile_that_leaves_the_main_table_out_has_no_metrics(root):
    write_stage(root / "runs" / "p" / "rco", [], "rco_table1")
    write_metrics("p", "rco")
    assert json.loads(metrics_path("p", "rco").read_text()) == {}
    assert curves_path("p", "rco").read_text() == "row,epoch,top1\n"


def test_every_stage_has_a_main_table_of_its_own_and_dvc_knows_its_files():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(MAIN) == list(STAGES)
    for stage, table in MAIN.items():
        assert load_table(table)["stage"] == stage
        assert stages[stage]["metrics"] == [{f"reports/${{profile}}/metrics/{stage}.json": {"cache": False}}]
        (plot,) = stages[stage]["plots"]
        assert list(plot) == [f"runs/${{profile}}/curves/{stage}.csv"]
        assert (ROOT / ".dvc" / "plots" / f"{plot[next(iter(plot))]['template']}.json").exists()
