"""Claims and their verdicts: against scipy, by hand, and with every file of claims/."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kd.errors import ConfigError
from kd.report import claims, claims_page
from kd.report.claims import CONTRADICTED, OPEN, SUPPORTED
from kd.report.summary import summary
from kd.statistics import Blocks, at_least_p, equivalence_p, half_width, holm, seeds_needed, two_sided_p
from kd.study.tables import load_table

CLAIM = {"table": "kd_main", "contrast": {"KD": 1, "student alone": -1}, "matters": 0.5, "direction": "more", "effect": 1.6, "paper": "KD"}
AT_LEAST = CLAIM | {"direction": "at least"}
SEEDS = range(8)


def runs_of(accuracy, table="kd_main", pair="big -> small", profile="p"):
    """{row: accuracies by seed} as the DataFrame of runs of a table."""
    rows = [(row, seed, value) for row, values in accuracy.items() for seed, value in enumerate(values)]
    runs = pd.DataFrame(rows, columns=["row", "seed", "top1_last"])
    return runs.assign(table=table, pair=pair, profile=profile, epochs=20, key=[f"{row}-{seed}" for row, seed, _ in rows])


def noise(number, scale=0.2):
    return np.random.default_rng(number).normal(0, scale, len(SEEDS))


def test_every_file_of_claims_is_whole():
    found = claims.load_claims()
    assert {claim["paper"] for claim in found.values()} == {"KD", "KR", "SRM", "RCO", "IE-KD", "PWKD", "combined"}
    for name, claim in found.items():
        rows = {row["row"]: row for row in load_table(claim["table"])["rows"]}
        assert all("not_run" not in rows[row] for row in claim["contrast"]), name
        assert claim["says"].endswith(".") and claim["setting"] and claim["reason"]
    assert len(claims.comparisons()) == sum(len(claim["contrast"]) == 2 for claim in found.values())  # no two test the same


@pytest.mark.parametrize(
    "change, message",
    [
        ({"table": "kd_mian"}, r"^place: unknown table 'kd_mian' .did you mean 'kd_main'"),
        ({"contrast": {"KD": 1, "student alon": -1}}, r"^place: table kd_main has no row 'student alon' .did you mean"),
        ({"contrast": {"KD": 1, "student alone": 1}}, "^place: the coefficients sum to 2, and a contrast's to 0$"),
        ({"effect": 1.0}, "^place: a reported effect needs its tier and source$"),
        ({"name": "known"}, "^place: another claim has this name$"),
    ],
)
def test_a_claim_that_does_not_fit_is_named(change, message):
    values = {"name": "new", "says": "It.", "reason": "so", "matters": 1.0, "table": "kd_main", "contrast": CLAIM["contrast"]}
    with pytest.raises(ConfigError, match=message):
        claims.check(claims.Claim(**values | change), "place", {"known": None})


def test_by_pairs_against_scipy():
    """Rows of unlike spread: the claim's own seeds alone."""
    alone, taught = 90 + noise(1, 3.0), 91 + noise(2, 0.01)
    (line,) = claims.judge(runs_of({"KD": taught, "student alone": alone}), {"a": CLAIM}).to_dict("records")
    test = stats.ttest_rel(taught, alone)
    low, high = test.confidence_interval(0.95)
    assert line["pairs_mean"] == pytest.approx(np.mean(taught - alone)) and line["pairs_half_width"] == pytest.approx((high - low) / 2)
    # of two rows alone, blocks are pairs
    assert line["blocks_half_width"] == pytest.approx(line["pairs_half_width"]) and line["p"] == pytest.approx(test.pvalue)


def test_by_blocks_against_the_textbook():
    """Rows and seeds without interaction: MSE of (rows - 1)(seeds - 1) degrees of freedom, standard error sqrt(2 MSE / seeds)."""
    wide = pd.DataFrame({row: level + noise(0, 1.0) + noise(number) for number, (row, level) in enumerate({"a": 90, "b": 91, "c": 93}.items(), 1)})
    residuals = wide.sub(wide.mean(1), axis=0) - wide.mean() + wide.to_numpy().mean()
    spread, freedom = (residuals.to_numpy() ** 2).sum() / 14, 14
    blocks = Blocks(wide)
    estimate, error, found = blocks.contrast({"b": 1, "a": -1})
    assert blocks.alike and found == freedom and estimate == pytest.approx(wide["b"].mean() - wide["a"].mean())
    assert error == pytest.approx(math.sqrt(2 * spread / len(SEEDS)))
    # a seed that a row lacks takes away what it knew, and nothing else
    wide.loc[0, "c"] = np.nan
    estimate, error, found = Blocks(wide).contrast({"b": 1, "a": -1})
    assert found == freedom - 1 and estimate == pytest.approx(wide["b"].mean() - wide["a"].mean())


