"""The combined study: what each part of a method adds, what parts add together, what they cost, and the answer in words.

A method is a cell of a grid: a curriculum (fixed, rco, pwkd) times a set of knowledge, kd with or without each of kr, srm, iekd, or one
of these three without kd. y(cell, seed) is the test accuracy after the last epoch, in percent. Runs of one seed share initial
weights and batches, so that every effect is first computed within a seed, as a difference of accuracies, in points; the
interval is Student's t over seeds, and the p-values of a family are corrected by Holm's method.

    main effect of a       mean over all settings r of the other factors   y(a, r) - y(no a, r)
    interaction of a, b    mean over r   [y(a, b, r) - y(no a, b, r)] - [y(a, no b, r) - y(no a, no b, r)]
    beyond the sum         [y(cell) - y(kd)] - sum over the cell's parts p of [y(p) - y(kd)]

Where only a corner of the grid ran, the means are over the settings r of which all cells ran; `estimated` counts them.

"no rco" and "no pwkd" are the fixed curriculum. A part of `rco * (kd + kr + srm)` is what it holds beyond plain KD, each alone with kd:
`rco * kd`, `kd + kr` and `kd + srm`; a part of `rco * kr` is `rco * kd` and `kr`.
"""

from itertools import combinations, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kd.errors import Problem, nearest
from kd.records import interval, method_name, paired, plus_minus, with_verdicts

KINDS = ("kr", "srm", "iekd")  # knowledge added to kd, in the order in which names hold it
CURRICULA = ("fixed", "rco", "pwkd")
SETS = [("kd", *some) for count in range(4) for some in combinations(KINDS, count)] + [(kind,) for kind in KINDS]
COLUMNS = ["name", "mean", "interval", "pairs", "p", "p_holm", "verdict"]


def name_of(curriculum, knowledge):
    return method_name({"curriculum": curriculum, "knowledge": knowledge})


CELLS = {name_of(c, k): (c, k) for c, k in product(CURRICULA, SETS)}


def parts_of(method):
    """The names of a method's parts, see above; one that is plain KD, or adds a single thing to it, has none."""
    curriculum, knowledge = CELLS[method]
    parts = [name_of(curriculum, ("kd",))] if curriculum != "fixed" else []
    parts += [name_of("fixed", ("kd", kind)) for kind in knowledge if kind != "kd"] if "kd" in knowledge else [name_of("fixed", knowledge)]
    return parts if len(parts) > 1 else []


def chosen(only):
    """The methods to run for the names in `only` (empty: all): those, plain KD and the student alone, and the parts of each."""
    for name in only:
        if name not in CELLS:
            raise Problem(f"only: no method is called {name!r}{nearest(name, CELLS)}; names are such as kd + srm, rco * (kd + kr)")
    return sorted({"labels", "kd", *only, *(part for name in only for part in parts_of(name))}) if only else []


def accuracies(runs, pair=None):
    """Accuracy in percent as a DataFrame, a row a seed, a column a method of the grid.

    runs: the table `combined` out of kd.Study.run or results.csv. pair: which, when there are several; default the first.
    """
    runs = runs[(runs["table"] == "combined") & runs["method"].isin(CELLS)]
    if not len(runs):
        raise Problem("no record of the combined study here; run notebook 07, or `dvc repro combined`")
    runs = runs[runs["pair"] == (pair or runs["pair"].iloc[0])]
    wide = runs.pivot(index="seed", columns="method", values="top1_last")
    return wide[[name for name in CELLS if name in wide]]


def tested(differences):
    """{name: Series of differences, indexed by seed} as one family: a DataFrame with the columns of COLUMNS."""
    lines = []
    for name, values in differences.items():
        mean, width, count, p = paired(values, values * 0)
        lines.append({"name": name, "mean": mean, "interval": width, "pairs": count, "p": p})
    return with_verdicts(pd.DataFrame(lines, columns=COLUMNS[:5]).astype({"p": float}))[COLUMNS]


