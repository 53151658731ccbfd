"""The combined study's effects against their definitions: contrasts computed independently, and scipy."""

import math

import numpy as np
import pandas as pd
import pytest
from made_up import accuracy_kd_better, additive, grid, made_up_records
from scipy import stats

from kd.errors import ConfigError
from kd.report import effects
from kd.statistics import holm
from kd.study.records import frame


def contrast(accuracy, sign):
    """Independent derivation: a weight for every cell from sign(curriculum, has kd, kr, srm, iekd), then one number a seed."""
    total = np.zeros(len(accuracy))
    for name, (curriculum, knowledge) in effects.cells().items():
        total += sign(curriculum, *[kind in knowledge for kind in ("kd", "kr", "srm", "iekd")]) * accuracy[name].to_numpy()
    return total


def line_of(family, name):
    return family[family["name"] == name].iloc[0]


def check_line(line, per_seed):
    assert line["mean"] == pytest.approx(per_seed.mean(), abs=1e-9) and line["pairs"] == len(per_seed)
    half = stats.t.ppf(0.975, len(per_seed) - 1) * per_seed.std(ddof=1) / math.sqrt(len(per_seed))
    assert line["interval"] == pytest.approx(half, rel=1e-9)
    assert line["p"] == pytest.approx(stats.ttest_1samp(per_seed, 0).pvalue, rel=1e-6)


def plus(flag):
    return 1 if flag else -1


def test_main_effects_against_contrasts():
    accuracy = grid(additive)
    main = effects.main_effects(accuracy)
    assert list(main["name"]) == ["rco", "pwkd", "kr", "srm", "iekd", "kd, added to kr, srm or iekd"]
    expected = {
        "rco": lambda c, kd, kr, srm, iekd: kd * {"rco": 1, "fixed": -1}.get(c, 0) / 8,
        "pwkd": lambda c, kd, kr, srm, iekd: kd * {"pwkd": 1, "fixed": -1}.get(c, 0) / 8,
        "kr": lambda c, kd, kr, srm, iekd: kd * plus(kr) / 12,
        "srm": lambda c, kd, kr, srm, iekd: kd * plus(srm) / 12,
        "iekd": lambda c, kd, kr, srm, iekd: kd * plus(iekd) / 12,
        "kd, added to kr, srm or iekd": lambda c, kd, kr, srm, iekd: (kr + srm + iekd == 1) * plus(kd) / 9,
    }
    for name, sign in expected.items():
        check_line(line_of(main, name), contrast(accuracy, sign))
    truth = {"rco": 1.0, "pwkd": -1.0, "kr": 0.5, "srm": -0.7, "iekd": 0.0, "kd, added to kr, srm or iekd": 2.0}
    for name, value in truth.items():
        assert line_of(main, name)["mean"] == pytest.approx(value, abs=0.1)
    assert dict(zip(main["name"], main["verdict"], strict=True)) == {
        "rco": "better", "pwkd": "worse", "kr": "better", "srm": "worse", "iekd": "no difference shown", "kd, added to kr, srm or iekd": "better",
    }  # fmt: skip
    np.testing.assert_allclose(main["p_holm"], holm(main["p"]))


def test_interactions_against_contrasts():
    accuracy = grid(lambda c, k: additive(c, k) + 1.5 * (c == "rco" and "srm" in k) - 0.8 * ("kr" in k and "iekd" in k))
    both = effects.interactions(accuracy)
    assert len(both) == 9 and "rco x pwkd" not in set(both["name"])
    check_line(line_of(both, "kr x iekd"), contrast(accuracy, lambda c, kd, kr, srm, iekd: kd * plus(kr) * plus(iekd) / 6))
    sign = {"rco": 1, "fixed": -1}
    check_line(line_of(both, "rco x srm"), contrast(accuracy, lambda c, kd, kr, srm, iekd: kd * sign.get(c, 0) * plus(srm) / 4))
    assert line_of(both, "rco x srm")["mean"] == pytest.approx(1.5, abs=0.2) and line_of(both, "rco x srm")["verdict"] == "better"
    assert line_of(both, "kr x iekd")["mean"] == pytest.approx(-0.8, abs=0.2) and line_of(both, "kr x iekd")["verdict"] == "worse"
    assert line_of(both, "pwkd x srm")["verdict"] not in ("better", "worse")


def test_parts():
    assert effects.parts_of("kd") == effects.parts_of("kd + kr") == effects.parts_of("rco * kd") == effects.parts_of("kr") == []
    assert effects.parts_of("rco * (kd + kr + srm)") == ["rco * kd", "kd + kr", "kd + srm"]
    assert effects.parts_of("pwkd * iekd") == ["pwkd * kd", "iekd"]
    assert all(part in effects.cells() for name in effects.cells() for part in effects.parts_of(name))


