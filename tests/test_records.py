"""What may be said about records: intervals, paired differences, Holm's correction and verdicts, against independent derivations."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kd.records import (
    COLUMNS,
    controls,
    frame,
    holm,
    interval,
    judged,
    markdown,
    method_name,
    paired,
    plus_minus,
    read_records,
    summary,
    verdict,
)

# Student's t, two-sided 95 %, from printed tables
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}
ACCURACIES = st.lists(st.floats(0, 100), min_size=2, max_size=12)


@pytest.mark.parametrize("freedom", sorted(T975))
def test_interval_against_printed_t(freedom):
    values = np.random.default_rng(freedom).normal(90, 2, freedom + 1)
    mean, width = interval(values)
    s = math.sqrt(sum((v - sum(values) / len(values)) ** 2 for v in values) / freedom)
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert width == pytest.approx(T975[freedom] * s / math.sqrt(freedom + 1), rel=2e-4)


def test_interval_edges():
    mean, width = interval([91.5])
    assert mean == 91.5 and math.isnan(width)
    assert interval([90.0, 90.0, 90.0]) == (90.0, 0.0)
    assert interval([1, 3], confidence=0.9)[1] == pytest.approx(6.314, rel=1e-3)


def test_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.normal(70, 3, (4000, 5))
    hits = sum(abs(mean - 70) <= width for mean, width in map(interval, draws))
    assert 0.94 < hits / 4000 < 0.96  # five standard errors are 0.017


@given(ACCURACIES, st.floats(-50, 50))
def test_interval_moves_with_its_values(values, shift):
    mean, width = interval(values)
    moved, same = interval(np.asarray(values) + shift)
    assert moved == pytest.approx(mean + shift, abs=1e-9) and same == pytest.approx(width, abs=1e-6)


def seeds(values, first=0):
    return pd.Series(values, index=range(first, first + len(values)), dtype=float)


def test_paired_by_hand():
    a, b = [90.0, 92.0, 91.0, 95.0], [89.0, 90.0, 91.0, 92.0]  # differences 1 2 0 3
    mean, width, count, p = paired(seeds(a), seeds(b))
    assert (mean, count) == (1.5, 4)
    s = math.sqrt((0.25 + 0.25 + 2.25 + 2.25) / 3)
    assert width == pytest.approx(3.182 * s / 2, rel=2e-4)
    assert p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-12)
    # with 3 degrees of freedom the distribution function has a closed form
    t = 1.5 / (s / 2)
    x = t / math.sqrt(3)
    upper = 0.5 - (x / (1 + x * x) + math.atan(x)) / math.pi
    assert p == pytest.approx(2 * upper, abs=1e-12)


def test_pairing_is_by_seed_and_not_by_place():
    a, b = seeds([90.0, 92.0, 94.05]), seeds([89.0, 91.0, 93.0])
    assert paired(a.iloc[::-1], b) == paired(a, b)
    assert paired(a.iloc[::-1], b)[0] == pytest.approx(3.05 / 3)
    # a common effect of the seed cancels: the same spread unpaired would hide the difference
    assert paired(a + seeds([0.0, 0.02, 0.04]), b)[1] < 0.3


def test_seeds_missing_on_either_side_are_left_out():
    a, b = seeds([90.0, 92.0, 91.0, 99.0]), seeds([90.0, 91.0, 93.0], first=1)  # seeds 0-3 and 1-3
    assert paired(a, b) == paired(a.loc[1:3], b)
    assert paired(a, b)[2] == 3
    mean, width, count, p = paired(a.loc[[0, 1]], b)
    assert (mean, count) == (2.0, 1) and math.isnan(width) and math.isnan(p)
    mean, width, count, p = paired(a.loc[[0]], b)
    assert count == 0 and all(map(math.isnan, (mean, width, p)))


def test_no_spread():
    a = seeds([90.0, 91.0, 92.0])
    assert paired(a, a) == (0.0, 0.0, 3, 1.0)
    # three times the same difference does not say how much it would vary: no claim
    mean, width, count, p = paired(a + 2, a)
    assert (mean, count) == (2.0, 3) and math.isnan(width) and math.isnan(p)
    assert verdict(0.0, 0.0, 1.0) == "no difference shown" and verdict(mean, width, p) == "no interval"


def test_no_spread_but_for_rounding():
    """Accuracies of 540 images: every pair differs by exactly one image, though not in binary fractions."""
    a = seeds([100 * n / 540 for n in (501, 507, 513, 519, 522)])
    b = seeds([100 * n / 540 for n in (500, 506, 512, 518, 521)])
    mean, width, count, p = paired(a, b)
    assert count == 5 and mean == pytest.approx(100 / 540)
    assert math.isnan(width) and math.isnan(p)


def test_holm_on_worked_examples():
    # Holm's own scheme: (m - rank + 1) p in rising order, made monotone, capped at 1
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], atol=1e-12)
    np.testing.assert_allclose(holm([0.02, 0.02, 0.02]), [0.06, 0.06, 0.06], atol=1e-12)  # ties
    np.testing.assert_allclose(holm([0.9, 0.6, 0.0001]), [1.0, 1.0, 0.0003], atol=1e-12)
    assert holm([0.04]).tolist() == [0.04] and holm([]).tolist() == []
    found = holm([math.nan, 0.01, math.nan, 0.04])  # nan is nobody's comparison
    assert np.isnan(found[[0, 2]]).all() and found[[1, 3]].tolist() == [0.02, 0.04]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_against_its_definition(p, random):
    """Adjusted p_i = max over j with p_j <= p_i of min(1, p_j * (number of hypotheses with p >= p_j, in rank))."""
    ranked = sorted(p)
    expected = [max(min(1.0, (len(p) - k) * ranked[k]) for k in range(ranked.index(value) + 1)) for value in p]
    found = holm(p)
    for value, mine in zip(p, found, strict=True):
        last = (
            len(p) - 1 - ranked[::-1].index(value)
        )  # ties share the largest of their ranks' values, which is the first's
        assert mine == pytest.approx(max(min(1.0, (len(p) - k) * ranked[k]) for k in range(last + 1)), abs=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (found >= np.asarray(p) - 1e-15).all() and (found <= np.minimum(1, len(p) * np.asarray(p)) + 1e-12).all()
    order = list(range(len(p)))
    random.shuffle(order)
    np.testing.assert_allclose(holm([p[i] for i in order]), found[order], atol=1e-12)


def test_holm_rejects_what_step_down_rejects():
    """The adjusted value is below 5 % exactly where Holm's sequential procedure rejects."""
    generator = np.random.default_rng(1)
    for _ in range(300):
        p = generator.beta(0.3, 3, generator.integers(1, 9))
        rejected = set()
        for rank, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (len(p) - rank):
                break
            rejected.add(int(index))
        assert rejected == set(np.flatnonzero(holm(p) <= 0.05).tolist())