def test_unlike_spreads_are_seen():
    wide = pd.DataFrame({row: 90 + noise(number, scale) for number, (row, scale) in enumerate({"a": 0.1, "b": 0.1, "c": 8.0}.items())})
    assert not Blocks(wide).alike and Blocks(wide.assign(c=90 + noise(5, 0.1))).alike


def test_the_two_tests_against_scipy():
    estimate, error, freedom, margin = 0.1, 0.2, 7, 0.5
    t = stats.t(freedom, estimate, error)  # of the estimate, were the truth the estimate
    assert equivalence_p(estimate, error, freedom, margin) == pytest.approx(max(t.cdf(-margin), t.sf(margin)))
    assert at_least_p(estimate, error, freedom, margin) == pytest.approx(t.cdf(-margin))
    assert two_sided_p(estimate, error, freedom) == pytest.approx(2 * t.cdf(0))
    assert half_width(error, freedom) == pytest.approx((t.ppf(0.975) - t.ppf(0.025)) / 2)
    for test in (two_sided_p, lambda *a: equivalence_p(*a, margin), lambda *a: at_least_p(*a, margin)):
        assert math.isnan(test(0.1, math.nan, 7)) and math.isnan(test(0.1, 0.2, 0))


@pytest.mark.parametrize(
    "claim, effect, spread, expected",
    [
        (CLAIM, 1.0, 0.2, SUPPORTED),
        (CLAIM, -1.0, 0.2, CONTRADICTED),
        (CLAIM, 0.0, 0.1, CONTRADICTED),  # nothing that matters is there
        (CLAIM, 0.0, 2.0, OPEN),  # absence of evidence
        (AT_LEAST, 0.0, 0.1, SUPPORTED),
        (AT_LEAST, 1.0, 0.2, SUPPORTED),
        (AT_LEAST, -1.0, 0.2, CONTRADICTED),
        (AT_LEAST, 0.0, 2.0, OPEN),
    ],
)
def test_verdicts(claim, effect, spread, expected):
    wobble = np.array([1, -1, 1, -1, 1, -1, 1, -1]) * spread
    runs = runs_of({"student alone": 90 + noise(3), "KD": 90 + noise(3) + effect + wobble})
    (line,) = claims.judge(runs, {"a": claim}).to_dict("records")
    assert line["verdict"] == expected and line["mean"] == pytest.approx(effect)
    assert (line["seeds_needed"] > len(SEEDS)) == (expected == OPEN)


def test_a_family_is_corrected_together():
    """The same difference is a verdict alone and none among many claims of which nothing else is true."""
    wobble = np.array([1, -1, 1, -1, 1, -1, 1, -1])
    accuracy = {"student alone": 90 + 0 * wobble, "KD": 90.9 + wobble}
    alone = claims.judge(runs_of(accuracy), {"a": CLAIM})
    assert alone["verdict"].tolist() == [SUPPORTED]
    others = {f"b{n}": CLAIM | {"table": "kd_temperature", "contrast": {"T = 2": 1, "T = 8": -1}} for n in range(9)}
    runs = pd.concat([runs_of(accuracy), runs_of({"T = 2": 90 + wobble, "T = 8": 90 - wobble}, "kd_temperature")])
    lines = claims.judge(runs, {"a": CLAIM, **others})
    assert lines["verdict"].tolist()[0] == OPEN and len(lines) == 10
    np.testing.assert_allclose(lines["p_holm"], holm(lines["p"]))
    np.testing.assert_allclose(lines["p_equal_holm"], holm(lines["p_equal"]))


def test_a_claim_is_tested_where_its_rows_ran():
    runs = runs_of({"KD": 91 + noise(1)})
    assert not len(claims.judge(runs)) and not len(claims.judge(runs[:0]))
    two = pd.concat([runs_of({"KD": 91 + noise(1), "student alone": 90 + noise(2)}, pair=pair) for pair in ("a -> b", "c -> d")])
    assert claims.judge(two)["pair"].tolist() == ["a -> b", "c -> d"]


def test_seeds_needed_decide():
    """At the number said the interval excludes zero, with one seed fewer it does not; corrected for the number of tests."""
    for estimate, deviation, tests in ((0.4, 1.0, 1), (0.4, 1.0, 20), (2.0, 1.0, 5)):
        count = seeds_needed(estimate, deviation, 0.01, tests)
        widths = [stats.t.ppf(1 - 0.025 / tests, n - 1) * deviation / math.sqrt(n) for n in (count - 1, count) if n > 1]
        assert widths[-1] < estimate and (count == 2 or widths[0] >= estimate)
    assert seeds_needed(0.5, 3.0, 0.5, 1, at_least=True) < seeds_needed(0.5, 3.0, 0.5, 1)  # it has room on one side alone
    assert seeds_needed(0.0, 0.5, 0.5, 1) is not None and seeds_needed(0.5, 10.0, 0.5, 1) is None