def gains(accuracy):
    """Each method against plain KD."""
    return tested({name: accuracy[name] - accuracy["kd"] for name in accuracy if name != "kd"})


def factors():
    """{factor: [(cell with it, cell without), ...]} over every setting of the other factors."""
    found = {}
    for curriculum in CURRICULA[1:]:
        found[curriculum] = [(name_of(curriculum, k), name_of("fixed", k)) for k in SETS if "kd" in k]
    for kind in KINDS:
        without = [k for k in SETS if "kd" in k and kind not in k]
        ordered = [tuple(x for x in ("kd", *KINDS) if x in (*k, kind)) for k in without]
        found[kind] = [(name_of(c, w), name_of(c, o)) for c in CURRICULA for w, o in zip(ordered, without, strict=True)]
    found["kd, added to another alone"] = [(name_of(c, ("kd", kind)), name_of(c, (kind,))) for c in CURRICULA for kind in KINDS]
    return found


def mean_difference(accuracy, pairs):
    """Mean over the pairs of columns of their difference, a Series by seed; pairs of which a cell did not run are left out."""
    ran = [(a, b) for a, b in pairs if a in accuracy and b in accuracy]
    return sum(accuracy[a] - accuracy[b] for a, b in ran) / len(ran)


def estimated(accuracy):
    """{factor: (settings of the others of which both cells ran, all settings)}; a single setting is no average and counts as none."""
    ran = {name: sum(a in accuracy and b in accuracy for a, b in pairs) for name, pairs in factors().items()}
    return {name: (count if count > 1 else 0, len(factors()[name])) for name, count in ran.items()}


def settings(accuracy):
    """In words, what is averaged over and what cannot be estimated, where only a corner of the grid ran; "" when all of it did."""
    counts = estimated(accuracy)
    some = [f"`{name}` {ran} of {all_of}" for name, (ran, all_of) in counts.items() if 0 < ran < all_of]
    none = [name for name, (ran, _) in counts.items() if not ran]
    text = [f"Settings of the other factors that ran, and are averaged over: {', '.join(some)}."] if some else []
    return " ".join([*text, f"Not estimated, because too little of the grid ran: {listed(none)}." if none else ""]).strip()


def main_effects(accuracy):
    """What rco, pwkd, kr, srm, iekd and kd add, averaged over everything else; those with fewer than two settings are left out."""
    return tested({name: mean_difference(accuracy, pairs) for name, pairs in factors().items() if estimated(accuracy)[name][0]})


def interactions(accuracy):
    """Two at a time: how much more (or less) one adds when the other is there."""
    found = {}
    for a, b in combinations((*CURRICULA[1:], *KINDS), 2):
        if {a, b} == set(CURRICULA[1:]):
            continue  # two curricula exclude each other
        effect, has_b = factors()[a], {name for name, _ in factors()[b]}
        without_b = {name for _, name in factors()[b]}
        there, absent = ([pair for pair in effect if set(pair) <= cells] for cells in (has_b, without_b))
        squares = [(t, o) for t, o in zip(there, absent, strict=True) if all(name in accuracy for name in (*t, *o))]
        if squares:
            there, absent = zip(*squares, strict=True)
            found[f"{a} x {b}"] = mean_difference(accuracy, there) - mean_difference(accuracy, absent)
    return tested(found)


def beyond_the_sum(accuracy):
    """Combinations against the sum of their parts' gains over KD: better means that the parts help one another."""
    found = {}
    for name in accuracy:
        parts = parts_of(name)
        if parts and all(part in accuracy for part in [*parts, "kd"]):
            found[name] = accuracy[name] - accuracy["kd"] - sum(accuracy[part] - accuracy["kd"] for part in parts)
    return tested(found)


