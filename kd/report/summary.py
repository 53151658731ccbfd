"""What a table's runs say: a line a row, with mean, interval and paired difference to the table's baseline."""

import pandas as pd

from kd.statistics import interval, paired, with_verdicts

COLUMNS = [
    "profile", "pair", "row", "n", "epochs", "mean", "interval", "baseline_epochs",
    "difference", "difference_interval", "pairs", "p", "reported", "tier", "source", "note", "not_run",
]  # fmt: skip


def by_pair(row):
    """Whether a table's row has a reported figure for each of several pairs, {"resnet56 -> resnet20": {...}, ...}."""
    return any(" -> " in str(key) for key in row.get("reported") or {})


def reported_for(row, pair):
    """The figure {value, tier, source} reported for a table's row on `pair`; {} when none is verified."""
    reported = row.get("reported") or {}
    return reported.get(pair, {}) if by_pair(row) else reported


def summary(runs, table):
    """One line a row and pair of `table` (of kd.load_table), in the file's order, from `runs` (of kd.Study.run).

    The columns are COLUMNS, p_holm and verdict. n: runs; 0 for a row that nobody can run, with the reason in `not_run`,
    and for one that this profile leaves out. mean, interval: test accuracy after the last epoch, in percent. difference
    and what follows: paired by seed, in points, against the table's baseline on the same pair; one family of
    comparisons a table.
    """
    runs = runs[runs["table"] == table["name"]]
    profile = runs["profile"].iloc[0] if len(runs) else ""
    baseline, lines = table.get("baseline", "KD"), []
    for pair in list(runs["pair"].unique()) or [""]:
        here = runs[runs["pair"] == pair]
        reference = here[here["row"] == baseline]
        for row in table["rows"]:
            mine, figure = here[here["row"] == row["row"]], reported_for(row, pair)
            line = {"profile": profile, "pair": pair, "row": row["row"], "n": len(mine)}
            line |= {"note": row.get("note", ""), "not_run": row.get("not_run", "")}
            line |= {"reported": figure.get("value"), "tier": figure.get("tier"), "source": figure.get("source")}
            if len(mine):
                line["epochs"] = float(mine["epochs"].mean())  # a greedy search's length may differ between seeds
                line["mean"], line["interval"] = interval(mine["top1_last"])
            if len(mine) and len(reference) and row["row"] != baseline:
                found = paired(mine.set_index("seed")["top1_last"], reference.set_index("seed")["top1_last"])
                line |= dict(zip(("difference", "difference_interval", "pairs", "p"), found, strict=True))
                line["baseline_epochs"] = float(reference["epochs"].mean())
            lines.append(line)
    return with_verdicts(pd.DataFrame(lines, columns=COLUMNS), "difference", "difference_interval")


def controls(runs, table):
    """The table's rows against their controls: a control is the same run without the ingredient under test.

    A line a pair, row and control, where both ran: pair, row, control, mean, interval, pairs, p, p_holm, verdict; one
    family of comparisons.
    """
    runs, lines = runs[runs["table"] == table["name"]], []
    for pair in runs["pair"].unique():
        here = runs[runs["pair"] == pair].groupby("row")
        accuracy = {row: group.set_index("seed")["top1_last"] for row, group in here}
        for row in table["rows"]:
            for control in row.get("control", []):
                if row["row"] in accuracy and control in accuracy:
                    lines.append([pair, row["row"], control, *paired(accuracy[row["row"]], accuracy[control])])
    return with_verdicts(pd.DataFrame(lines, columns=["pair", "row", "control", "mean", "interval", "pairs", "p"]))


def judged(line):
    """A line's verdict, with its epochs where a claim rests on more or fewer of them than the baseline had."""
    if line["verdict"] in ("better", "worse") and round(line["epochs"]) != round(line["baseline_epochs"]):
        return f"{line['verdict']}, {line['epochs']:.0f} epochs against {line['baseline_epochs']:.0f}"
    return line["verdict"]
