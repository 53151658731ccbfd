"""The combined study in words: sentences computed from its numbers alone."""

from kd.report import effects
from kd.report.markdown import plus_minus


def conclusions(accuracy, spent=None):
    """The study's conclusions, a list of sentences.

    accuracy: of `effects.accuracies`. spent: of kd.report.cost.costs, or None. "Better" and "worse" mean that the
    interval excludes zero, also after Holm's correction within the family of comparisons.
    """
    if "kd" not in accuracy:
        return ["Plain KD did not run in this study, so that there is nothing to compare with."]
    gains = effects.gains(accuracy)
    better = with_verdict(gains, "better")
    compared = f"{counted(len(gains), 'method')}, over {counted(len(accuracy), 'paired seed')}"
    opening = f"Compared with plain KD ({accuracy['kd'].mean():.2f} %): {compared}."
    if len(accuracy) < 2 or not len(gains):
        return [opening, "That is too little to conclude anything."]
    stronger = [name for name in with_verdict(effects.beyond_each_part(accuracy), "better") if name in better]
    sentences = [
        opening,
        f"Better than plain KD: {listed(better)}." if better else "None is demonstrably better than plain KD.",
        f"Worse: {listed(worse)}." if (worse := with_verdict(gains, "worse")) else "None is demonstrably worse.",
        undecided(gains),
        highest_mean(gains),
        averages(accuracy),
        two_at_a_time(accuracy),
        coverage(accuracy),
        *sums(accuracy, stronger),
        *costs(better, spent),
        advice(accuracy, better, stronger),
    ]
    return [sentence for sentence in sentences if sentence]


def undecided(gains):
    """How many methods are neither better nor worse than KD, and which of them only the correction leaves undecided."""
    rest = gains[~gains["verdict"].isin(["better", "worse"])]
    if not len(rest):
        return ""
    text = f"For {'the other ' if len(rest) < len(gains) else 'all '}{len(rest)} no difference is shown"
    before = with_verdict(gains, "not after correction")
    return f"{text}; before Holm's correction {listed(before)} would have stood out." if before else f"{text}."


def highest_mean(gains):
    top = gains.loc[gains["mean"].idxmax()]
    if top["mean"] <= 0:
        return "Plain KD itself has the highest mean, or shares it."
    kinds = {"better": "a demonstrable gain", "not after correction": "no demonstrable gain after correction"}
    gap = plus_minus(top["mean"], top["interval"], sign=True)
    kind = kinds.get(top["verdict"], "no demonstrable gain")
    highest = f"The highest mean is that of `{top['name']}`: {gap} points over KD, {kind}"
    return f"{highest}; as the highest of {len(gains)} it is probably overstated."


def averages(accuracy):
    """What the main effects say."""
    family = effects.main_effects(accuracy)
    if not len(family):
        return ""
    clauses = []
    if up := with_verdict(family, "better"):
        clauses.append(f"{listed(up)} {'raise' if len(up) > 1 else 'raises'} the accuracy")
    if down := with_verdict(family, "worse"):
        clauses.append(f"{listed(down)} {'lower' if len(down) > 1 else 'lowers'} it")
    over = "the settings that ran" if coverage(accuracy) else "everything else"
    return f"On average over {over}, {', and '.join(clauses) or 'no factor changes the accuracy demonstrably'}."


def two_at_a_time(accuracy):
    """What the interactions say."""
    family = effects.interactions(accuracy)
    if not len(family):
        return ""
    clauses = []
    if more := with_verdict(family, "better"):
        clauses.append(f"{listed(more)} {'add' if len(more) > 1 else 'adds'} more together than apart")
    if less := with_verdict(family, "worse"):
        clauses.append(f"{listed(less)} {'add' if len(less) > 1 else 'adds'} less together than apart")
    return f"Two at a time, {', and '.join(clauses) or 'no two parts demonstrably help or hinder each other'}."


def coverage(accuracy):
    """What is averaged over and what cannot be estimated where only a corner of the grid ran; "" when all of it did."""
    counts = effects.estimated(accuracy)
    some = [f"`{name}` {ran} of {settings}" for name, (ran, settings) in counts.items() if 0 < ran < settings]
    none = [name for name, (ran, _) in counts.items() if not ran]
    sentences = []
    if some:
        sentences.append(f"Settings of the other factors that ran and are averaged over: {', '.join(some)}.")
    if none:
        sentences.append(f"Not estimated, because too little of the grid ran: {listed(none)}.")
    return " ".join(sentences)


def sums(accuracy, stronger):
    """Combinations against the sum of their parts and each part. stronger: those better than each part and KD."""
    family = effects.beyond_the_sum(accuracy)
    if not len(family):
        return []
    more, less = with_verdict(family, "better"), with_verdict(family, "worse")
    none = "The one combination is not" if len(family) == 1 else f"None of the {len(family)} combinations is"
    return [
        f"More than the sum of their parts: {listed(more)}."
        if more
        else f"{none} demonstrably more than the sum of its parts.",
        f"Less than the sum: {listed(less)}." if less else "",
        f"Better than each of their parts and than KD: {listed(stronger)}."
        if stronger
        else "None is demonstrably better than each of its parts and than KD.",
    ]


def costs(better, spent):
    """Which of the better methods cost no more than KD, and what the best one costs."""
    if spent is None:
        return []
    cost = spent.set_index("name")["cost"]
    cheap = [name for name in better if cost[name] <= 1 + 1e-9]
    return [
        f"At no more than KD's cost, better than KD: {listed(cheap)}."
        if cheap
        else "Nothing that costs no more than KD is demonstrably better than it.",
        f"The best of the better ones, `{better[0]}`, costs {cost[better[0]]:.2f} times KD's training."
        if better
        else "",
    ]


def advice(accuracy, better, stronger):
    """The last sentence: what to do."""
    if stronger:
        return "So combining pays here, for the combinations named."
    if better:
        return "So a method pays here, but combining adds nothing that these runs could show over its best part."
    if raising := [name for name in with_verdict(effects.main_effects(accuracy), "better") if name != effects.ADDED_KD]:
        alone = "So no single method is demonstrably better than plain KD with these seeds"
        return f"{alone}; only averages over the grid speak for {listed(raising)}."
    return "So with these seeds there is no reason to prefer anything here to plain KD."


def with_verdict(family, verdict):
    """The names of a family's comparisons with that verdict, the largest difference first."""
    lines = family[family["verdict"] == verdict]
    return list(lines.loc[lines["mean"].abs().sort_values(ascending=False, kind="stable").index, "name"])


def listed(names, most=6):
    """ "`kr`, `srm` and `iekd`"; of more than `most` names the first, and how many more there are."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) > most:
        return f"{', '.join(quoted[:most])} and {len(quoted) - most} more"
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def counted(number, noun):
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
