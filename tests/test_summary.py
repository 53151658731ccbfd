"""What a table's runs say: means, paired differences to the baseline and to controls, against scipy."""

import math

import numpy as np
import pandas as pd
import pytest
from made_up import CONTROL_ACCURACY, CONTROLLED, TABLE, runs_of
from made_up import TABLE_ACCURACY as ACCURACY
from scipy import stats

from kd.report.summary import controls, judged, summary

COMPARED = [("both", "KD", (0, 1, 2)), ("both", "KD, longer", (0, 1, 2)), ("one", "KD, longer", (0, 1, 2, 3))]


def test_summary_of_a_made_up_table():
    lines = summary(runs_of(ACCURACY), TABLE).set_index("row")
    assert list(lines.index) == [row["row"] for row in TABLE["rows"]]  # the file's order, not run rows in their place
    assert lines["n"].tolist() == [3, 3, 3, 3, 1, 0]
    assert lines.loc["KD", "mean"] == pytest.approx(271 / 3) and math.isnan(lines.loc["KD", "difference"])
    assert lines.loc["better", "difference"] == pytest.approx((5.0 + 5.1 + 5.1) / 3)
    assert lines.loc["better", "pairs"] == 3
    p = {
        row: stats.ttest_rel([ACCURACY[row][s] for s in range(3)], [ACCURACY["KD"][s] for s in range(3)]).pvalue
        for row in ("student alone", "better", "alike")
    }
    for row, value in p.items():
        assert lines.loc[row, "p"] == pytest.approx(value)
    assert lines["verdict"].to_dict() == {
        "student alone": "(lower)", "KD": "", "better": "(higher)", "alike": "(open)", "once": "(no interval)", "never": "",
    }  # fmt: skip
    assert lines.loc["never", "not_run"] == "nobody has the data" and lines.loc["never", "reported"] == 61.0
    assert (lines["note"] == "").all() and (lines["not_run"].drop("never") == "").all() and set(lines["profile"]) == {"digits"}
    assert (lines["baseline_epochs"].drop(["KD", "never"]) == 20).all()
    assert math.isnan(lines.loc["once", "interval"]) and math.isnan(lines.loc["once", "difference_interval"])


def test_summary_looks_at_its_own_table_and_pair_only():
    runs = runs_of(ACCURACY)
    other = runs.assign(table="another", top1_last=1.0)
    second = runs.assign(pair="huge -> small", top1_last=runs["top1_last"] - 10)
    lines = summary(pd.concat([runs, other, second]), TABLE)
    alone = summary(runs, TABLE)
    first = lines[lines["pair"] == "big -> small"].reset_index(drop=True)
    pd.testing.assert_series_equal(first["mean"], alone["mean"])
    pd.testing.assert_series_equal(first["difference"], alone["difference"])
    assert len(lines) == 12
    pd.testing.assert_series_equal(first["verdict"], alone["verdict"])  # what a comparison says hangs on no other


def test_the_baseline_is_of_the_same_pair():
    """Two pairs far apart, on each of which the row is one point better."""
    apart = {level: {"KD": {0: level, 1: level + 2}, "better": {0: level + 1, 1: level + 3}} for level in (70.0, 90.0)}
    runs = pd.concat([runs_of(apart[level]).assign(pair=pair) for level, pair in ((70.0, "a -> b"), (90.0, "c -> d"))])
    for made in (runs, runs.iloc[::-1]):
        lines = summary(made, TABLE)
        better = lines[lines["row"] == "better"].set_index("pair")
        assert better["difference"].to_dict() == {"a -> b": 1.0, "c -> d": 1.0} and better["pairs"].tolist() == [2, 2]
        assert better["mean"].to_dict() == {"a -> b": 72.0, "c -> d": 92.0}


def test_the_baselines_epochs_are_of_the_same_pair():
    runs = runs_of({"KD": ACCURACY["KD"], "better": ACCURACY["better"]})
    lines = summary(pd.concat([runs, runs.assign(pair="a -> b", epochs=60)]), TABLE)
    better = lines[lines["row"] == "better"]
    assert better["epochs"].tolist() == better["baseline_epochs"].tolist() == [20, 60]


def test_reported_values_by_pair():
    table = TABLE | {"rows": [{"row": "KD", "reported": {"big -> small": {"value": 70.0, "tier": "A", "source": "x"}}}]}
    runs = runs_of({"KD": ACCURACY["KD"]})
    assert summary(runs, table)["reported"].tolist() == [70.0]
    assert summary(runs.assign(pair="else -> where"), table)["reported"].isna().all()


