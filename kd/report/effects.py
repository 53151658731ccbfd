"""The combined study: what each part of a method adds, and what parts add together.

A method is a cell of the grid of tables/combined/combined.yaml: a curriculum (fixed, rco, pwkd) times a set of
knowledge, kd with or without each of kr, srm, iekd, or one of these three without kd. y(cell, seed) is the test
accuracy after the last epoch, in percent. Runs of one seed share initial weights and batches, so that every effect is
first computed within a seed, as a difference of accuracies, in points; the interval is Student's t over seeds, and the
p-values of a family are corrected by Holm's method.

    main effect of a       mean over all settings r of the other factors   y(a, r) - y(no a, r)
    interaction of a, b    mean over r   [y(a, b, r) - y(no a, b, r)] - [y(a, no b, r) - y(no a, no b, r)]
    beyond the sum         [y(cell) - y(kd)] - sum over the cell's parts p of [y(p) - y(kd)]

"no rco" and "no pwkd" are the fixed curriculum. Where only a corner of the grid ran, the means are over the settings r
of which all cells ran; `estimated` counts them. The parts of `rco * (kd + kr + srm)` are what it holds beyond plain KD,
each alone with kd: `rco * kd`, `kd + kr` and `kd + srm`; those of `rco * kr` are `rco * kd` and `kr`.
"""

from functools import cache
from itertools import combinations

import pandas as pd

from kd.errors import ConfigError, nearest
from kd.statistics import paired, with_verdicts
from kd.study.records import method_name
from kd.study.tables import load_table

ADDED_KD = "kd, added to kr, srm or iekd"


@cache
def cells():
    """{name: (curriculum, knowledge)} of the grid, e.g. {"rco * (kd + srm)": ("rco", ("kd", "srm"))}."""
    rows = [row for row in load_table("combined")["rows"] if row["knowledge"] != ["labels"]]
    return {row["row"]: (row["curriculum"], tuple(row["knowledge"])) for row in rows}


def single_parts():
    """What is added to plain KD: the curricula, then the kinds of knowledge."""
    curricula, sets = (dict.fromkeys(column) for column in zip(*cells().values(), strict=True))
    kinds = dict.fromkeys(kind for knowledge in sets for kind in knowledge)
    return [name for name in (*curricula, *kinds) if name not in ("fixed", "kd")]


def name_of(curriculum, knowledge):
    return method_name({"curriculum": curriculum, "knowledge": knowledge})


def without(method, *parts):
    """The name of the method with these parts left out; instead of a curriculum it has the fixed one."""
    curriculum, knowledge = cells()[method]
    return name_of("fixed" if curriculum in parts else curriculum, [kind for kind in knowledge if kind not in parts])


def parts_of(method):
    """The names of a method's parts, see above; one that is plain KD, or adds a single thing to it, has none."""
    curriculum, knowledge = cells()[method]
    parts = [name_of(curriculum, ["kd"])] if curriculum != "fixed" else []
    if "kd" in knowledge:
        parts += [name_of("fixed", ["kd", kind]) for kind in knowledge if kind != "kd"]
    else:
        parts += [name_of("fixed", knowledge)]
    return parts if len(parts) > 1 else []


def chosen(only):
    """The methods to run for the names in `only`: those, their parts, plain KD and the student alone. Empty: all."""
    for name in only:
        if name not in cells():
            hint = f"{nearest(name, cells())}; names are such as kd + srm, rco * (kd + kr)"
            raise ConfigError(f"only: no method is called {name!r}{hint}")
    return sorted({"labels", "kd", *only, *(part for name in only for part in parts_of(name))}) if only else []


def accuracies(runs, pair=None):
    """Accuracy in percent as a DataFrame, a row a seed, a column a method of the grid, in the grid's order.

    runs: of kd.Study.run or results.csv, with the table `combined`. pair: "teacher -> student"; default the first.
    """
    runs = runs[(runs["table"] == "combined") & runs["method"].isin(cells())]
    if not len(runs):
        raise ConfigError("no record of the combined study here; run notebook 07, or `dvc repro combined`")
    runs = runs[runs["pair"] == (pair or runs["pair"].iloc[0])]
    wide = runs.pivot(index="seed", columns="method", values="top1_last")
    return wide[[name for name in cells() if name in wide]]


def family(lines):
    """Comparisons [(name, mean, interval, pairs, p), ...] as a DataFrame, with p_holm and verdict."""
    lines = pd.DataFrame(lines, columns=["name", "mean", "interval", "pairs", "p"])
    return with_verdicts(lines.astype({"mean": float, "p": float}))


