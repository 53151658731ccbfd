"""Tables as Markdown."""

from functools import cache

import numpy as np
import pandas as pd

from kd.report.claims import IN_BOLD, marked
from kd.report.summary import by_pair, judged
from kd.study.paths import FILES
from kd.study.yaml_files import read_yaml

IN_BRACKETS = "In brackets: what the interval alone says, without correction for the many comparisons."
READING_NOTE = "† known only from a third party's reading note."


def plus_minus(mean, width, sign=False):
    """As in "93.44 ± 0.68", with `sign` "+0.70 ± 0.91"; without "±" if there is no interval, "–" without a mean."""
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


def table_of(columns, lines):
    """A Markdown table of the DataFrame `lines`. columns: {head: cell of a line, or None to leave it out}."""
    columns = {head: cell for head, cell in columns.items() if cell}
    return grid_of(columns, [[cell(line) for cell in columns.values()] for line in lines.to_dict("records")])


def joined(blocks):
    return "\n\n".join(block for block in blocks if block)


def varies(values):
    return len({round(float(value), 2) for value in values}) > 1


@cache
def addresses():
    """{how a source begins: its URL, or None} of tables/sources.yaml."""
    return read_yaml(FILES / "tables" / "sources.yaml", "tables/sources.yaml")


def linked(source):
    """A source's text, with a link where it begins as one of tables/sources.yaml does which has an address."""
    for beginning, url in addresses().items():
        if url and source.startswith(beginning):
            return f"[{beginning}]({url}){source.removeprefix(beginning)}"
    return source


class Sources:
    """Where reported figures come from, numbered in the order in which they are first used."""

    def __init__(self):
        self.texts = []

    def cell(self, value, tier, source):
        """A figure with its source's number, "70.66 [1]"."""
        if value is None or pd.isna(value):
            return "not verified"
        if source not in self.texts:
            self.texts.append(source)
        return f"{value} [{self.texts.index(source) + 1}]{' †' if tier == 'C' else ''}"

    def of_line(self, line):
        return self.cell(line["reported"], line["tier"], line["source"])

    def __str__(self):
        return " ".join(f"[{number}] {linked(text)}." for number, text in enumerate(self.texts, 1))


def markdown(lines, table, comparisons=None):
    """A section: title, caption, table, and below it what the numbers are and where they come from; "" for a table without runs.

    lines: the `summary` of the table. comparisons: the table's `controls`, or None.
    """
    body = markdown_body(lines, table, comparisons)
    return joined([f"### {table['title']}", table.get("caption", "").strip(), body]) if body else ""


def markdown_body(lines, table, comparisons=None):
    """The section without title and caption: one table a pair, then the legend, notes on rows, reported figures of rows and pairs
    without runs. "" where nothing ran.

    Columns that would say the same in every row (epochs, seeds) go into the legend instead. Rows without runs are no rows here.
    """
    ran, sources, several = lines[lines["n"] > 0], Sources(), lines["pair"].nunique() > 1
    if not len(ran):
        return ""
    shown = lines[(lines["n"] > 0) | lines["mean"].notna()]  # the teacher's line has a mean and no runs
    columns = {
        "row": lambda line: line["row"],
        "epochs": (lambda line: f"{line['epochs']:.0f}" if line["n"] else "–") if varies(ran["epochs"]) else None,
        "seeds": (lambda line: line["n"] or "–") if varies(ran["n"]) else None,
        "cost": (lambda line: f"{line['cost']:.2f}" if np.isfinite(line["cost"]) else "–") if ran["cost"].notna().any() else None,
        "top-1 %, ours": lambda line: plus_minus(line["mean"], line["interval"]),
        "paired difference": lambda line: plus_minus(line["difference"], line["difference_interval"], sign=True),
        "verdict": judged,
    }
    blocks = []
    for pair, here in shown.groupby("pair", sort=False):
        reported = (lambda line: sources.of_line(line) if line["n"] else "–") if here["reported"].notna().any() else None
        grid = table_of({**columns, "reported": reported}, here)
        blocks.append(f"**{pair}**\n\n{grid}" if several else grid)
    blocks.append(legend(lines, table, comparisons))
    if comparisons is not None and len(comparisons):
        blocks.append(against_controls(comparisons, table))
    notes = ran.drop_duplicates("row").to_dict("records")
    blocks.append("\n".join(f"- {line['row']}: {line['note'].rstrip('.')}." for line in notes if line["note"]))
    blocks += [reported_without_runs(lines, table, sources), str(sources), reported_elsewhere(lines, table)]
    return joined(blocks) + "\n"


def reported_without_runs(lines, table, sources):
    """The figures reported for rows that have no runs here, as one sentence; "" when there are none. Adds to `sources`."""
    figures = lines[(lines["n"] == 0) & lines["reported"].notna()]
    if not len(figures):
        return ""
    setting = f" ({table['reported_for']})" if "reported_for" in table else ""
    pairs = lines["pair"].nunique() > 1 and any(by_pair(row) for row in table["rows"])
    cells = [f"{line['row']}{', ' + line['pair'] if pairs else ''}: {sources.of_line(line)}" for line in figures.to_dict("records")]
    note = f" {READING_NOTE}" if (figures["tier"] == "C").any() and not (lines.loc[lines["n"] > 0, "tier"] == "C").any() else ""
    return f"Reported by the papers, not run here{setting}: {'; '.join(dict.fromkeys(cells))}.{note}"


