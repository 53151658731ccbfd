"""A study's tables: which rows they show under which parameters, and their sentences."""

import math

import numpy as np
import pandas as pd
from made_up import accuracy_kd_better, made_up_records
from scipy import stats

from kd.report import figures, readme, tables
from kd.study.records import frame

pytest_plugins = ["made_up_root"]


def test_the_main_table_of_a_stage_comes_first():
    names = tables.names()
    assert names[:3] == ["kd_main", "kd_temperature", "kr_main"] and names[-3:] == ["common", "combined", "lengths"]
    assert names.index("rco_headline") + 1 == names.index("rco_figure4") and len(names) == len(set(names))


def test_a_table_without_runs_of_its_own_is_not_on_the_page(asks):
    asks()
    runs = frame(made_up_records(accuracy_kd_better, "srm_imagenet", rows=["student alone", "KD"]), "p")
    assert len(tables.lines_of("srm_imagenet", runs)) == 2  # no other table shows these runs
    runs = pd.concat([runs, runs.assign(table="kd_main")])
    assert tables.display("srm_imagenet", runs).data == "" == tables.display("srm_imagenet", runs[:0]).data
    assert not len(tables.lines_of("srm_imagenet", runs)) and tables.conclusions("srm_imagenet", runs) is None
    assert figures.table_figure(tables.lines_of("srm_imagenet", runs)) is None
    # of two tables with the same runs the first keeps them
    runs = frame(made_up_records(accuracy_kd_better, "kd_main"), "p")
    runs = pd.concat([runs.assign(table="pwkd_stages"), runs.assign(table="pwkd_schedule")])
    assert len(tables.lines_of("pwkd_schedule", runs)) == 1 and not len(tables.lines_of("pwkd_stages", runs))
    # a comparison of rows that several tables show one by one is that comparison's only place
    runs = frame(made_up_records(accuracy_kd_better, "common", rows=["KD", "AT"]), "p")
    runs = pd.concat([runs[runs["row"] == "KD"].assign(table="kd_main"), runs[runs["row"] == "AT"].assign(table="iekd_main"), runs])
    assert len(tables.lines_of("common", runs)) == 2


def test_a_table_that_the_profile_asks_for_is_shown_though_an_earlier_one_has_its_runs(asks):
    runs = frame(made_up_records(accuracy_kd_better, "srm_imagenet", rows=["student alone", "KD"]), "p")
    runs = pd.concat([runs.assign(table="kd_main"), runs])
    for asked in ("all", ["KD"], ["student alone", "KD"], ["SRM"]):  # SRM is asked for and has not run yet
        asks(srm={"srm_imagenet": asked})
        text, lines = tables.render("srm_imagenet", runs)
        assert list(lines["row"]) == ["student alone", "KD"] and "| KD | 93.22 ± " in text and "| SRM |" not in text
        assert "not run here (ImageNet, ResNet-34 -> ResNet-18): SRM: 71.21 [1].\n\n[1] [viebboy/SRM README.md](https" in text
        assert tables.conclusions("srm_imagenet", runs).data.startswith("- student alone against KD: ")
    asks(srm="all")
    assert len(tables.lines_of("srm_imagenet", runs)) == 2
    for others in ({"srm": {"srm_imagenet": []}}, {"srm": {"srm_grid": "all"}}, {"kd": "all"}):
        asks(**others)
        text, lines = tables.render("srm_imagenet", runs)
        assert not len(lines) and text == ""
        assert len(tables.lines_of("kd_main", runs)) == 2  # the earlier one has them, asked for or not