def test_chosen_brings_what_the_comparison_needs():
    assert effects.chosen([]) == []
    assert set(effects.chosen(["rco * (kd + srm)"])) == {"labels", "kd", "rco * kd", "kd + srm", "rco * (kd + srm)"}
    with pytest.raises(ConfigError, match="no method is called 'rco \\* \\(kd \\+ smr\\)'.*did you mean"):
        effects.chosen(["rco * (kd + smr)"])


def test_beyond_the_sum_and_beyond_each_part():
    special = "rco * (kd + kr)"
    accuracy = grid(lambda c, k: additive(c, k) + 1.2 * (effects.name_of(c, k) == special))
    total, each = effects.beyond_the_sum(accuracy), effects.beyond_each_part(accuracy)
    assert len(total) == len(each) == 3 * 8 - 6 + 2 * 3
    y = {name: accuracy[name].to_numpy() for name in accuracy}
    check_line(line_of(total, special), y[special] - y["rco * kd"] - y["kd + kr"] + y["kd"])
    name = "pwkd * (kd + kr + srm)"
    check_line(line_of(total, name), y[name] - y["pwkd * kd"] - y["kd + kr"] - y["kd + srm"] + 2 * y["kd"])
    assert set(total.loc[total["verdict"] == "better", "name"]) == {special}
    against = [y[special] - y["rco * kd"], y[special] - y["kd + kr"]]
    line = line_of(each, special)
    assert line["mean"] == pytest.approx(min(d.mean() for d in against))  # rco * kd is the stronger part
    assert line["p"] == pytest.approx(max(stats.ttest_1samp(d, 0).pvalue for d in against))
    assert line["verdict"] == "better" and line_of(each, "rco * (kd + srm)")["verdict"] == "worse"


def test_cells_that_did_not_run_are_left_out_not_guessed():
    accuracy = grid(additive)[["kd", "kd + srm", "rco * kd", "rco * (kd + srm)"]]
    y = {name: accuracy[name].to_numpy() for name in accuracy}
    main, both = effects.main_effects(accuracy), effects.interactions(accuracy)
    assert len(effects.gains(accuracy)) == 3 and list(main["name"]) == ["rco", "srm"] and list(both["name"]) == ["rco x srm"]
    check_line(line_of(main, "rco"), (y["rco * kd"] - y["kd"] + y["rco * (kd + srm)"] - y["kd + srm"]) / 2)
    check_line(line_of(both, "rco x srm"), y["rco * (kd + srm)"] - y["kd + srm"] - y["rco * kd"] + y["kd"])
    assert list(effects.beyond_the_sum(accuracy)["name"]) == ["rco * (kd + srm)"]
    assert not len(effects.main_effects(accuracy[["kd", "kd + srm"]]))  # one setting is no average
    assert not len(effects.interactions(accuracy[["kd", "rco * (kd + srm)"]]))
    hole = grid(additive)
    hole.loc[0, "rco * kd"] = np.nan  # a seed that is missing in one cell is missing in that cell's differences alone
    assert line_of(effects.gains(hole), "rco * kd")["pairs"] == 5 and line_of(effects.gains(hole), "pwkd * kd")["pairs"] == 6


def test_accuracies_from_runs():
    made = made_up_records(lambda method, seed: 80 + len(method) + seed, "combined", seeds=(1, 0))
    runs = pd.concat([frame(made, "digits"), frame(made_up_records(accuracy_kd_better), "digits")])
    accuracy = effects.accuracies(runs)
    assert list(accuracy) == list(effects.cells()) and len(effects.cells()) == 33 and accuracy.loc[1, "rco * (kd + srm)"] == 80 + 16 + 1
    with pytest.raises(ConfigError, match="no record of the combined study"):
        effects.accuracies(runs[runs["table"] == "kd_main"])


def test_the_grid_of_gains():
    accuracy = grid(lambda c, k: 3.0 * (effects.name_of(c, k) == "rco * (kd + srm)"))
    means, texts = effects.gain_grid(accuracy)
    assert means.shape == texts.shape == (11, 3) and list(means.columns) == ["fixed", "rco", "pwkd"] and list(means.index)[:2] == ["kd", "kd + kr"]
    assert means.loc["kd + srm", "rco"] == pytest.approx((accuracy["rco * (kd + srm)"] - accuracy["kd"]).mean())
    assert means.loc["kd", "fixed"] == 0 and texts.loc["kd", "fixed"] == "KD: 0"
    assert [text for text in texts.to_numpy().flat if text.endswith("*")] == [f"{means.loc['kd + srm', 'rco']:+.2f}*"]
    means, texts = effects.gain_grid(accuracy[["kd", "rco * kd", "kd + srm"]])  # of the cells that did not run nothing is said
    assert list(means.index) == ["kd", "kd + srm"] and list(means.columns) == ["fixed", "rco"]
    assert np.isnan(means.loc["kd + srm", "rco"]) and texts.loc["kd + srm", "rco"] == ""
