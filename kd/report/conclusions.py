"""The combined study in words: sentences computed from its numbers alone."""

from functools import cache

import pandas as pd

from kd.report import effects
from kd.report.claims import CONTRADICTED, SUPPORTED, claim_of, load_claims
from kd.report.findings import words
from kd.report.markdown import plus_minus
from kd.study.tables import load_table


def conclusions(accuracy, spent=None, judged=None):
    """The study's conclusions, a list of sentences.

    accuracy: of `effects.accuracies`. spent: of kd.report.cost.costs, or None. judged: of kd.report.claims.judge, or None; where
    it has a claim about a comparison, that claim's interval and verdict count. "Demonstrably" better and worse mean that the
    interval excludes zero, also after Holm's correction within the family of comparisons.
    """
    if "kd" not in accuracy:
        return ["Plain KD did not run in this study, so there is nothing to compare the other methods with."]
    gains = claimed(effects.gains(accuracy), judged, claims_on_gains())
    better, worse = with_verdict(gains, "better"), with_verdict(gains, "worse")
    compared = f"{words(len(gains))} other method{' is' if len(gains) == 1 else 's are'} compared with it"
    opening = f"Plain KD reaches {accuracy['kd'].mean():.2f} %; {compared}, over {counted(len(accuracy), 'paired seed')}."
    if len(accuracy) < 2 or not len(gains):
        return [opening, "That is too little to conclude anything."]
    stronger = [name for name in with_verdict(effects.beyond_each_part(accuracy), "better") if name in better]
    sentences = [
        opening,
        in_the_tables(gains) if judged is None else "",
        f"{said_of(better)} demonstrably better than plain KD." if better else "None of them is demonstrably better.",
        f"{said_of(worse)} demonstrably worse." if worse else "None is demonstrably worse.",
        undecided(gains),
        highest_mean(gains),
        averages(accuracy),
        two_at_a_time(accuracy),
        coverage(accuracy),
        *sums(accuracy, stronger, judged),
        *costs(better, spent),
        advice(accuracy, better, stronger),
    ]
    return [sentence for sentence in sentences if sentence]


@cache
def claims_on_gains():
    """{cell of the grid: the claim that compares it with plain KD, or ""}."""
    table = load_table("combined")
    rows = {row["row"]: row for row in table["rows"]}
    return {name: claim_of(table, rows[name], rows["kd"]) for name in effects.cells()}


@cache
def claims_on_sums():
    """{cell of the grid: the claim that it gains more than its parts add up to}."""
    contrasts = {frozenset(claim["contrast"].items()): name for name, claim in load_claims().items() if claim["table"] == "combined"}
    parts = {name: effects.parts_of(name) for name in effects.cells()}
    sums = {name: frozenset({name: 1, **dict.fromkeys(some, -1), "kd": len(some) - 1}.items()) for name, some in parts.items() if some}
    return {name: contrasts[contrast] for name, contrast in sums.items() if contrast in contrasts}


def claimed(family, judged, claims):
    """The family's comparisons, with interval and verdict of the whole study for those that test a claim on the same runs.

    claims: of `claims_on_gains` or `claims_on_sums`.
    """
    if judged is None:
        return family
    known, lines = {line["claim"]: line for line in judged.to_dict("records")}, family.to_dict("records")
    for line in lines:
        claim = known.get(claims.get(line["name"]))
        if claim and abs(claim["pairs_mean"] - line["mean"]) < 1e-6:
            line |= {"mean": claim["mean"], "interval": claim["half_width"]}
            before = "not after correction" if abs(line["mean"]) > line["interval"] else "no difference shown"
            sign = {SUPPORTED: "better", CONTRADICTED: "worse" if line["mean"] < 0 else before}
            line["verdict"] = sign.get(claim["verdict"], before)
    return pd.DataFrame(lines, columns=family.columns)


def in_the_tables(gains):
    """That claims on these comparisons are judged elsewhere; "" where there is none."""
    names = [name for name in gains["name"] if claims_on_gains().get(name)]
    return f"Each is judged here within this grid and by its own seeds; of {listed(names)} the verdicts on the papers' claims, in tables.md, count." if names else ""


def undecided(gains):
    """How many methods are neither better nor worse than KD, and which of them only the correction leaves undecided."""
    rest = gains[~gains["verdict"].isin(["better", "worse"])]
    if not len(rest):
        return ""
    which = f"any of the {words(len(gains))} differs" if len(rest) == len(gains) else f"the other {words(len(rest))} differ{'s' if len(rest) == 1 else ''}"
    text = f"These seeds cannot tell whether {which} from KD"
    before = with_verdict(gains, "not after correction")
    return f"{text}; without Holm's correction {listed(before)} would have counted as different." if before else f"{text}."


def highest_mean(gains):
    top = gains.loc[gains["mean"].idxmax()]
    if top["mean"] <= 0:
        return "No method's mean is above plain KD's."
    kinds = {"better": "a demonstrable gain", "not after correction": "which is no demonstrable gain after correction"}
    gap = plus_minus(top["mean"], top["interval"], sign=True)
    kind = kinds.get(top["verdict"], "which is no demonstrable gain")
    highest = f"The highest mean is that of `{top['name']}`, {gap} points over KD, {kind}"
    return f"{highest}; as the highest of {words(len(gains))} it is probably overestimated."


