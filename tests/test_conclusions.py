"""The combined study's sentences follow its numbers."""

import pandas as pd
import pytest
from made_up import additive, grid, made_up_costs

from kd.report import effects
from kd.report.conclusions import conclusions, coverage, listed
from kd.report.effects import name_of


def said(accuracy, expected, never=(), spent=None):
    """The conclusions, after looking for these pieces in them."""
    found = conclusions(accuracy, spent)
    text = " ".join(found)
    for piece in expected:
        assert piece in text, (piece, text)
    for piece in never:
        assert piece not in text, (piece, text)
    return found


def test_a_combination_wins():
    accuracy = grid(lambda c, k: additive(c, k) + 1.2 * (name_of(c, k) == "rco * (kd + kr)"))
    expected = (
        "32 other methods are compared with it, over six paired seeds.", "`rco * (kd + kr)`", "are demonstrably better than plain KD.",
        "The highest mean is that of `rco * (kd + kr)`", ", a demonstrable gain;", "as the highest of 32 it is probably overestimated.",
        "Averaged over the rest of the grid, adding `kd` to a method that lacks it raises the accuracy, `rco` and `kr` raise it, and ",
        " lower it.", "`rco * (kd + kr)` gains demonstrably more than the parts add up to.",
        "`rco * (kd + kr)`", "demonstrably better than plain KD and than each part.", "better than plain KD at no more than its cost.",
        "The best method, `rco * (kd + kr)`, costs 1.00 times as much training as plain KD.",
    )  # fmt: skip
    found = said(accuracy, expected, spent=made_up_costs(accuracy))
    assert found[-1] == "So combining methods pays here, for the combinations named."


def test_kd_wins():
    accuracy = grid(lambda c, k: 0.0 if name_of(c, k) == "kd" else -3.0)
    expected = (
        "None of them is demonstrably better.", "No method's mean is above plain KD's.", "are demonstrably worse.",
        "Nothing that costs no more than plain KD is demonstrably better than it.", "None is demonstrably better than both plain KD and each of its parts.",
    )  # fmt: skip
    found = said(accuracy, expected, ("combining methods pays", "demonstrably better than plain KD."), made_up_costs(accuracy))
    assert found[-1] == "So these numbers give no reason, in accuracy, to prefer anything in the grid to plain KD."


def test_nothing_differs():
    expected = (
        "None of them is demonstrably better. None is demonstrably worse. These seeds cannot tell whether any of the 32 differs from KD",
        "Averaged over the rest of the grid, no part changes the accuracy demonstrably.",
        "Taken two at a time, no parts demonstrably help or hinder each other.",
        "None of the 24 combinations gains demonstrably more than its parts add up to.",
    )
    assert said(grid(lambda c, k: 0.0, noise=1.0), expected)[-1].startswith("So these numbers give no reason")


def test_a_claims_verdict_counts_where_one_is_about_the_same_runs():
    """Both ways: kr is better by its own seeds, and iekd's claim (there is none) changes nothing."""
    accuracy = grid(lambda c, k: 2.0 * (name_of(c, k) in ("kr", "iekd")))
    gain = (accuracy["kr"] - accuracy["kd"]).mean()
    beyond = effects.beyond_the_sum(accuracy).set_index("name")["mean"]["rco * (kd + kr)"]
    lines = [("KR over KD", gain, 3.0, "cannot tell"), ("RCO and KR, more than the sum", beyond, 0.1, "supported")]
    judged = pd.DataFrame([(name, mean, mean, half, verdict) for name, mean, half, verdict in lines], columns=["claim", "pairs_mean", "mean", "half_width", "verdict"])
    alone, within = conclusions(accuracy), conclusions(accuracy, judged=judged)
    assert alone[1].startswith("Each is judged here within this grid and by its own seeds; of ") and "`kr`" in alone[1]
    assert "`iekd` and `kr` are demonstrably better than plain KD." in alone or "`kr` and `iekd` are demonstrably better than plain KD." in alone
    assert within[1] == "`iekd` is demonstrably better than plain KD."
    assert "`rco * (kd + kr)` gains demonstrably more than the parts add up to." in within
    other = judged.assign(pairs_mean=judged["pairs_mean"] + 1)  # other runs, of a paper's own recipe
    assert conclusions(accuracy, judged=other) == [*alone[:1], *alone[2:]]


def test_parts_that_help_and_hinder_each_other():
    """The names of an interaction become a sentence's two subjects."""
    accuracy = grid(lambda c, k: 3.0 * (c == "rco" and "kr" in k) - 3.0 * ("srm" in k and "iekd" in k))
    said(accuracy, ["`rco` and `kr` add more together than apart; ", "`srm` and `iekd` add less together than apart"], ["rco x kr"])


def test_a_single_method_wins():
    accuracy = grid(lambda c, k: 2.0 * (name_of(c, k) == "rco * kd"))
    found = said(accuracy, ["`rco * kd` is demonstrably better than plain KD."])
    assert found[-1] == "So a method pays here, but combining it with others adds nothing that these runs could show."


def test_only_averages_speak():
    accuracy = grid(lambda c, k: 0.6 * ("kr" in k), seeds=5, noise=0.3)
    found = said(accuracy, ["None of them is demonstrably better."])
    assert "only the averages speak for `kr`" in found[-1]


def test_averages_do_not_speak_for_kd_itself():
    """That KD improves what stands alone is no reason to prefer anything to plain KD."""
    accuracy = grid(lambda c, k: 2.0 * ("kd" in k))
    found = said(accuracy, ["Averaged over the rest of the grid, adding `kd` to a method that lacks it raises the accuracy."])
    assert found[-1].startswith("So these numbers give no reason")


@pytest.mark.parametrize("cells, sentences", [
    (["kd"], ["Plain KD reaches 93.36 %; no other methods are compared with it, over six paired seeds.", "That is too little to conclude anything."]),
    (["rco * kd"], ["Plain KD did not run in this study, so there is nothing to compare the other methods with."]),
])  # fmt: skip
def test_nothing_to_compare(cells, sentences):
    accuracy = grid(additive)[cells] if cells != ["kd"] else grid(additive)[cells] * 0 + 93.36
    assert conclusions(accuracy) == sentences


def test_one_seed_concludes_nothing():
    found = conclusions(grid(additive, seeds=1))
    assert len(found) == 2 and "too little" in found[1] and "over one paired seed." in found[0]


def test_a_corner_of_the_grid_is_named_as_such():
    accuracy = grid(additive)[["kd", "kd + srm", "rco * kd", "rco * (kd + srm)"]]
    expected = (
        "three other methods are compared", "Averaged over those parts of the grid that ran, `rco`",
        "with the part and without it: on 2 of 8 for `rco` and 2 of 12 for `srm`.",
        "For `pwkd`, `kr`, `iekd` and adding `kd` there are too few such pairs.",
        "The one combination does not gain demonstrably more than its parts add up to.",
    )  # fmt: skip
    said(accuracy, expected, ["the rest of the grid"])
    said(accuracy[["kd", "kd + srm"]], ["one other method is compared with it"], ["Averaged", "Taken two"])
    assert coverage(grid(additive)) == ""


def test_lists():
    assert listed(["a"]) == "`a`" and listed(["a", "b"]) == "`a` and `b`" and listed("abc") == "`a`, `b` and `c`"
    assert listed("abcdefgh", most=2) == "`a`, `b` and 6 more"