def test_verdicts():
    assert verdict(1.0, 0.4, 0.01) == "better"
    assert verdict(-1.0, 0.4, 0.01) == "worse"
    assert verdict(1.0, 1.0, 0.01) == verdict(-0.3, 1.0, 0.5) == "no difference shown"
    assert verdict(1.0, 0.4, 0.06) == verdict(-1.0, 0.4, 0.06) == "not after correction"
    assert verdict(1.0, math.nan, math.nan) == "no interval"


@given(ACCURACIES)
def test_verdict_agrees_with_p_when_there_is_one_comparison(values):
    mean, width, _, p = paired(seeds(values), seeds([50.0] * len(values)))
    if abs(p - 0.05) > 1e-6:
        assert (verdict(mean, width, p) in ("better", "worse")) == (p < 0.05)


def records(accuracies, run=()):
    """Records as a stage writes them: {row: {seed: accuracy}}."""
    made = []
    for row, by_seed in accuracies.items():
        for seed, accuracy in by_seed.items():
            r = {
                "data": "digits",
                "data_md5": "d",
                "teacher_md5": {"route": "t"},
                "seed": seed,
                "knowledge": ["kd"],
                "curriculum": "fixed",
            }
            record = {
                "run": r | dict(run),
                "key": f"{row}{seed}",
                "epochs": 20,
                "top1_last": accuracy,
                "top1_val": 80.0,
                "top1_best_test": 99.0,
            }
            record |= {"parameters": 1, "multiply_adds": 2, "extra_parameters": 3, "teacher_epochs": 20.0}
            made.append(record | {"table": "made_up", "row": row, "pair": "big -> small"})
    return made


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
ACCURACY = {
    "alike": {0: 91.0, 1: 89.0, 2: 90.5},
    "KD": {0: 90.0, 1: 90.0, 2: 91.0},
    "better": {2: 96.1, 0: 95.0, 1: 95.1},  # seeds out of order, as finished
    "student alone": {0: 85.0, 1: 84.9, 2: 86.1},
    "once": {0: 99.0},
}


