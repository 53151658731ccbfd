"""What a table's runs say: a line a row, with mean, interval and paired difference to the table's baseline."""

import pandas as pd

from kd.report.claims import claim_of, first_runs, marked
from kd.statistics import explored, interval, paired

COLUMNS = [
    "profile", "pair", "row", "n", "epochs", "cost", "supernet", "teacher_cost", "mean", "interval", "baseline", "baseline_epochs",
    "difference", "difference_interval", "pairs", "p", "claim", "runs", "reported", "tier", "source", "note", "not_run",
]  # fmt: skip


def by_pair(row):
    """Whether a table's row has a reported figure for each of several pairs, {"resnet56 -> resnet20": {...}, ...}."""
    return any(" -> " in str(key) for key in row.get("reported") or {})


def reported_for(row, pair):
    """The figure {value, tier, source} reported for a table's row on `pair`; {} when none is verified."""
    reported = row.get("reported") or {}
    return reported.get(pair, {}) if by_pair(row) else reported


def summary(runs, table):
    """One line a row and pair of `table` (of kd.load_table), in the file's order, from `runs` (of kd.Study.run), and before them one
    of the teacher, measured, with n 0.

    The columns are COLUMNS and verdict. n: runs; 0 for a row that nobody can run, with the reason in `not_run`, and for one that this
    profile leaves out. cost: of training, student and teacher, in multiply-adds, over KD's. teacher_cost: of training the row's teacher
    once, in the same measure; supernet: whether that is one. mean, interval: test accuracy after the last epoch, in percent. baseline:
    the row of which the differences are; difference and what follows: paired by seed, in points, on the same pair. claim, runs: the one
    that this comparison tests (kd/report/claims.py), or "", and its runs. verdict: what the interval alone says, see
    kd.statistics.explored.
    """
    runs = runs[runs["table"] == table["name"]]
    profile = runs["profile"].iloc[0] if len(runs) else ""
    baseline, lines = table.get("baseline", "KD"), []
    rows = {row["row"]: row for row in table["rows"]}
    for pair in list(runs["pair"].unique()) or [""]:
        here = runs[runs["pair"] == pair]
        reference = here[here["row"] == baseline]
        plain = cost_of_kd(here, table)
        if line := teacher_line(here, table):
            lines.append({"profile": profile, "pair": pair, "claim": "", "note": "", "not_run": ""} | line)
        for row in table["rows"]:
            mine, figure = here[here["row"] == row["row"]], reported_for(row, pair)
            line = {"profile": profile, "pair": pair, "row": row["row"], "n": len(mine)}
            line |= {"baseline": baseline, "claim": "", "note": row.get("note", ""), "not_run": row.get("not_run", "")}
            line |= {"reported": figure.get("value"), "tier": figure.get("tier"), "source": figure.get("source")}
            if len(mine):
                line["cost"] = cost_in(mine) / plain
                line["supernet"] = taught_by_supernet(row, table)
                line["teacher_cost"] = cost_in(mine, "teacher_training") / plain
                line["epochs"] = float(mine["epochs"].mean())  # a greedy search's length may differ between seeds
                line["mean"], line["interval"] = interval(mine["top1_last"])
            if len(mine) and len(reference) and row["row"] != baseline:
                found = paired(mine.set_index("seed")["top1_last"], reference.set_index("seed")["top1_last"])
                line |= dict(zip(("difference", "difference_interval", "pairs", "p"), found, strict=True))
                line["baseline_epochs"] = float(reference["epochs"].mean())
                line |= primary(claim_of(table, row, rows[baseline]), mine, reference)
            lines.append(line)
    numbers = dict.fromkeys(("cost", "teacher_cost", "difference", "difference_interval", "p"), float)
    lines = pd.DataFrame(lines, columns=COLUMNS).astype(numbers)
    cells = zip(lines["difference"], lines["difference_interval"], strict=True)
    return lines.assign(verdict=[explored(mean, width) for mean, width in cells])


def taught_by_supernet(row, table):
    """Whether a table's row learns from a supernet's widths, not from the plain teacher."""
    curriculum = row.get("curriculum", "fixed")
    parameters = {**table.get("parameters", {}).get(curriculum, {}), **row.get(curriculum, {})}
    return curriculum == "pwkd" or parameters.get("source") == "supernet"


def cost_in(runs, column="training_multiply_adds"):
    """Mean multiply-adds of training in these runs; nan for results from before they were counted."""
    return float(runs[column].mean()) if column in runs else float("nan")


def cost_of_kd(runs, table):
    """The same of plain KD at the recipe's epochs, else in its shortest form here; nan where it did not run."""
    plain = runs[(runs["method"] == "kd")] if "method" in runs else runs[:0]
    usual = {row["row"] for row in table["rows"] if row.get("epochs", 1) == 1}
    plain = plain if (kept := plain[plain["row"].isin(usual)]).empty else kept
    return cost_in(plain[plain["epochs"] == plain["epochs"].min()])


def teacher_line(runs, table):
    """The line of the teacher: the one with which plain KD ends, never a supernet where a row has the plain teacher; else the one that most
    runs have; None where none is known."""
    if "teacher_top1" not in runs or runs["teacher_top1"].isna().all():
        return None
    grown = [row["row"] for row in table["rows"] if taught_by_supernet(row, table)]
    plain = runs.loc[(runs["method"] == "kd") & ~runs["row"].isin(grown), "teacher_top1"].dropna()
    found = plain if len(plain) else runs["teacher_top1"].dropna()
    name = runs["pair"].iloc[0].partition(" -> ")[0]
    return {"row": f"the teacher, {name}", "n": 0, "mean": float(found.mode().iloc[0])}


def primary(claim, *rows):
    """The entries of a line that compares the rows for a claim, or for none, ""."""
    return {"claim": claim, "runs": first_runs(*rows) if claim else ""}


def controls(runs, table):
    """The table's rows against their controls, the same runs without the ingredient under test, and against their rivals.

    A line a pair, row and control or rival, where both ran: pair, row, control, mean, interval, pairs, p, claim, runs, verdict.
    """
    runs, lines, rows = runs[runs["table"] == table["name"]], [], {row["row"]: row for row in table["rows"]}
    for pair in runs["pair"].unique():
        here = dict(list(runs[runs["pair"] == pair].groupby("row")))
        accuracy = {row: group.set_index("seed")["top1_last"] for row, group in here.items()}
        for row in table["rows"]:
            for control in (*row.get("control", ()), *row.get("rival", ())):
                if row["row"] in accuracy and control in accuracy:
                    found = paired(accuracy[row["row"]], accuracy[control])
                    tested = primary(claim_of(table, row, rows[control]), here[row["row"]], here[control])
                    lines.append([pair, row["row"], control, *found, *tested.values()])
    lines = pd.DataFrame(lines, columns=["pair", "row", "control", "mean", "interval", "pairs", "p", "claim", "runs"])
    return lines.assign(verdict=[explored(*cells) for cells in zip(lines["mean"], lines["interval"], strict=True)])


def judged(line):
    """A line's verdict, with its epochs where it rests on more or fewer of them than the baseline had, and its claim's mark."""
    said = line["verdict"]
    if said in ("(higher)", "(lower)") and round(line["epochs"]) != round(line["baseline_epochs"]):
        said += f", {line['epochs']:.0f} epochs against {line['baseline_epochs']:.0f}"
    return marked(line | {"verdict": said})