def test_rows_that_the_profile_leaves_out_are_not_on_the_page(asks):
    asks(kr={"kr_main": ["student alone", "KD", "KR"]}, pwkd={"pwkd_schedule": ["KD", "cosine"]})
    runs = frame(made_up_records(accuracy_kd_better, "kr_main", rows=["student alone", "KD", "KR"]), "p")
    text = tables.display("kr_main", runs).data
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| row", "| student alone", "| KD", "| KR", "| row", "| KR",
    ]  # fmt: skip
    assert "\n- " not in text and "not run on" not in text and "nearest kin" not in text and "KR, neither" not in text
    assert "\n\nReported by the papers, not run here (CIFAR-100, " in text and "): FSP: 63.33 [1]; KR, ResNet-18, CIFAR-10: 90.65 [2]." in text
    assert "Test accuracy after the last epoch, on p: " in text
    assert list(tables.lines_of("kr_main", runs)["row"]) == ["student alone", "KD", "KR"]
    assert tables.conclusions("kr_main", runs).data.count("\n- ") == 1
    assert len(figures.table_figure(tables.lines_of("kr_main", runs)).axes[0].get_yticks()) == 2  # KD is the line at zero
    # without its baseline a table has accuracies and no differences
    runs = frame(made_up_records(accuracy_kd_better, "pwkd_schedule", rows=["KD", "cosine"]), "p")
    assert "| no cycle |" not in tables.display("pwkd_schedule", runs).data
    assert len(tables.lines_of("pwkd_schedule", runs)) == 2 and tables.conclusions("pwkd_schedule", runs) is None


def test_a_sentence_says_what_the_verdict_is():
    line = {"row": "A", "n": 3, "mean": 91.0, "interval": 0.5, "difference": 1.0, "difference_interval": 0.2, "pairs": 3.0}
    line |= {"epochs": 20.0, "baseline_epochs": 20.0}
    for verdict, meaning in (
        ("(higher)", "higher."),
        ("(lower)", "lower."),
        ("(open)", "the interval covers zero."),
        ("(no interval)", "one run, or every seed differs alike, so there is no interval."),
    ):
        assert tables.conclusion(line | {"verdict": verdict}) == f"A against KD: +1.00 ± 0.20 points over 3 paired seeds: {meaning}"
    longer = tables.conclusion(line | {"verdict": "(higher)", "epochs": 60.0, "pairs": 1.0}, "plain")
    assert longer == "A against plain: +1.00 ± 0.20 points over 1 paired seed: higher (60 epochs against 20)."
    assert tables.conclusion(line | {"difference": math.nan, "verdict": ""}) == "A: 91.00 ± 0.50 %, nothing to compare it with."


def test_controls_stand_below_their_table(asks):
    """In the reports and in README alike: the rows of rco_table7 against KD trained as long."""
    asks(rco="all")
    longer = {"KD": 91.0, "KD, 3 x epochs": 91.6, "KD, 3 cycles, 3 x epochs": 92.0, "EEI-3": 93.0}
    made = made_up_records(accuracy_kd_better, "rco_table7", rows=list(longer))
    for record in made:
        record["top1_last"] = longer[record["row"]] + 0.1 * record["run"]["seed"] + 0.02 * record["run"]["seed"] ** 2 * (record["row"] == "EEI-3")
    text = tables.display("rco_table7", frame(made, "digits")).data
    gaps = [np.array([0.0, 0.02, 0.08]) + gap for gap in (1.4, 1.0)]
    half = stats.t.ppf(0.975, 2) * np.std(gaps[0], ddof=1) / math.sqrt(3)
    for control, gap in zip(("KD, 3 x epochs", "KD, 3 cycles, 3 x epochs"), gaps, strict=True):
        assert f"| EEI-3 | {control} | +{gap.mean():.2f} ± {half:.2f} | 3 | (higher) |" in text
    assert text.index("paired by seed, against KD") < text.index("| row | against |")
    filled = readme.filled("<!-- table:rco_table7 --><!-- end -->", {"": frame(made, "digits")})
    assert f"| EEI-3 | KD, 3 x epochs | +{gaps[0].mean():.2f} ± {half:.2f} | 3 | (higher) |" in filled
