"""Records of runs, and what may be said about them: means, paired differences, intervals, tables in Markdown."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

COLUMNS = {
    "profile": "what params.yaml was written from",
    "data": "data set",
    "table": "file in tables/ that asks for the run",
    "row": "row of that table",
    "method": "curriculum * (knowledge + ...)",
    "pair": "teacher -> student",
    "seed": "fixes initial weights, order of images and augmentation; shared by all methods",
    "epochs": "epochs in which the student learnt, warm-up included",
    "parameters": "of the student",
    "multiply_adds": "of the student, for one image",
    "extra_parameters": "of the method: regressors, encoders, codebooks; not needed after training",
    "teacher_epochs": "passes of the training images through a teacher",
    "top1_last": "test accuracy in percent after the last epoch: the headline",
    "top1_val": "validation accuracy in percent after the last epoch",
    "top1_best_test": "best test accuracy over epochs, in percent: chosen on test, never a headline",
    "data_md5": "md5 of the tensors the run saw",
    "teacher_md5": "md5 of the teacher's file",
    "key": "md5 of all that determines the run",
}


def read_records(folder):
    """The records a stage left in `folder`; none when it has not run."""
    path = Path(folder) / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def method_name(run):
    """"rco * (kd + srm)" of a run."""
    knowledge = " + ".join(run["knowledge"])
    if run["curriculum"] == "fixed":
        return knowledge
    return f"{run['curriculum']} * ({knowledge})" if len(run["knowledge"]) > 1 else f"{run['curriculum']} * {knowledge}"


def frame(records, profile):
    """Records, each with its table, row and pair, as a DataFrame with the columns of COLUMNS."""
    rows = []
    for record in records:
        run = record["run"]
        row = {"profile": profile, "data": run["data"], "method": method_name(run), "data_md5": run["data_md5"]}
        row |= {"teacher_md5": " ".join(run["teacher_md5"].values()), "seed": run["seed"]}
        row |= {name: record[name] for name in COLUMNS if name in record}
        row |= {name: float(f"{row[name]:.6g}") for name in row if name.startswith("top1") and row[name] is not None}  # as results.csv has them
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


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
        return (float(difference.mean()) if len(difference) else float("nan")), float("nan"), len(difference), float("nan")
    mean, width = interval(difference)
    if width < 1e-9:  # every pair differs alike: accuracies come in steps, so that says nothing of how much they would vary
        return (mean, 0.0, len(difference), 1.0) if abs(mean) < 1e-9 else (mean, float("nan"), len(difference), float("nan"))
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


def reported_for(row, pair):
    """The figure {value, tier, source} reported for a table's row on `pair`; {} when none is verified.

    A row's `reported` is one figure, or one for each of several pairs {"resnet56 -> resnet20": {...}, ...}.
    """
    reported = row.get("reported") or {}
    return reported.get(pair, {}) if by_pair(row) else reported


def by_pair(row):
    return any(" -> " in str(key) for key in row.get("reported") or {})


def summary(runs, table):
    """One line a row and pair of `table` (from kd.study.load_table), in the file's order, from the DataFrame `runs`.

    Columns: profile, pair, row, n, epochs, mean, interval, baseline_epochs, difference, difference_interval, pairs, p, p_holm, verdict
    (paired, against the table's baseline row; one family of comparisons a table), reported, tier, source, note. Rows that nobody
    can run keep their place, with the reason in `not_run`; so do rows that this profile leaves out, with n = 0.
    """
    runs = runs[runs["table"] == table["name"]]
    profile = runs["profile"].iloc[0] if len(runs) else ""
    baseline, lines = table.get("baseline", "KD"), []
    for pair in list(runs["pair"].unique()) or [""]:
        here = runs[runs["pair"] == pair]
        reference = here[here["row"] == baseline].set_index("seed")["top1_last"]
        for row in table["rows"]:
            mine = here[here["row"] == row["row"]]
            line = {"profile": profile, "pair": pair, "row": row["row"], "n": len(mine)}
            line |= {name: row.get(name, "") for name in ("note", "not_run")}
            if len(mine):
                line["epochs"] = float(mine["epochs"].mean())  # a greedy search's length may differ between seeds
                line["mean"], line["interval"] = interval(mine["top1_last"])
                if row["row"] != baseline and len(reference):
                    mean, width, count, p = paired(mine.set_index("seed")["top1_last"], reference)
                    line |= {"difference": mean, "difference_interval": width, "pairs": count, "p": p}
                    line["baseline_epochs"] = float(here.loc[here["row"] == baseline, "epochs"].mean())
            line |= {name: reported_for(row, pair).get(name) for name in ("value", "tier", "source")}
            lines.append(line)
    columns = ["profile", "pair", "row", "n", "epochs", "mean", "interval", "baseline_epochs", "difference", "difference_interval", "pairs", "p"]
    table_frame = pd.DataFrame(lines, columns=[*columns, "value", "tier", "source", "note", "not_run"])
    return with_verdicts(table_frame, "difference", "difference_interval").rename(columns={"value": "reported"})


def controls(runs, table):
    """The table's rows against their own controls (a row's `control`: rows that lack what it is to be judged by, and that alone).

    A line a pair, row and control: pair, row, control, mean, interval, pairs, p, p_holm, verdict; one family of comparisons.
    """
    runs, lines = runs[runs["table"] == table["name"]], []
    for pair in runs["pair"].unique():
        accuracy = {row: group.set_index("seed")["top1_last"] for row, group in runs[runs["pair"] == pair].groupby("row")}
        for row in table["rows"]:
            for control in np.atleast_1d(row.get("control", [])):
                if row["row"] in accuracy and control in accuracy:
                    mean, width, count, p = paired(accuracy[row["row"]], accuracy[control])
                    lines.append({"pair": pair, "row": row["row"], "control": control, "mean": mean, "interval": width, "pairs": count, "p": p})
    return with_verdicts(pd.DataFrame(lines, columns=["pair", "row", "control", "mean", "interval", "pairs", "p"]).astype({"p": float}))


def judged(line):
    """A line's verdict, with its epochs where a claim rests on more or fewer of them than the baseline had."""
    if line["verdict"] in ("better", "worse") and round(line["epochs"]) != round(line["baseline_epochs"]):
        return f"{line['verdict']}, {line['epochs']:.0f} epochs against {line['baseline_epochs']:.0f}"
    return line["verdict"]