def test_frame_has_the_documented_columns():
    runs = frame(records(ACCURACY), "digits")
    assert list(runs.columns) == list(COLUMNS) and len(runs) == 13
    assert not runs.isna().any().any()
    assert set(runs["method"]) == {"kd"} and set(runs["profile"]) == {"digits"} and set(runs["teacher_md5"]) == {"t"}
    assert method_name({"knowledge": ["kd", "srm"], "curriculum": "rco"}) == "rco * (kd + srm)"
    assert method_name({"knowledge": ["kd"], "curriculum": "pwkd"}) == "pwkd * kd"


def test_frame_holds_accuracies_as_results_csv_does():
    runs = frame(records({"KD": {0: 100 * 501 / 540, 1: 100 / 3}}), "digits")
    assert runs["top1_last"].tolist() == [92.7778, 33.3333]
    assert pd.read_csv(io.StringIO(runs.to_csv(float_format="%.6g")))["top1_last"].tolist() == runs["top1_last"].tolist()


def test_frame_without_validation_images():
    """Without images held out a run has no validation accuracy, which its record says as null."""
    runs = frame([record | {"top1_val": None} for record in records({"KD": {0: 90.0}})], "digits")
    assert runs["top1_val"].isna().all() and runs["top1_last"].tolist() == [90.0]


def test_summary_of_a_made_up_table():
    lines = summary(frame(records(ACCURACY), "digits"), TABLE).set_index("row")
    assert list(lines.index) == [row["row"] for row in TABLE["rows"]]  # the file's order, not run rows in their place
    assert lines["n"].tolist() == [3, 3, 3, 3, 1, 0]
    assert lines.loc["KD", "mean"] == pytest.approx(271 / 3) and math.isnan(lines.loc["KD", "difference"])
    assert lines.loc["better", "difference"] == pytest.approx((5.0 + 5.1 + 5.1) / 3)
    assert lines.loc["better", "pairs"] == 3
    p = {
        row: stats.ttest_rel([ACCURACY[row][s] for s in range(3)], [ACCURACY["KD"][s] for s in range(3)]).pvalue
        for row in ("student alone", "better", "alike")
    }
    expected = dict(
        zip(
            sorted(p, key=p.get),
            np.maximum.accumulate([min(1, k * p[r]) for k, r in zip((3, 2, 1), sorted(p, key=p.get), strict=True)]),
            strict=True,
        )
    )
    for row in p:
        assert lines.loc[row, "p_holm"] == pytest.approx(expected[row])
    assert lines["verdict"].to_dict() == {
        "student alone": "worse", "KD": "", "better": "better", "alike": "no difference shown", "once": "no interval", "never": "",
    }  # fmt: skip
    assert lines.loc["never", "not_run"] == "nobody has the data" and lines.loc["never", "reported"] == 61.0
    assert (lines["note"] == "").all() and (lines["not_run"].drop("never") == "").all() and set(lines["profile"]) == {"digits"}
    assert (lines["baseline_epochs"].drop(["KD", "never"]) == 20).all()
    assert math.isnan(lines.loc["once", "interval"]) and math.isnan(lines.loc["once", "difference_interval"])