def how_judged(*families):
    """The sentences on brackets and on bold type that a table with these comparisons needs."""
    compared = pd.concat([family[["verdict", "claim"]] for family in families if family is not None])
    compared = compared[compared["verdict"] != ""]
    primary = compared["claim"] != ""
    open_too = compared.loc[primary, "verdict"].isin(["(higher)", "(lower)"]).any()  # stays beside a "cannot tell"
    return [IN_BRACKETS] * bool(open_too or (~primary).any()) + [IN_BOLD] * bool(primary.any())


def legend(lines, table, comparisons=None):
    """What the numbers are: of which images, runs, epochs and pair, how they were compared, and what is reported."""
    ran = lines[lines["n"] > 0]
    seeds = sorted({int(n) for n in ran["n"]})
    over = (
        f"mean and 95 % t-interval over {' or '.join(map(str, seeds))} seeds"
        if seeds[-1] > 1
        else "one seed each, so no intervals"
    )
    text = f"Test accuracy after the last epoch, on {ran['profile'].iloc[0]}: {over}"
    if not varies(ran["epochs"]):
        text += f", {ran['epochs'].iloc[0]:.0f} epochs each"
    if lines["pair"].nunique() == 1:
        text += f"; {ran['pair'].iloc[0]}"
    sentences = [f"{text}."]
    if ran["cost"].notna().any():
        sentences.append(f"Cost: multiply-adds of training, student and teacher together, over those of plain KD.{once_for_all(ran)}")
    if tests := int(lines["p"].notna().sum()):
        both = ", over the seeds that both rows have" if varies(ran["n"]) else ""
        baseline = table.get("baseline", "KD")
        count = f"{tests} comparison{'s' if tests > 1 else ''}"
        sentences.append(f"Differences are paired by seed, against {baseline}{both}; {count}.")
        sentences += how_judged(lines, comparisons)
    if ran["reported"].notna().any():
        if "reported_for" in table:
            advice = "compare the order with ours, not the level, unless data and pair agree"
            sentences.append(f"Reported: {table['reported_for']}; {advice}.")
        if ran["reported"].isna().any():
            sentences.append("Not verified: no source known to us gives the figure.")
    elif lines["reported"].isna().all() and not any(by_pair(row) for row in table["rows"]):
        setting = f" ({table['reported_for']})" if "reported_for" in table else ""
        sentences.append(f"Reported figures{setting}: none verified, so no such column.")
    if (ran["tier"] == "C").any():
        sentences.append(READING_NOTE)
    return " ".join(sentences)


def once_for_all(ran):
    """What training the teachers themselves costs, as a sentence; "" where that is not known."""
    parts = []
    for supernet, what in ((False, "the teacher"), (True, "the supernet, with all that it grew from,")):
        mine = ran[(ran["supernet"] == supernet) & (ran["teacher_cost"] > 0)]
        values = mine.groupby("pair", sort=False)["teacher_cost"].mean()
        each = [f"{value:.1f}{f' ({pair})' if ran['pair'].nunique() > 1 else ''}" for pair, value in values.items()]
        if each:
            parts.append(f"{what} {', '.join(each)}")
    return f" The training of teachers, once for all rows, comes on top: {'; '.join(parts)}." if parts else ""


def against_controls(comparisons, table):
    """The table of a table's `controls`, and below it what a control is, where one of them is."""
    pairs = set(zip(comparisons["row"], comparisons["control"], strict=True))
    said = "Rows stand here because a claim sets them against each other."
    if any((row["row"], control) in pairs for row in table["rows"] for control in row.get("control", ())):
        said = "A control is the same run without the ingredient under test; other rows stand here because a claim sets the two against each other."
    columns = {
        "pair": (lambda line: line["pair"]) if comparisons["pair"].nunique() > 1 else None,
        "row": lambda line: line["row"],
        "against": lambda line: line["control"],
        "paired difference": lambda line: plus_minus(line["mean"], line["interval"], sign=True),
        "seeds": lambda line: line["pairs"],
        "verdict": marked,
    }
    return f"{table_of(columns, comparisons)}\n\n{said}"


def reported_elsewhere(lines, table):
    """The figures reported for pairs that did not run here, as a table of their own; "" when there are none."""
    rows = [row for row in table["rows"] if by_pair(row)]
    ran = set(lines.loc[lines["n"] > 0, "pair"])
    pairs = [pair for pair in dict.fromkeys(pair for row in rows for pair in row["reported"]) if pair not in ran]
    if not pairs:
        return ""
    sources, body = Sources(), []
    for row in rows:
        figures = [row["reported"].get(pair, {}) for pair in pairs]
        body.append([row["row"], *(sources.cell(f.get("value"), f.get("tier"), f.get("source")) for f in figures)])
    title = f"**Reported elsewhere, not measured here**: {table.get('reported_for', 'other pairs')}, top-1 %."
    return joined([title, grid_of(["row", *pairs], body), str(sources)])