def with_verdicts(lines, mean="mean", width="interval"):
    """The DataFrame `lines` and, for its column `p` as one family of comparisons, p_holm and verdict."""
    lines = lines.assign(p_holm=holm(lines["p"]))
    cells = zip(lines[mean], lines[width], lines["p_holm"], strict=True)
    return lines.assign(verdict=[verdict(m, w, p) if pd.notna(m) else "" for m, w, p in cells])


def plus_minus(mean, width, sign=False):
    if mean is None or not np.isfinite(mean):
        return "–"
    mean = round(mean, 2) + 0.0  # no "-0.00"
    text = f"{mean:+.2f}" if sign else f"{mean:.2f}"
    return f"{text} ± {width:.2f}" if width is not None and np.isfinite(width) else text


def grid_of(head, rows):
    """A Markdown table; a bar inside a cell would end it and is escaped."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [head, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def varies(values):
    return len({round(float(value), 2) for value in values}) > 1


class Notes:
    """Sources, numbered in the order in which they are first used."""

    def __init__(self):
        self.texts = []

    def cell(self, value, tier, source):
        if value is None or pd.isna(value):
            return "not verified"
        if source not in self.texts:
            self.texts.append(source)
        return f"{value} [{self.texts.index(source) + 1}]{' †' if tier == 'C' else ''}"

    def legend(self):
        return [f"[{number}] {text}." for number, text in enumerate(self.texts, 1)]


def markdown(lines, table, shown=True, further=None):
    """A summary as a Markdown section: title, caption, table, and below it what the numbers are and where they come from.

    further: the table's `controls`, or None. shown: False where the table has no run of its own: then a sentence says so, and the
    reported figures follow if there are any.
    """
    body = markdown_body(lines, table, further) if shown and lines["n"].any() else not_run_here(lines, table)
    parts = [f"### {table['title']}", table.get("caption", "").strip(), body]
    return "\n\n".join(part for part in parts if part)


def markdown_body(lines, table, further=None):
    """The section without its title and caption: one table a pair, then the legend, notes on rows, and figures of other pairs.

    Columns that would say the same in every row (epochs, seeds, no reported figure at all) go into the legend instead.
    """
    found, notes, blocks = lines[lines["n"] > 0], Notes(), []
    with_epochs, with_seeds = varies(found["epochs"]), varies(found["n"])
    for pair, here in lines.groupby("pair", sort=False):
        with_reported = bool(here["reported"].notna().any())
        head = ["row", *["epochs"] * with_epochs, *["seeds"] * with_seeds, "top-1 %, ours", "paired difference", "verdict"]
        rows = []
        for line in here.to_dict("records"):
            row = [line["row"]]
            row += [f"{line['epochs']:.0f}" if line["n"] else "–"] * with_epochs + [line["n"] or "–"] * with_seeds
            row += [plus_minus(line["mean"], line["interval"]) if line["n"] else "not run" if line["not_run"] else "not asked for"]
            row += [plus_minus(line["difference"], line["difference_interval"], sign=True), judged(line)]
            row += [notes.cell(line["reported"], line["tier"], line["source"])] * with_reported
            rows.append(row)
        title = f"**{pair}**\n\n" if lines["pair"].nunique() > 1 else ""
        blocks.append(title + grid_of([*head, *["reported"] * with_reported], rows))
    seeds = sorted({int(n) for n in found["n"]})
    count = f"mean and 95 % t-interval over {' or '.join(map(str, seeds))} seeds" if seeds[-1] > 1 else "one seed each, so no intervals"
    text = f"Test accuracy after the last epoch, on {found['profile'].iloc[0]}: {count}"
    text += "" if with_epochs else f", {found['epochs'].iloc[0]:.0f} epochs each"
    legend = [text + (f"; {found['pair'].iloc[0]}." if lines["pair"].nunique() == 1 else ".")]
    if tests := int(lines["p"].notna().sum()):
        baseline = table.get("baseline", "KD")
        over = ", over the seeds that both rows have" if with_seeds else ""
        legend.append(f"Differences are paired by seed, against {baseline}{over}; {tests} comparison{'s' * (tests > 1)}, verdicts after Holm's correction at 5 %.")
    if lines["reported"].notna().any():
        if table.get("reported_for"):
            legend.append(f"Reported: {table['reported_for']}; compare the order with ours, not the level, unless data and pair agree.")
    elif not any(by_pair(row) for row in table["rows"]):
        setting = f" ({table['reported_for']})" if "reported_for" in table else ""
        legend.append(f"Reported figures{setting}: none verified, so no such column.")
    if (lines["tier"] == "C").any():
        legend.append("† known only from a third party's reading note.")
    blocks.append(" ".join([*legend, *notes.legend()]))
    if further is not None and len(further):
        blocks.append(against_controls(further))
    remarks = [(line["row"], f"not run: {line['not_run']}" if line["not_run"] else line["note"]) for line in lines.drop_duplicates("row").to_dict("records")]
    blocks.append("\n".join(f"- {row}: {remark.rstrip('.')}." for row, remark in remarks if remark))
    blocks.append(reported_elsewhere(lines, table))
    return "\n\n".join(block for block in blocks if block) + "\n"


def against_controls(further):
    """The table of a table's `controls`."""
    several = further["pair"].nunique() > 1
    rows = [
        [*[line["pair"]] * several, line["row"], line["control"], plus_minus(line["mean"], line["interval"], sign=True), line["pairs"], line["verdict"]]
        for line in further.to_dict("records")
    ]
    head = [*["pair"] * several, "row", "against its control", "paired difference", "seeds", "verdict"]
    corrected = f"; verdicts after Holm's correction for these {len(rows)}" if len(rows) > 1 else ""
    return f"{grid_of(head, rows)}\n\nA control lacks what its row is to be judged by, and that alone{corrected}."