def tested(differences):
    """The `family` of {name: Series of differences, indexed by seed}, each tested against zero."""
    return family([(name, *paired(values, values * 0)) for name, values in differences.items()])


def gains(accuracy):
    """Each method against plain KD."""
    return tested({name: accuracy[name] - accuracy["kd"] for name in accuracy if name != "kd"})


def gain_grid(accuracy):
    """(means, texts) of `gains` as DataFrames, a row a set of knowledge, a column a curriculum, where any cell ran.

    means: in points, nan where a cell did not run. texts: "+0.59", with a star where it is better or worse than KD.
    """
    means, texts = {"kd": 0.0}, {"kd": "KD: 0"}
    for line in gains(accuracy).to_dict("records"):
        means[line["name"]] = line["mean"]
        texts[line["name"]] = f"{line['mean']:+.2f}{'*' if line['verdict'] in ('better', 'worse') else ''}"
    curricula, sets = (dict.fromkeys(column) for column in zip(*cells().values(), strict=True))
    curricula = [c for c in curricula if any(name_of(c, knowledge) in means for knowledge in sets)]
    sets = [knowledge for knowledge in sets if any(name_of(c, knowledge) in means for c in curricula)]

    def grid(values, nothing):
        return pd.DataFrame({c: {" + ".join(k): values.get(name_of(c, k), nothing) for k in sets} for c in curricula})

    return grid(means, float("nan")), grid(texts, "")


def factors():
    """{factor: [(cell with it, cell without it), ...]} over every setting of the other factors."""
    with_kd = {name: (curriculum, *knowledge) for name, (curriculum, knowledge) in cells().items() if "kd" in knowledge}
    found = {
        part: [(name, without(name, part)) for name, parts in with_kd.items() if part in parts]
        for part in single_parts()
    }
    return {**found, ADDED_KD: [(name, without(name, "kd")) for name, parts in with_kd.items() if len(parts) == 3]}


def mean_difference(accuracy, pairs):
    """Mean difference over pairs of columns, a Series by seed; pairs of which a cell did not run are left out."""
    ran = [(a, b) for a, b in pairs if a in accuracy and b in accuracy]
    return sum(accuracy[a] - accuracy[b] for a, b in ran) / len(ran)


def estimated(accuracy):
    """{factor: (settings of the other factors that both cells ran in, all settings)}.

    A single setting is no average and counts as none.
    """
    ran = {name: sum(a in accuracy and b in accuracy for a, b in pairs) for name, pairs in factors().items()}
    return {name: (count if count > 1 else 0, len(factors()[name])) for name, count in ran.items()}


def main_effects(accuracy):
    """What each factor adds, averaged over everything else; those with fewer than two settings are left out."""
    return tested(
        {name: mean_difference(accuracy, pairs) for name, pairs in factors().items() if estimated(accuracy)[name][0]}
    )


def interactions(accuracy):
    """Two at a time: how much more (or less) one adds when the other is there."""
    found = {}
    for a, b in combinations(single_parts(), 2):
        both = [
            name for name, _ in factors()[a] if b in (cells()[name][0], *cells()[name][1])
        ]  # none for two curricula
        squares = [(name, without(name, a), without(name, b), without(name, a, b)) for name in both]
        squares = [square for square in squares if all(name in accuracy for name in square)]
        if squares:
            with_b = mean_difference(accuracy, [(name, only_b) for name, only_b, _, _ in squares])
            found[f"{a} x {b}"] = with_b - mean_difference(
                accuracy, [(only_a, neither) for _, _, only_a, neither in squares]
            )
    return tested(found)


def combined_methods(accuracy):
    """{name: parts} of the methods that ran together with all their parts and plain KD."""
    parts = {name: parts_of(name) for name in accuracy}
    return {name: some for name, some in parts.items() if some and all(part in accuracy for part in [*some, "kd"])}


def beyond_the_sum(accuracy):
    """Combinations against the sum of their parts' gains over KD: better means that the parts help one another."""
    gain = accuracy.sub(accuracy["kd"], axis=0)
    return tested(
        {name: gain[name] - sum(gain[part] for part in parts) for name, parts in combined_methods(accuracy).items()}
    )


def beyond_each_part(accuracy):
    """Combinations against the strongest of their parts.

    mean, interval: the difference to the part with the highest mean. p: the largest of the paired p-values over all
    parts, which is valid although that part was chosen by looking: to beat the strongest is to beat each of them.
    """
    lines = []
    for name, parts in combined_methods(accuracy).items():
        against = [paired(accuracy[name], accuracy[part]) for part in parts]
        mean, width, count, _ = min(against)
        lines.append((name, mean, width, count, max(p for *_, p in against)))
    return family(lines)