def beyond_each_part(accuracy):
    """Combinations against the strongest of their parts.

    mean, interval: the difference to the part with the highest mean. p: the largest over all parts of the paired p-values, which is
    valid although that part was chosen by looking: to beat the strongest is to beat each of them.
    """
    lines = []
    for name in accuracy:
        parts = [part for part in parts_of(name) if part in accuracy]
        if len(parts) != len(parts_of(name)) or not parts:
            continue
        against = [paired(accuracy[name], accuracy[part]) for part in parts]
        mean, width, count, _ = min(against)
        lines.append({"name": name, "mean": mean, "interval": width, "pairs": count, "p": max(p for *_, p in against)})
    return with_verdicts(pd.DataFrame(lines, columns=COLUMNS[:5]).astype({"p": float}))[COLUMNS]


def teacher_operations(network, widths, classes, image_shape):
    """Multiply-adds of a forward pass of one image: {"route": of the teacher, "supernet": [of it at each width]}."""
    from kd.models import Supernet, build, complexity

    operations, supernet = {"route": complexity(build(network, classes, image_shape[0]), image_shape)[1]}, []
    nested = Supernet(build(network, classes, image_shape[0]), tuple(widths))
    for index in range(len(widths)):
        nested.select(index)
        supernet.append(complexity(nested, image_shape)[1])
    return {**operations, "supernet": supernet}


def cost(record, operations):
    """Multiply-adds of training, for one training image: a run's record and `teacher_operations` give it, no clock does.

    Student: 3 forward passes' worth an epoch (forward, gradient of weights, gradient of activations). Teacher: the passes that
    the record counts, shared out over the lessons' teachers by their epochs. The method's own modules are left out: their
    parameters are counted beside it.
    """
    student = 3 * record["epochs"] * record["multiply_adds"]
    passes = [(operations[x["source"]], x) for x in record["lessons"]]
    each = [np.mean([o[i] if isinstance(o, list) else o for i in x["indices"]]) for o, x in passes]
    weights = [x["epochs"] * len(x["indices"]) for _, x in passes]
    return float(student + record["teacher_epochs"] * np.average(each, weights=weights))


def costs(runs, records, operations):
    """A line a method of the table `combined`: accuracy (mean, interval), cost relative to plain KD's, extra parameters, front.

    runs: as for `accuracies`, of one pair. records: {key: record}. front: nothing costs no more and is more accurate by its mean.
    """
    found = []
    for name, group in runs[runs["table"] == "combined"].groupby("method", sort=False):
        mean, width = interval(group["top1_last"])
        spent = np.mean([cost(records[key], operations) for key in group["key"]])
        found.append({"name": name, "mean": mean, "interval": width, "multiply_adds": spent, "extra_parameters": group["extra_parameters"].iloc[0]})
    found = pd.DataFrame(found)
    found["cost"] = found["multiply_adds"] / float(found.loc[found["name"] == "kd", "multiply_adds"].iloc[0])
    return found.assign(front=on_front(found["cost"], found["mean"]))


def on_front(cost, value):
    """Which points no other dominates: none is as cheap or cheaper and as good or better, and one of the two strictly."""
    cost, value = np.asarray(cost, float).round(9), np.asarray(value, float).round(9)
    no_worse = (cost[None] <= cost[:, None]) & (value[None] >= value[:, None])
    strictly = (cost[None] < cost[:, None]) | (value[None] > value[:, None])
    return ~(no_worse & strictly).any(1)


def listed(names, most=6):
    names = [f"`{name}`" for name in names]
    if len(names) > most:
        return ", ".join(names[:most]) + f" and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sorted_by(lines, verdict):
    """Names with that verdict, the largest difference first."""
    lines = lines[lines["verdict"] == verdict]
    return list(lines.loc[lines["mean"].abs().sort_values(ascending=False, kind="stable").index, "name"])


def count_of(number, word):
    return f"{number or 'no'} {word}" + ("" if number == 1 else "s")