def test_controls_against_scipy():
    """Every row against each of its own controls, pair by pair."""
    shift = {"KD, longer": [0.0, 0.4, -0.3, 0.6], "one": [0.5, 0.2, 0.9, 0.1]}  # the second pair's differences are others
    second = {row: {seed: a - 20 + shift.get(row, [0] * 4)[seed] for seed, a in by_seed.items()} for row, by_seed in CONTROL_ACCURACY.items()}
    found = {"a -> b": CONTROL_ACCURACY, "c -> d": second}
    runs = pd.concat([runs_of(accuracy).assign(pair=pair) for pair, accuracy in found.items()])
    lines = controls(pd.concat([runs, runs.assign(table="another", top1_last=1.0)]), CONTROLLED)
    expected = [(pair, *compared) for pair in found for compared in COMPARED]
    assert list(zip(lines["pair"], lines["row"], lines["control"], strict=True)) == [line[:3] for line in expected]
    for line, (pair, row, control, seeds) in zip(lines.to_dict("records"), expected, strict=True):
        mine, other = ([found[pair][name][seed] for seed in seeds] for name in (row, control))
        test = stats.ttest_rel(mine, other)
        low, high = test.confidence_interval(0.95)
        assert line["mean"] == pytest.approx(np.mean(mine) - np.mean(other)) and line["pairs"] == len(seeds)
        assert line["interval"] == pytest.approx((high - low) / 2) and line["p"] == pytest.approx(test.pvalue)
        assert line["verdict"] == ("(open)" if low <= 0 <= high else "(higher)" if low > 0 else "(lower)")
    assert len(set(lines["verdict"])) > 1


def test_judged_names_the_epochs_of_a_claim():
    line = {"verdict": "(higher)", "epochs": 60.0, "baseline_epochs": 20.0, "claim": "", "pair": "a -> b"}
    assert judged(line) == "(higher), 60 epochs against 20"
    assert judged(line | {"verdict": "(lower)", "epochs": 18.4}) == "(lower), 18 epochs against 20"  # a mean over seeds
    for same in (20.0, 20.4, 19.6):
        assert judged(line | {"epochs": same}) == "(higher)"
    for said in ("(open)", "(no interval)", ""):
        assert judged(line | {"verdict": said}) == said
    assert judged(line | {"verdict": "", "epochs": math.nan, "baseline_epochs": math.nan}) == ""


def test_cost_and_teacher_stand_in_the_summary():
    """Cost over plain KD's; the teacher's line first, with the accuracy of plain KD's teacher; both only where known."""
    runs = runs_of({"KD": ACCURACY["KD"], "better": ACCURACY["better"]})
    assert summary(runs, TABLE)["cost"].isna().all() and summary(runs, TABLE)["row"].iloc[0] == "student alone"
    kd = runs["row"] == "KD"
    known = runs.assign(method=np.where(kd, "kd", "pwkd * kd"), training_multiply_adds=np.where(kd, 200.0, 300.0), teacher_top1=np.where(kd, 98.0, 97.0))
    lines = summary(known, TABLE).set_index("row")
    assert lines.loc["the teacher, big", "mean"] == 98.0 and lines.loc["the teacher, big", "n"] == 0
    assert lines.loc["better", "cost"] == 1.5 and lines.loc["KD", "cost"] == 1.0 and lines.index[0] == "the teacher, big"
    # of a shorter and a longer KD the one at the recipe's epochs counts, whichever is cheaper
    shorter = {"rows": [row | ({"knowledge": ["kd"], "epochs": 0.5} if row["row"] == "better" else {}) for row in TABLE["rows"]]}
    halved = known.assign(method="kd", epochs=np.where(kd, 20, 10), training_multiply_adds=np.where(kd, 200.0, 100.0))
    assert summary(halved, TABLE | shorter).set_index("row")["cost"].loc[["KD", "better"]].tolist() == [1.0, 0.5]
    # KD from a supernet is KD as well, but not from the plain teacher
    grown = TABLE | {"rows": [row | ({"fixed": {"source": "supernet"}} if row["row"] == "better" else {}) for row in TABLE["rows"]]}
    assert summary(known.assign(method="kd"), grown)["mean"].iloc[0] == 98.0
