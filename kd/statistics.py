"""What may be said about numbers: means with intervals, paired differences, Holm's correction, verdicts."""

import numpy as np
import pandas as pd
from scipy import stats


def interval(values, confidence=0.95):
    """(mean, half-width of the t-interval of the mean); the half-width is nan for fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    width = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(width)


def holm(p_values):
    """Holm's step-down correction: adjusted p-values in the order given; nan stays nan and is not counted."""
    p_values = np.asarray(p_values, dtype=float)
    adjusted, valid = np.full(len(p_values), np.nan), np.flatnonzero(~np.isnan(p_values))
    running = 0.0
    for rank, index in enumerate(valid[np.argsort(p_values[valid], kind="stable")]):
        running = max(running, min(1.0, (len(valid) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def paired(values, baseline):
    """Paired difference of two Series indexed by seed: (mean, half-width, pairs, two-sided p)."""
    both = pd.concat([values, baseline], axis=1, keys=["a", "b"]).dropna()
    difference = both["a"] - both["b"]
    if len(difference) < 2:
        return (
            (float(difference.mean()) if len(difference) else float("nan")),
            float("nan"),
            len(difference),
            float("nan"),
        )
    mean, width = interval(difference)
    if (
        width < 1e-9
    ):  # every pair differs alike: accuracies come in steps, so that says nothing of how much they would vary
        return (
            (mean, 0.0, len(difference), 1.0)
            if abs(mean) < 1e-9
            else (mean, float("nan"), len(difference), float("nan"))
        )
    return mean, width, len(difference), float(stats.ttest_1samp(difference, 0.0).pvalue)


def verdict(mean, width, p):
    """What may be said of a paired difference: nothing is claimed inside its interval or against Holm's correction."""
    if not np.isfinite(width):
        return "no interval"
    if abs(mean) <= width:
        return "no difference shown"
    if p > 0.05:
        return "not after correction"
    return "better" if mean > 0 else "worse"


def with_verdicts(lines, mean="mean", width="interval"):
    """The DataFrame `lines` and, for its column `p` as one family of comparisons, p_holm and verdict."""
    lines = lines.assign(p_holm=holm(lines["p"]))
    cells = zip(lines[mean], lines[width], lines["p_holm"], strict=True)
    return lines.assign(verdict=[verdict(m, w, p) if pd.notna(m) else "" for m, w, p in cells])