def answer(accuracy, spent=None):
    """The study's conclusions, a list of sentences computed from the numbers alone. spent: the DataFrame of `costs`.

    "Better" and "worse" are said of intervals that exclude zero also after Holm's correction within the family.
    """
    if "kd" not in accuracy:
        return ["Plain KD did not run in this study, so that there is nothing to compare with."]
    against, seeds = gains(accuracy), len(accuracy)
    better, worse = sorted_by(against, "better"), sorted_by(against, "worse")
    undecided = sorted_by(against, "not after correction")
    said = [f"{count_of(len(against), 'method')} stood against plain KD ({accuracy['kd'].mean():.2f} %), over {count_of(seeds, 'paired seed')}."]
    if seeds < 2 or not len(against):
        return [*said, "That is too little to conclude anything."]
    said.append(f"Better than plain KD: {listed(better)}." if better else "None of them can be told to be better than plain KD.")
    said.append(f"Worse: {listed(worse)}." if worse else "None can be told to be worse.")
    rest = f"For the other {len(against) - len(better) - len(worse)} no difference can be claimed"
    said += [rest + (f", though before correction {listed(undecided)} would have stood out." if undecided else ".")] if len(better) + len(worse) < len(against) else []
    top = against.loc[against["mean"].idxmax()]
    if top["mean"] > 0:
        kind = {"better": "a gain", "not after correction": "no gain after correction"}.get(top["verdict"], "no gain beyond its interval")
        gap = plus_minus(top["mean"], top["interval"], sign=True)
        said.append(
            f"The highest mean is that of `{top['name']}`: {gap} points over KD, {kind}; being picked as the highest of {len(against)} flatters it."
        )
    else:
        said.append("Plain KD itself has the highest mean, or shares it.")
    average = "On average over the settings that ran" if settings(accuracy) else "On average over everything else"
    for title, family in ((average, main_effects(accuracy)), ("Two at a time", interactions(accuracy))):
        if len(family):
            up, down = sorted_by(family, "better"), sorted_by(family, "worse")
            if title == "Two at a time":
                text = [f"{listed(up)} add more together than apart"] * bool(up) + [f"{listed(down)} add less together than apart"] * bool(down)
                text = text or ["no two parts help or hinder each other beyond the interval"]
            else:
                text = [f"{listed(up)} raise the accuracy" if len(up) > 1 else f"{listed(up)} raises the accuracy"] * bool(up)
                text += [f"{listed(down)} lower it" if len(down) > 1 else f"{listed(down)} lowers it"] * bool(down)
                text = text or ["no factor changes the accuracy beyond its interval"]
            said.append(f"{title}, {', and '.join(text)}.")
    said += [settings(accuracy)] if settings(accuracy) else []
    total, each = beyond_the_sum(accuracy), beyond_each_part(accuracy)
    if len(total):
        more, less = sorted_by(total, "better"), sorted_by(total, "worse")
        any_of = "the one combination" if len(total) == 1 else f"any of the {len(total)} combinations"
        said.append(f"More than the sum of their parts: {listed(more)}." if more else f"It cannot be said of {any_of} that it is more than the sum of its parts.")
        said += [f"Less than the sum: {listed(less)}."] if less else []
        beat = [name for name in sorted_by(each, "better") if name in better]
        said.append(f"Better than each of their parts and than KD: {listed(beat)}." if beat else "None can be told to be better than each of its parts and than KD.")
    if spent is not None:
        cheap = spent.set_index("name")["cost"] <= 1 + 1e-9
        bargains = [name for name in better if cheap[name]]
        said.append(f"At no more than KD's cost, better than KD: {listed(bargains)}." if bargains else "Nothing that costs no more than KD can be told to be better than it.")
        best = against[against["name"].isin(better)].sort_values("mean", ascending=False)["name"]
        said += [f"The best of the better ones, `{best.iloc[0]}`, costs {spent.set_index('name')['cost'][best.iloc[0]]:.2f} times KD's training."] if len(best) else []
    beat = [name for name in sorted_by(each, "better") if name in better]
    if beat:
        said.append("So combining pays here, for the combinations named.")
    elif better:
        said.append("So a method pays here, but combining adds nothing that these runs could show over its best part.")
    elif raising := [name for name in sorted_by(main_effects(accuracy), "better") if name in (*CURRICULA, *KINDS)]:
        said.append(f"So no single method can be told from plain KD for the better with these seeds; only averages over the grid speak for {listed(raising)}.")
    else:
        said.append("So with these seeds there is no reason to prefer anything here to plain KD.")
    return said