def test_summary_looks_at_its_own_table_and_pair_only():
    runs = frame(records(ACCURACY), "digits")
    other = runs.assign(table="another", top1_last=1.0)
    second = runs.assign(pair="huge -> small", top1_last=runs["top1_last"] - 10)
    lines = summary(pd.concat([runs, other, second]), TABLE)
    alone = summary(runs, TABLE)
    first = lines[lines["pair"] == "big -> small"].reset_index(drop=True)
    pd.testing.assert_series_equal(first["mean"], alone["mean"])
    pd.testing.assert_series_equal(first["difference"], alone["difference"])
    assert len(lines) == 12
    # more comparisons in the table, so a stricter correction
    assert (first["p_holm"].dropna() >= alone["p_holm"].dropna() - 1e-12).all()


def test_the_baseline_is_of_the_same_pair():
    """Two pairs far apart, on each of which the row is one point better."""
    apart = {level: {"KD": {0: level, 1: level + 2}, "better": {0: level + 1, 1: level + 3}} for level in (70.0, 90.0)}
    runs = pd.concat([frame(records(apart[level]), "digits").assign(pair=pair) for level, pair in ((70.0, "a -> b"), (90.0, "c -> d"))])
    for made in (runs, runs.iloc[::-1]):
        lines = summary(made, TABLE)
        better = lines[lines["row"] == "better"].set_index("pair")
        assert better["difference"].to_dict() == {"a -> b": 1.0, "c -> d": 1.0} and better["pairs"].tolist() == [2, 2]
        assert better["mean"].to_dict() == {"a -> b": 72.0, "c -> d": 92.0}


def test_the_baselines_epochs_are_of_the_same_pair():
    runs = frame(records({"KD": ACCURACY["KD"], "better": ACCURACY["better"]}), "digits")
    lines = summary(pd.concat([runs, runs.assign(pair="a -> b", epochs=60)]), TABLE)
    better = lines[lines["row"] == "better"]
    assert better["epochs"].tolist() == better["baseline_epochs"].tolist() == [20, 60]


def test_reported_values_by_pair():
    table = TABLE | {"rows": [{"row": "KD", "reported": {"big -> small": {"value": 70.0, "tier": "A", "source": "x"}}}]}
    runs = frame(records({"KD": ACCURACY["KD"]}), "digits")
    assert summary(runs, table)["reported"].tolist() == [70.0]
    assert summary(runs.assign(pair="else -> where"), table)["reported"].isna().all()


def test_markdown_of_a_made_up_table():
    text = markdown(summary(frame(records(ACCURACY), "digits"), TABLE), TABLE)
    assert text.startswith("### A made-up table\n\nNothing ran.\n\n|")
    grid = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in grid} == {len(grid[0])}  # every row as wide as the head
    cells = {row[0]: row for row in grid[2:]}
    assert list(cells) == [row["row"] for row in TABLE["rows"]]
    half = 4.303 * math.sqrt(sum((v - 271 / 3) ** 2 for v in (90, 90, 91)) / 2) / math.sqrt(3)
    assert f"90.33 ± {half:.2f}" in cells["KD"]
    assert any(cell.startswith("+5.07 ± ") for cell in cells["better"]) and "better" in cells["better"]
    assert "99.00" in cells["once"] and "no interval" in cells["once"]
    assert "not run" in cells["never"] and text.endswith("\n\n- never: not run: nobody has the data.\n")
    assert "after the last epoch, on digits: mean and 95 % t-interval over 1 or 3 seeds, 20 epochs each; big -> small." in text
    assert "against KD, over the seeds that both rows have; 3 comparisons" in text
    assert cells["KD"][-1] == "not verified"
    # a source is numbered once, at its first use, and every number used is explained
    assert [cells[row][-1] for row in ("student alone", "better", "alike", "never")] == [
        "60.5 [1]",
        "63.0 [2] †",
        "62.0 [1]",
        "61.0 [3]",
    ]
    for number, source in ((1, "first source"), (2, "second source"), (3, "third source")):
        assert text.count(source) == 1 and f"[{number}] {source}" in text
    assert "† known only from a third party" in text and "CIFAR-100, big -> small" in text
    assert "nan" not in text and "None" not in text
    assert "3 comparisons" in text  # what was tested, not what was printed