def averages(accuracy):
    """What the main effects say."""
    family = effects.main_effects(accuracy)
    if not len(family):
        return ""
    clauses = []
    for verdict, plural, singular in (("better", "raise", "raises"), ("worse", "lower", "lowers")):
        found = with_verdict(family, verdict)
        if effects.ADDED_KD in found:
            clauses.append(f"adding `kd` to a method that lacks it {singular} the accuracy")
        if parts := [name for name in found if name != effects.ADDED_KD]:
            clauses.append(f"{listed(parts)} {plural if len(parts) > 1 else singular} {'it' if clauses else 'the accuracy'}")
    over = "those parts of the grid that ran" if coverage(accuracy) else "the rest of the grid"
    return f"Averaged over {over}, {joined(clauses, ', and ') or 'no part changes the accuracy demonstrably'}."


def two_at_a_time(accuracy):
    """What the interactions say."""
    family = effects.interactions(accuracy)
    if not len(family):
        return ""
    clauses = []
    for verdict, how in (("better", "more"), ("worse", "less")):
        clauses += [f"{listed(name.split(' x '))} add {how} together than apart" for name in with_verdict(family, verdict)]
    return f"Taken two at a time, {'; '.join(clauses) or 'no parts demonstrably help or hinder each other'}."


def coverage(accuracy):
    """On how much of the grid each average rests, and what cannot be estimated; "" where all of the grid ran."""
    counts = effects.estimated(accuracy)
    some = [f"{ran} of {settings} for {called(name)}" for name, (ran, settings) in counts.items() if 0 < ran < settings]
    none = [called(name) for name, (ran, _) in counts.items() if not ran]
    sentences = []
    if some:
        sentences.append(f"These averages rest on some of the grid's pairs of methods, with the part and without it: on {joined(some)}.")
    if none:
        sentences.append(f"For {joined(none)} there are too few such pairs.")
    return " ".join(sentences)


def called(factor):
    """A factor's name within a sentence."""
    return "adding `kd`" if factor == effects.ADDED_KD else f"`{factor}`"


def sums(accuracy, stronger, judged=None):
    """Combinations against the sum of their parts and each part. stronger: those better than each part and KD."""
    family = claimed(effects.beyond_the_sum(accuracy), judged, claims_on_sums())
    if not len(family):
        return []
    more, less = with_verdict(family, "better"), with_verdict(family, "worse")
    none = "The one combination does not gain" if len(family) == 1 else f"None of the {words(len(family))} combinations gains"
    return [
        f"{listed(more)} {'gain' if len(more) > 1 else 'gains'} demonstrably more than the parts add up to."
        if more
        else f"{none} demonstrably more than its parts add up to.",
        f"{listed(less)} {'gain' if len(less) > 1 else 'gains'} demonstrably less than the parts add up to." if less else "",
        f"{said_of(stronger)} demonstrably better than plain KD and than each part."
        if stronger
        else f"{'It is not' if len(family) == 1 else 'None is'} demonstrably better than both plain KD and each of its parts.",
    ]


def costs(better, spent):
    """Which of the better methods cost no more than KD, and what the best one costs."""
    if spent is None:
        return []
    cost = spent.set_index("name")["cost"]
    cheap = [name for name in better if cost[name] <= 1 + 1e-9]
    return [
        f"{said_of(cheap)} better than plain KD at no more than its cost."
        if cheap
        else "Nothing that costs no more than plain KD is demonstrably better than it.",
        f"The best method, `{better[0]}`, costs {cost[better[0]]:.2f} times as much training as plain KD." if better else "",
    ]


def advice(accuracy, better, stronger):
    """The last sentence: what to do."""
    if stronger:
        return "So combining methods pays here, for the combinations named."
    if better:
        return "So a method pays here, but combining it with others adds nothing that these runs could show."
    if raising := [name for name in with_verdict(effects.main_effects(accuracy), "better") if name != effects.ADDED_KD]:
        alone = "So no single method is demonstrably better than plain KD with these seeds"
        return f"{alone}; only the averages speak for {listed(raising)}."
    return "So these numbers give no reason, in accuracy, to prefer anything in the grid to plain KD."


def with_verdict(family, verdict):
    """The names of a family's comparisons with that verdict, the largest difference first."""
    lines = family[family["verdict"] == verdict]
    return list(lines.loc[lines["mean"].abs().sort_values(ascending=False, kind="stable").index, "name"])


def said_of(names):
    """The names with the verb: "`kr` is", "`kr` and `srm` are"."""
    return f"{listed(names)} {'are' if len(names) > 1 else 'is'}"


def listed(names, most=6):
    """ "`kr`, `srm` and `iekd`"; of more than `most` names the first, and how many more there are."""
    quoted = [f"`{name}`" for name in names]
    return joined([*quoted[:most], f"{len(quoted) - most} more"] if len(quoted) > most else quoted)


def joined(phrases, last=" and "):
    """Phrases as an enumeration: "a, b and c"; "" for none."""
    return last.join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]]))


def counted(number, noun):
    return f"{words(number)} {noun}{'' if number == 1 else 's'}"