def test_a_comparison_is_known_by_what_it_trains():
    """KD and the student alone are one claim in every table, in either order; the same words of other runs are none."""
    for name, row, other in (("kd_main", "KD", "student alone"), ("kr_main", "student alone", "KD"), ("combined", "kd", "student alone")):
        rows = {r["row"]: r for r in load_table(name)["rows"]}
        assert claims.claim_of(load_table(name), rows[row], rows[other]) == "KD over labels"
    table = load_table("srm_few_shot_10")
    rows = {r["row"]: r for r in table["rows"]}
    assert claims.claim_of(table, rows["KD"], rows["student alone"]) == ""


def test_each_claim_of_two_rows_is_a_line_of_its_table():
    for claim in claims.load_claims().values():
        if len(claim["contrast"]) == 2:
            row, other = sorted(claim["contrast"], key=claim["contrast"].get, reverse=True)
            table = load_table(claim["table"])
            found = next(one for one in table["rows"] if one["row"] == row)
            assert other in (table["baseline"], *found["control"], *found["rival"]), claim["name"]


def test_tables_hold_the_familys_verdict():
    runs = runs_of({"KD": 92 + noise(1), "student alone": 90 + noise(2)})
    lines = summary(runs, load_table("kd_main"))
    from kd.report.markdown import markdown

    text = markdown(lines, load_table("kd_main"))
    assert "| (higher)<!-- KD over labels, of KD-0 student alone-0 --> |" in text
    judged = claims.judge(runs)
    pooled = f"| KD over labels: **supported**, pooled ± {judged['blocks_half_width'][0]:.2f} |"
    said = claims.decided(text, judged)
    assert judged["by"].tolist() == ["blocks"] and pooled in said and claims.POOLED in said
    judged = judged.assign(by="pairs")
    said = claims.decided(text, judged)
    assert "| KD over labels: **supported** |" in said and claims.IN_BOLD in said and claims.POOLED not in said
    open_still = judged.assign(verdict=claims.OPEN)
    assert "| KD over labels: **cannot tell** (higher) |" in claims.decided(text, open_still)
    assert "| KD over labels: **cannot tell** |" in claims.decided(text.replace("(higher)<", "(open)<"), open_still)
    # the same rows under another recipe, as a paper's own table may have them, are another comparison
    other = claims.judge(runs.assign(key="r-" + runs["key"]))
    assert other["verdict"].tolist() == judged["verdict"].tolist() and claims.decided(text, other) == text


def test_a_verdict_that_hangs_on_the_pooled_error_is_marked():
    """Three seeds whose difference scatters: the rows' common error decides, the pairs alone do not."""
    rows = {"KD": [92.0, 92.9, 92.3], "student alone": [89.6, 90.1, 91.2], "KR": [91.0, 91.7, 91.8], "KR + KD": [92.0, 92.7, 92.8]}
    runs = pd.concat([runs_of({row: rows[row] for row in ("KD", "student alone")}), runs_of(rows, "kr_main")])
    known = claims.load_claims()
    line = claims.judge(runs).iloc[0]
    assert (line["by"], line["verdict"], line["pairs_verdict"]) == ("blocks", SUPPORTED, OPEN)
    alone = stats.ttest_rel(rows["KD"], rows["student alone"])
    assert alone.pvalue > 0.05
    said = claims_page.page(known, {"p": claims.judge(runs)})
    assert f"± {line['half_width']:.2f} ✓ pooled |" in said and "**supported**; by pairs alone *cannot tell* |" in said
    assert claims_page.in_words(line).endswith("(blocks): supported; by pairs alone cannot tell")
    agreed = claims.judge(runs).assign(pairs_verdict=SUPPORTED)
    assert " ✓ |" in claims_page.page(known, {"p": agreed}) and "✓ pooled" not in claims_page.page(known, {"p": agreed})


def test_sums_of_a_contrast_stand_in_parentheses():
    said = {name: claims_page.contrast_in_words(claim) for name, claim in claims.load_claims().items()}
    assert said["KR over KD"] == "KR - KD" and said["KR adds to KD"] == "(KR + KD) - KD"
    assert said["RCO and KR, more than the sum"] == "rco * (kd + kr) - rco * kd - (kd + kr) + kd"


def test_the_page_says_what_the_lines_say(monkeypatch):
    found = {"p": claims.judge(runs_of({"KD": 92 + noise(1), "student alone": 90 + noise(2)}))}
    known = claims.load_claims()
    text = claims_page.page(known, found)
    line = found["p"].iloc[0]
    cell = f"{line['mean']:+.2f} ± {line['half_width']:.2f} ✓"
    assert f"| [KD over labels](#kd-over-labels) | +1.60 | {cell} |" in text and "| p | big -> small | 8 | 1 | 0 | 0 |" in text
    assert text.count("\n### ") == len(known) and "| [KR over KD](#kr-over-kd) | not verified | not run |" in text
    for name in known:
        assert f"](#{claims_page.anchor(name)})" in text
    picture = claims_page.draw(known, found)
    assert picture.startswith("<?xml") and claims_page.draw(known, found) == picture  # no clock, no random names