def test_markdown_without_tiers_or_differences():
    table = {"name": "made_up", "title": "T", "rows": [{"row": "KD"}]}
    text = markdown(summary(frame(records({"KD": {0: 90.0}}), "digits"), table), table)
    assert "†" not in text and "comparisons" not in text and "nan" not in text and "90.00" in text


CONTROLLED = {
    "name": "made_up",
    "title": "Controls",
    "rows": [
        {"row": "KD"},
        {"row": "KD, longer", "note": "a control"},
        {"row": "both", "control": ["KD", "KD, longer"]},
        {"row": "one", "control": "KD, longer"},
        {"row": "left out", "control": "KD"},
        {"row": "against what is left out", "control": "left out"},
    ],
}
CONTROL_ACCURACY = {
    "one": {3: 92.3, 0: 91.0, 1: 91.9, 2: 92.4},
    "both": {0: 93.0, 1: 93.9, 2: 94.6},
    "KD, longer": {0: 91.0, 1: 92.1, 2: 91.5, 3: 92.0},
    "KD": {2: 91.0, 1: 90.3, 0: 90.0},
    "against what is left out": {0: 99.0, 1: 98.0},
}
COMPARED = [("both", "KD", (0, 1, 2)), ("both", "KD, longer", (0, 1, 2)), ("one", "KD, longer", (0, 1, 2, 3))]


def test_controls_against_scipy():
    """Every row against each of its own controls, pair by pair, and Holm among these comparisons alone."""
    shift = {"KD, longer": [0.0, 0.4, -0.3, 0.6], "one": [0.5, 0.2, 0.9, 0.1]}  # the second pair's differences are others
    second = {row: {seed: a - 20 + shift.get(row, [0] * 4)[seed] for seed, a in by_seed.items()} for row, by_seed in CONTROL_ACCURACY.items()}
    found = {"a -> b": CONTROL_ACCURACY, "c -> d": second}
    runs = pd.concat([frame(records(accuracy), "digits").assign(pair=pair) for pair, accuracy in found.items()])
    lines = controls(pd.concat([runs, runs.assign(table="another", top1_last=1.0)]), CONTROLLED)
    expected, p = [(pair, *compared) for pair in found for compared in COMPARED], []
    assert list(zip(lines["pair"], lines["row"], lines["control"], strict=True)) == [line[:3] for line in expected]
    for line, (pair, row, control, seeds) in zip(lines.to_dict("records"), expected, strict=True):
        mine, other = ([found[pair][name][seed] for seed in seeds] for name in (row, control))
        test = stats.ttest_rel(mine, other)
        low, high = test.confidence_interval(0.95)
        assert line["mean"] == pytest.approx(np.mean(mine) - np.mean(other)) and line["pairs"] == len(seeds)
        assert line["interval"] == pytest.approx((high - low) / 2) and line["p"] == pytest.approx(test.pvalue)
        p.append(test.pvalue)
    ranked = np.argsort(p)
    corrected = np.minimum(1, np.maximum.accumulate(np.sort(p) * np.arange(6, 0, -1)))
    np.testing.assert_allclose(lines["p_holm"].to_numpy()[ranked], corrected)
    assert lines["verdict"].tolist() == [verdict(m, w, q) for m, w, q in zip(lines["mean"], lines["interval"], lines["p_holm"], strict=True)]
    assert len(set(lines["verdict"])) > 1


