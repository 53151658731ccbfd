"""What the papers claim, and what our studies say of it: supported, contradicted, or cannot tell.

claims/PAPER.yaml has the claims, declared before the runs: which rows of which table test one, and the smallest effect that matters.
They are the primary comparisons, one family in every study; all other comparisons are exploratory.
"""

import re
from functools import cache
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from annotated_types import MinLen

from kd.errors import ConfigError, Positive, Section, nearest, validated
from kd.statistics import (
    Blocks,
    at_least_p,
    contrast_of_pairs,
    equivalence_p,
    half_width,
    holm,
    seeds_needed,
    two_sided_p,
)
from kd.study.paths import FILES
from kd.study.tables import check_tables, load_table
from kd.study.yaml_files import read_yaml

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "cannot tell"
LINE = [
    "profile", "pair", "claim", "paper", "runs", "seeds", "epochs", "control_epochs", "by", "mean", "half_width",
    "pairs_mean", "pairs_half_width", "blocks_mean", "blocks_half_width", "direction", "matters", "effect", "p", "p_equal",
    "pairs_p", "pairs_p_equal", "deviation",
]  # fmt: skip


class Claim(Section):
    """A claim: what it says, which rows test it, what its paper reports, and from which difference on it would matter."""

    name: str
    says: str
    table: str
    contrast: Annotated[dict[str, float], MinLen(2)]  # {row of the table: coefficient}, summing to 0: the effect, in points of top-1
    direction: Literal["more", "at least"] = "more"  # than 0; or no less than 0 by as much as matters
    effect: float | None = None  # what is reported, in points; null: not verified
    setting: str = ""  # of which data, pair and length that is
    tier: Literal["A", "B", "C"] | None = None
    source: str = ""
    matters: Positive  # the smallest effect that matters, in points
    reason: str  # for that


class ClaimsOfPaper(Section):
    """A file of claims/."""

    paper: str
    claims: Annotated[list[Claim], MinLen(1)]


def load_claims():
    """{name: its values, with the paper} of all claims, by paper as the methods are taught. ConfigError for what does not fit."""
    order, found = ("kd", "kr", "srm", "rco", "iekd", "pwkd", "combined"), {}
    for path in (FILES / "claims" / f"{stem}.yaml" for stem in order):
        place = path.relative_to(FILES).as_posix()
        try:
            values = read_yaml(path, place)
        except FileNotFoundError:
            continue
        for claim in validated(ClaimsOfPaper, values, place).claims:
            check(claim, f"{place}, {claim.name!r}", found)
            found[claim.name] = claim.model_dump() | {"paper": values["paper"]}
    return found


def check(claim, place, known):
    """ConfigError unless a claim's rows stand in its table, its coefficients sum to 0, and its name is its own."""
    if claim.name in known:
        raise ConfigError(f"{place}: another claim has this name")
    check_tables([claim.table], f"{place}: ")
    rows = [row["row"] for row in load_table(claim.table)["rows"]]
    for row in claim.contrast:
        if row not in rows:
            raise ConfigError(f"{place}: table {claim.table} has no row {row!r}{nearest(row, rows)}")
    if abs(sum(claim.contrast.values())) > 1e-9:
        raise ConfigError(f"{place}: the coefficients sum to {sum(claim.contrast.values()):g}, and a contrast's to 0")
    if (claim.effect is None) != (claim.tier is None):
        raise ConfigError(f"{place}: a reported effect needs its tier and source")


def merged(runs):
    """{(table, row): the first (table, row) with the same runs}: rows of one study that are one in different tables."""
    seen, names = {}, {}
    for name, group in runs.groupby(["table", "row"], sort=False):
        names[name] = seen.setdefault(frozenset(group["key"]), name)
    return names


