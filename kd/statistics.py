"""What may be said about numbers: means with intervals, paired differences, Holm's correction, verdicts."""

import numpy as np
import pandas as pd
import scipy  # which imports scipy.stats, a second, once it is asked for


def interval(values, confidence=0.95):
    """(mean, half-width of the t-interval of the mean); the half-width is nan for fewer than two values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    width = scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * scipy.stats.sem(values)
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
    return mean, width, len(difference), float(scipy.stats.ttest_1samp(difference, 0.0).pvalue)


def contrast_of_pairs(wide, weights):
    """A contrast of rows from the seeds that all of them have: (estimate, standard error, degrees of freedom, seeds).

    wide: DataFrame of accuracies, a row a seed, a column a row of a table. weights: {column: coefficient}, summing to 0.
    The standard error is nan for fewer than two seeds, and where every seed gives the same: accuracies come in steps, so
    that says nothing of how much they would vary.
    """
    values = sum(weight * wide[name] for name, weight in weights.items()).dropna()
    error = float(scipy.stats.sem(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), error if error > 1e-9 else float("nan"), len(values) - 1, len(values)


class Blocks:
    """Accuracy = row + seed + error, fitted by least squares to all rows at once, with one error for all of them.

    wide: DataFrame, a row a seed, a column a row of a table; nan where a row lacks a seed. alike: whether the rows' spreads
    may be taken for one (Levene's test, the medians' form, p > 0.05). Few seeds a row gain most from it.
    """

    def __init__(self, wide):
        self.rows, values = list(wide.columns), wide.to_numpy(float)
        seed, row = np.nonzero(~np.isnan(values))
        design = np.hstack([row[:, None] == np.arange(values.shape[1]), (seed[:, None] == np.arange(len(values)))[:, 1:]])
        design, observed = design.astype(float), values[seed, row]
        self.estimate, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
        residuals = observed - design @ self.estimate
        self.freedom = len(observed) - rank
        spread = (residuals**2).sum() / self.freedom if self.freedom else float("nan")
        self.covariance = spread * np.linalg.pinv(design.T @ design)
        # each seed's common part as the median of the rows: a mean would lend a wild row's spread to all the others
        common = wide.sub(wide.sub(wide.median()).median(axis=1), axis=0)
        groups = [group for _, column in common.items() if len(group := column.dropna()) > 1]
        self.alike = bool(self.freedom and len(groups) > 1 and scipy.stats.levene(*groups, center="median").pvalue > 0.05)

    def contrast(self, weights):
        """(estimate, standard error, degrees of freedom) of {row: coefficient}, summing to 0."""
        vector = np.zeros(len(self.estimate))
        for name, weight in weights.items():
            vector[self.rows.index(name)] = weight
        error = float(np.sqrt(max(vector @ self.covariance @ vector, 0.0)))
        return float(vector @ self.estimate), error if error > 1e-9 else float("nan"), self.freedom


def half_width(error, freedom, confidence=0.95):
    """Half of a t-interval of an estimate with that standard error; nan where there is none."""
    return float(scipy.stats.t.ppf(0.5 + confidence / 2, freedom) * error) if freedom > 0 else float("nan")


def two_sided_p(estimate, error, freedom):
    """Of the estimate being 0; nan without a standard error."""
    return float(2 * scipy.stats.t.sf(abs(estimate) / error, freedom)) if freedom > 0 and np.isfinite(error) else float("nan")


def equivalence_p(estimate, error, freedom, margin):
    """Of the truth lying outside (-margin, margin): the larger p of two one-sided tests. Small: nothing that matters is there."""
    if freedom <= 0 or not np.isfinite(error):
        return float("nan")
    return float(max(scipy.stats.t.sf((estimate + margin) / error, freedom), scipy.stats.t.sf((margin - estimate) / error, freedom)))


def at_least_p(estimate, error, freedom, margin):
    """Of the truth lying at or below -margin, a one-sided test. Small: it is no worse by as much as the margin."""
    return float(scipy.stats.t.sf((estimate + margin) / error, freedom)) if freedom > 0 and np.isfinite(error) else float("nan")


def seeds_needed(estimate, deviation, margin, tests, at_least=False, most=1000):
    """Seeds that would decide at the spread and the estimate seen, each of `tests` tests at 5 % over their number.

    Decide: the interval excludes zero, or lies inside (-margin, margin); at_least: or above -margin. deviation: of one
    seed's contrast. None: more than `most`.
    """
    room = margin + estimate if at_least else margin - abs(estimate)
    level = 0.05 / tests
    for count in range(2, most + 1):
        error = deviation / np.sqrt(count)
        shown = scipy.stats.t.ppf(1 - level / 2, count - 1) * error < abs(estimate)
        equal = scipy.stats.t.ppf(1 - level, count - 1) * error < room
        if shown or equal:
            return count
    return None


def verdict(mean, width, p):
    """What may be said of a paired difference: nothing is claimed inside its interval or against Holm's correction."""
    if not np.isfinite(width):
        return "no interval"
    if abs(mean) <= width:
        return "no difference shown"
    if p > 0.05:
        return "not after correction"
    return "better" if mean > 0 else "worse"


def explored(mean, width):
    """What an interval alone says of a difference that was not declared as a claim: exploratory, uncorrected, in brackets."""
    if not np.isfinite(mean):
        return ""
    if not np.isfinite(width):
        return "(no interval)"
    return "(open)" if abs(mean) <= width else "(higher)" if mean > 0 else "(lower)"


def with_verdicts(lines, mean="mean", width="interval"):
    """The DataFrame `lines` and, for its column `p` as one family of comparisons, p_holm and verdict."""
    lines = lines.assign(p_holm=holm(lines["p"]))
    cells = zip(lines[mean], lines[width], lines["p_holm"], strict=True)
    return lines.assign(verdict=[verdict(m, w, p) if pd.notna(m) else "" for m, w, p in cells])
