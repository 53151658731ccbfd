"""The combined study's sentences follow its numbers."""

import pytest
from made_up import additive, grid, made_up_costs

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
        "32 methods, over 6 paired seeds.", "Better than plain KD: `rco * (kd + kr)`", "The highest mean is that of `rco * (kd + kr)`", "a demonstrable gain;",
        "On average over everything else, ", "`rco` and `kr` raise the accuracy", "lower it", "More than the sum of their parts: `rco * (kd + kr)`.",
        "Better than each of their parts and than KD: `rco * (kd + kr)`", "At no more than KD's cost, better than KD: `rco * (kd + kr)`", "costs 1.00 times KD's training",
    )  # fmt: skip
    found = said(accuracy, expected, spent=made_up_costs(accuracy))
    assert found[-1] == "So combining pays here, for the combinations named."


def test_kd_wins():
    accuracy = grid(lambda c, k: 0.0 if name_of(c, k) == "kd" else -3.0)
    expected = (
        "None is demonstrably better than plain KD.", "Plain KD itself has the highest mean", "Nothing that costs no more than KD is demonstrably better than it.",
        "None is demonstrably better than each of its parts and than KD.", "Worse: ",
    )  # fmt: skip
    found = said(accuracy, expected, ("combining pays", "Better than plain KD:"), made_up_costs(accuracy))
    assert found[-1] == "So with these seeds there is no reason to prefer anything here to plain KD."


def test_nothing_differs():
    expected = (
        "None is demonstrably better than plain KD. None is demonstrably worse. For all 32 no difference is shown", "no factor changes the accuracy",
        "no two parts demonstrably help or hinder", "None of the 24 combinations is demonstrably more than the sum of its parts.",
    )  # fmt: skip
    assert said(grid(lambda c, k: 0.0, noise=1.0), expected)[-1].startswith("So with these seeds there is no reason")


def test_a_single_method_wins():
    accuracy = grid(lambda c, k: 2.0 * (name_of(c, k) == "rco * kd"))
    assert said(accuracy, ["Better than plain KD: `rco * kd`."])[-1].startswith("So a method pays here, but combining adds nothing")


def test_only_averages_speak():
    accuracy = grid(lambda c, k: 0.6 * ("kr" in k), seeds=5, noise=0.3)
    found = said(accuracy, ["None is demonstrably better than plain KD."])
    assert "only averages over the grid speak for `kr`" in found[-1]


def test_averages_do_not_speak_for_kd_itself():
    """That KD improves what stands alone is no reason to prefer anything to plain KD."""
    accuracy = grid(lambda c, k: 2.0 * ("kd" in k))
    found = said(accuracy, ["On average over everything else, `kd, added to another alone` raises the accuracy."])
    assert found[-1] == "So with these seeds there is no reason to prefer anything here to plain KD."


@pytest.mark.parametrize("cells, sentences", [
    (["kd"], ["Compared with plain KD (93.36 %): no methods, over 6 paired seeds.", "That is too little to conclude anything."]),
    (["rco * kd"], ["Plain KD did not run in this study, so that there is nothing to compare with."]),
])  # fmt: skip
def test_nothing_to_compare(cells, sentences):
    accuracy = grid(additive)[cells] if cells != ["kd"] else grid(additive)[cells] * 0 + 93.36
    assert conclusions(accuracy) == sentences


def test_one_seed_concludes_nothing():
    found = conclusions(grid(additive, seeds=1))
    assert len(found) == 2 and "too little" in found[1]


def test_a_corner_of_the_grid_is_named_as_such():
    accuracy = grid(additive)[["kd", "kd + srm", "rco * kd", "rco * (kd + srm)"]]
    expected = (
        "3 methods, over", "On average over the settings that ran, `rco`", "averaged over: `rco` 2 of 8, `srm` 2 of 12.",
        "Not estimated, because too little of the grid ran: `pwkd`, `kr`, `iekd` and `kd, added to another alone`.",
    )  # fmt: skip
    said(accuracy, expected, ["On average over everything else"])
    said(accuracy[["kd", "kd + srm"]], [], ["On average", "Two at a time"])
    assert coverage(grid(additive)) == ""


def test_lists():
    assert listed(["a"]) == "`a`" and listed(["a", "b"]) == "`a` and `b`" and listed("abc") == "`a`, `b` and `c`"
    assert listed("abcdefgh", most=2) == "`a`, `b` and 6 more"
