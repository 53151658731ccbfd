"""Intervals, paired differences, Holm's correction and verdicts, against independent derivations."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kd.statistics import holm, interval, paired, verdict

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
        last = len(p) - 1 - ranked[::-1].index(value)  # ties share the largest of their ranks' values, the first's
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