def not_run_here(lines, table):
    """What stands in place of a table that this profile does not run: a sentence, and the reported figures if there are any."""
    known = "; ".join(dict.fromkeys(lines.loc[lines["n"] > 0, "row"]))
    text = "Not run in this profile" + (f", but for rows that other tables show ({known})" if known else "")
    notes, blocks = Notes(), [f"{text}; `run:` in params.yaml says what is, and reports/digits has every table whole."]
    figures = lines[lines["reported"].notna()].drop_duplicates("row").to_dict("records")
    if figures:
        cells = [[line["row"], notes.cell(line["reported"], line["tier"], line["source"])] for line in figures]
        blocks += [f"Reported for {table.get('reported_for', 'other data')}:", grid_of(["row", "reported"], cells)]
        marked = ["† known only from a third party's reading note."] * any(line["tier"] == "C" for line in figures)
        blocks.append(" ".join([*marked, *notes.legend()]))
    blocks.append(reported_elsewhere(lines, table))
    return "\n\n".join(block for block in blocks if block) + "\n"


def reported_elsewhere(lines, table):
    """The figures reported for pairs that did not run here, as a table of their own; "" when there are none."""
    rows = [row for row in table["rows"] if by_pair(row)]
    pairs = list(dict.fromkeys(pair for row in rows for pair in row["reported"]))
    pairs = [pair for pair in pairs if pair not in set(lines.loc[lines["n"] > 0, "pair"])]
    if not pairs:
        return ""
    notes, body = Notes(), []
    for row in rows:
        figures = [row["reported"].get(pair, {}) for pair in pairs]
        body.append([row["row"], *(notes.cell(f.get("value"), f.get("tier"), f.get("source")) for f in figures)])
    title = f"**Reported elsewhere, not measured here**: {table.get('reported_for', 'other pairs')}, top-1 %."
    return f"{title}\n\n{grid_of(['row', *pairs], body)}\n\n{' '.join(notes.legend())}"