def judge(runs, claims=None):
    """A line a claim and pair that a study's runs can test, in the claims' order: a DataFrame with

    profile, pair, claim, paper, runs (`first_runs`), seeds, epochs, control_epochs: of the rows with positive and with negative coefficients.
    mean, half_width (95 %), by ("blocks" or "pairs"); pairs_mean, pairs_half_width, blocks_mean, blocks_half_width: both.
    pairs_verdict: what it would be by pairs alone, in all claims: another one hangs on the pooled error.
    matters; p of no difference and of a difference that matters (p_equal; at least: of being that much worse), Holm's for each.
    verdict, seeds_needed (to decide a "cannot tell", 0 for none, nan for more than 1,000); effect: what is reported.
    """
    claims, lines = claims or load_claims(), []
    for pair in runs["pair"].unique():
        lines += lines_of(runs[runs["pair"] == pair], claims)
    return with_verdicts(pd.DataFrame(lines, columns=LINE))


def lines_of(runs, claims):
    """The lines of `judge` for one pair, without what hangs on the whole family."""
    names = merged(runs)
    tested = {
        name: claim for name, claim in claims.items() if all((claim["table"], row) in names for row in claim["contrast"])
    }
    used = dict.fromkeys(names[claim["table"], row] for claim in tested.values() for row in claim["contrast"])
    if not used:
        return []
    mine = {name: runs[(runs["table"] == name[0]) & (runs["row"] == name[1])] for name in used}
    wide = pd.DataFrame({name: group.set_index("seed")["top1_last"] for name, group in mine.items()})
    blocks, epochs = Blocks(wide), runs.groupby(["table", "row"])["epochs"].mean()
    lines = []
    for name, claim in tested.items():
        weights = {names[claim["table"], row]: weight for row, weight in claim["contrast"].items()}
        mean, error, freedom, seeds = contrast_of_pairs(wide, weights)
        line = {"profile": runs["profile"].iloc[0], "pair": runs["pair"].iloc[0], "claim": name, "paper": claim["paper"], "seeds": seeds}
        line["runs"] = first_runs(*(mine[row] for row in weights))
        for what, sign in (("epochs", 1), ("control_epochs", -1)):
            line[what] = max(epochs[claim["table"], row] for row, weight in claim["contrast"].items() if weight * sign > 0)
        found = {"pairs": (mean, error, freedom), "blocks": blocks.contrast(weights)}
        by = "blocks" if blocks.alike else "pairs"
        for kind, (estimate, spread, degrees) in found.items():
            line |= {f"{kind}_mean": estimate, f"{kind}_half_width": half_width(spread, degrees)}
        line |= {"by": by, "mean": line[f"{by}_mean"], "half_width": line[f"{by}_half_width"]}
        line |= {name: claim[name] for name in ("matters", "direction", "effect")}
        line |= {"p": two_sided_p(*found[by]), "deviation": found[by][1] * np.sqrt(seeds)}
        equal = {"more": equivalence_p, "at least": at_least_p}[claim["direction"]]
        line |= {"p_equal": equal(*found[by], claim["matters"])}
        lines.append(line | {"pairs_p": two_sided_p(*found["pairs"]), "pairs_p_equal": equal(*found["pairs"], claim["matters"])})
    return lines


def first_runs(*rows):
    """The keys of the first seed's run of each row: what is compared, whatever the rows are called and however many seeds they have."""
    return " ".join(sorted(row.loc[row["seed"].idxmin(), "key"] for row in rows))


def with_verdicts(lines):
    """The lines with Holm's correction over a study's claims, for either kind of test by itself, verdicts and seeds needed."""
    lines = lines.assign(p_holm=holm(lines["p"]), p_equal_holm=holm(lines["p_equal"]))
    lines["verdict"] = [verdict(line) for line in lines.to_dict("records")]
    alone = lines.assign(mean=lines["pairs_mean"], p_holm=holm(lines["pairs_p"]), p_equal_holm=holm(lines["pairs_p_equal"]))
    lines["pairs_verdict"] = [verdict(line) for line in alone.to_dict("records")]
    needed = [
        seeds_needed(line["mean"], line["deviation"], line["matters"], len(lines), line["direction"] == "at least")
        if line["verdict"] == OPEN and np.isfinite(line["deviation"])
        else 0
        for line in lines.to_dict("records")
    ]
    return lines.assign(seeds_needed=pd.array(needed, dtype="Int64")).drop(columns=["deviation", "pairs_p", "pairs_p_equal"])