def bars(family, title=""):
    """A dot and interval a line of a family of effects, in points; coloured where it is better or worse. Returns the figure."""
    from kd.figures import COLOURS

    figure, ax = plt.subplots(figsize=(6.4, 0.9 + 0.28 * len(family)))
    colour = {"better": COLOURS[2], "worse": COLOURS[1]}
    for place, line in zip(range(len(family))[::-1], family.to_dict("records"), strict=True):
        width = np.nan_to_num(line["interval"])
        ax.errorbar(line["mean"], place, xerr=width, fmt="o", color=colour.get(line["verdict"], "0.4"), capsize=3, markersize=5)
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_yticks(range(len(family))[::-1], family["name"])
    ax.set_ylim(-0.6, len(family) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="percentage points, with 95 % interval", title=title)
    return figure


def heat_map(accuracy):
    """Mean paired gain over KD of every cell, in points; a star where better or worse than KD after correction. Returns the figure.

    Rows and columns of the grid of which nothing ran are left out.
    """
    lines = gains(accuracy).set_index("name")
    sets = [k for k in SETS if any(name_of(c, k) in accuracy for c in CURRICULA)]
    curricula = [c for c in CURRICULA if any(name_of(c, k) in accuracy for k in SETS)]
    values, texts = np.full((len(sets), len(curricula)), np.nan), {}
    for (i, knowledge), (j, curriculum) in product(enumerate(sets), enumerate(curricula)):
        name = name_of(curriculum, knowledge)
        if name == "kd":
            values[i, j], texts[i, j] = 0.0, "KD: 0"
        elif name in lines.index:
            values[i, j] = lines.loc[name, "mean"]
            texts[i, j] = f"{values[i, j]:+.2f}" + "*" * (lines.loc[name, "verdict"] in ("better", "worse"))
    reach = max(float(np.nanmax(np.abs(values))), 1e-6)
    figure, ax = plt.subplots(figsize=(5.6, 1.3 + 0.3 * len(sets)))
    shown = ax.imshow(values, cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto")
    for (i, j), text in texts.items():
        dark = abs(values[i, j]) > 0.6 * reach
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "black", fontweight="bold" if "*" in text else None)
    ax.set_xticks(range(len(curricula)), curricula)
    ax.set_yticks(range(len(sets)), [" + ".join(knowledge) for knowledge in sets])
    ax.set(xlabel="curriculum", ylabel="knowledge")
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, label="gain over KD (points)")
    return figure


def cost_figure(spent):
    """Cost of training against accuracy, the methods on the front joined and named. spent: the DataFrame of `costs`."""
    from kd.figures import COLOURS

    figure, ax = plt.subplots(figsize=(7, 4.2))
    groups = {"student alone": ["labels"], **{c: [name_of(c, k) for k in SETS] for c in CURRICULA}}
    for (label, members), colour in zip(groups.items(), ("0.4", *COLOURS), strict=False):
        mine = spent[spent["name"].isin(members)]
        ax.errorbar(mine["cost"], mine["mean"], yerr=mine["interval"].fillna(0), fmt="o", color=colour, label=label, alpha=0.7, elinewidth=0.7)
    front = spent[spent["front"]].sort_values("cost")
    ax.step(front["cost"], front["mean"], where="post", color="0.3", linewidth=1, label="front, by means")
    named = spent.sort_values(["cost", "mean"]) if len(spent) <= 12 else front  # of many points all names would not fit
    for place, line in enumerate(named.to_dict("records")):
        ax.annotate(line["name"].replace("labels", "student alone"), (line["cost"], line["mean"]), xytext=(6, 8 + 11 * (place % 2)), textcoords="offset points", fontsize=8)
    ax.set(xlabel="multiply-adds of training, relative to plain KD", ylabel="top-1 accuracy on test (%)")
    figure.legend(fontsize=8, loc="outside right center")
    return figure