def test_controls_stand_in_a_table_of_their_own():
    runs = frame(records(CONTROL_ACCURACY), "digits")
    lines, further = summary(runs, CONTROLLED), controls(runs, CONTROLLED)
    text = markdown(lines, CONTROLLED, further=further)
    main, _, rest = text.partition("| row | against its control | paired difference | seeds | verdict |")
    differences = [93.0 - 91.0, 93.9 - 92.1, 94.6 - 91.5]
    half = 4.303 * np.std(differences, ddof=1) / math.sqrt(3)
    assert f"| both | KD, longer | +{np.mean(differences):.2f} ± {half:.2f} | 3 |" in rest and "| one | KD, longer | +0.25 ± " in rest
    assert rest.count("\n| ") == 3 and "verdicts after Holm's correction for these 3." in rest and "- KD, longer: a control." in rest
    assert "| left out | – | not asked for | – |" in main and "against KD, over" in main
    # the table itself has its own family, as if there were no controls
    plain = CONTROLLED | {"rows": [{k: v for k, v in row.items() if k != "control"} for row in CONTROLLED["rows"]]}
    pd.testing.assert_frame_equal(lines, summary(runs, plain))
    assert "against its control" not in markdown(lines, CONTROLLED) and not len(controls(runs, plain))
    assert "against its control" not in markdown(lines, plain, further=controls(runs, plain))
    assert "against its control" not in markdown(lines, CONTROLLED, shown=False, further=further)
    both = pd.concat([further, further.assign(pair="else -> where")])
    assert "| else -> where | both | KD | +" in markdown(lines, CONTROLLED, further=both)


def test_judged_names_the_epochs_of_a_claim():
    line = {"verdict": "better", "epochs": 60.0, "baseline_epochs": 20.0}
    assert judged(line) == "better, 60 epochs against 20"
    assert judged(line | {"verdict": "worse", "epochs": 18.4}) == "worse, 18 epochs against 20"  # a mean over seeds
    for same in (20.0, 20.4, 19.6):
        assert judged(line | {"epochs": same}) == "better"
    for said in ("no difference shown", "not after correction", "no interval", ""):
        assert judged(line | {"verdict": said}) == said
    assert judged({"verdict": "", "epochs": math.nan, "baseline_epochs": math.nan}) == ""


def test_a_claim_over_more_epochs_says_so_in_its_table():
    runs = frame(records(ACCURACY), "digits")
    runs.loc[runs["row"] == "better", "epochs"] = 60
    text = markdown(summary(runs, TABLE), TABLE)
    (line,) = [line for line in text.splitlines() if line.startswith("| better |")]
    assert line.startswith("| better | 60 | 3 | 95.40 ± ") and "| better, 60 epochs against 20 |" in line
    assert text.count("epochs against") == 1 and "20 epochs each" not in text


def test_plus_minus():
    assert plus_minus(1.005, 0.5) == "1.00 ± 0.50" and plus_minus(1.0, 0.5, sign=True) == "+1.00 ± 0.50"
    assert plus_minus(-1.0, math.nan, sign=True) == "-1.00" and plus_minus(math.nan, 1.0) == "–"
    assert plus_minus(-0.001, 0.5, sign=True) == plus_minus(0.0, 0.5, sign=True) == "+0.00 ± 0.50" and plus_minus(-0.004, None) == "0.00"
    assert plus_minus(-0.006, math.nan) == "-0.01"


def test_records_file_round_trip(tmp_path):
    assert read_records(tmp_path) == []
    made = records({"KD": ACCURACY["KD"]})
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    assert read_records(tmp_path) == made