def verdict(line):
    """Supported, contradicted or cannot tell: of a line with its corrected p-values.

    More: supported where it is above zero; contradicted where it is below zero, or where nothing that matters is there.
    At least: supported where it is shown not to be worse by as much as matters; contradicted where it is below zero.
    """
    shown, equal = line["p_holm"] <= 0.05, line["p_equal_holm"] <= 0.05
    if line["direction"] == "at least":
        return SUPPORTED if equal or (shown and line["mean"] > 0) else CONTRADICTED if shown else OPEN
    if shown:
        return SUPPORTED if line["mean"] > 0 else CONTRADICTED
    return CONTRADICTED if equal else OPEN


def trained(table, row):
    """What determines the runs of a table's row, whatever the row is called and wherever it stands."""
    knowledge, curriculum = tuple(sorted(row.get("knowledge", ["kd"]))), row.get("curriculum", "fixed")
    parameters = {n: {**table.get("parameters", {}).get(n, {}), **row.get(n, {})} for n in (*knowledge, curriculum)}
    rest = [row.get(key) or default for key, default in (("epochs", 1), ("recipe", {}), ("images_per_class", 0))]
    return repr([knowledge, curriculum, *(sorted(values.items()) for values in parameters.values()), *rest])


@cache
def comparisons():
    """{what two rows train: the claim} of the claims that compare two rows, in either order."""
    found = {}
    for name, claim in load_claims().items():
        table = load_table(claim["table"])
        rows = {row["row"]: trained(table, row) for row in table["rows"] if row["row"] in claim["contrast"]}
        if len(rows) == 2:
            found[frozenset(rows.values())] = name
    return found


def claim_of(table, row, other):
    """The name of the claim that a table's two rows compare, or "": the comparison is exploratory.

    As far as the tables say it: a paper's own recipe may give its table other runs, which `decided` sees.
    """
    return comparisons().get(frozenset((trained(table, row), trained(table, other))), "")


IN_BOLD = "In bold: the verdict on a paper's claim, corrected over all claims of the study (claims.md)."
POOLED = "A pooled ± beside it is the one that was judged: its error is taken from the rows of all claims, not from these seeds alone."
MARK = re.compile(r"(\((?:higher|lower|open|no interval)\)(?:, [^<|]*)?)<!-- (.+?), of (.+?) -->")


def marked(line):
    """What a table's line says before the whole study has run; of a primary comparison with a mark that no reader sees.

    line: its verdict, claim and, where it has one, runs (`first_runs`).
    """
    return f"{line['verdict']}<!-- {line['claim']}, of {line['runs']} -->" if line["claim"] else line["verdict"]


def decided(text, lines):
    """`text` with the verdict of the whole study (lines: of `judge`) at every mark whose claim it could test.

    Beside a "cannot tell" stays what the interval says by itself, where that is more; beside a verdict from the pooled error its half-width.
    """
    known = {(line["claim"], line["runs"]): line for line in lines.to_dict("records")}

    def cell(match):
        said, claim, of_runs = match.groups()
        if (line := known.get((claim, of_runs))) is None:
            return match[0]
        more = f" {said}" if line["verdict"] == OPEN and said.startswith(("(higher)", "(lower)")) else ""
        pooled = f", pooled ± {line['half_width']:.2f}" if line["by"] == "blocks" else ""
        return f"{claim}: **{line['verdict']}**{pooled}{more}"

    text = MARK.sub(cell, text)
    return text.replace(IN_BOLD, f"{IN_BOLD} {POOLED}") if ", pooled ± " in text else text
