"""Tables of the whole study: laid out, written to reports/, shown cell by cell, planned, and copied into README.md."""

import io
import json
import os
from functools import cache
from pathlib import Path

import pandas as pd
from PIL import Image

from kd import checkpoints
from kd.errors import Problem
from kd.records import (
    COLUMNS,
    controls,
    frame,
    grid_of,
    judged,
    markdown,
    plus_minus,
    read_records,
    summary,
)
from kd.study import (
    ROOT,
    STAGES,
    asked_rows,
    load_table,
    open_teacher,
    parameters_file,
    stage_of,
    table_names,
    teacher_file,
)


@cache
def names():
    """Every table's name, in the order in which the methods are taught, each paper's main one first."""
    places = {name: list(STAGES).index(stage_of(load_table(name))) for name in table_names()}
    first = ("main", "common", "headline")
    return sorted(places, key=lambda name: (places[name], not name.endswith(first), name))


def display(name, runs):
    """The table `name` from the records `runs` (a DataFrame of Study.run), as a rendered Markdown cell."""
    from IPython.display import Markdown

    return Markdown(laid_out(name, runs)[0])


def laid_out(name, runs):
    """(the table as Markdown, its rows that ran as kd.records.summary has them).

    A sentence and no row where the parameters in force ask for none of its rows, and one table before this one, in the order of
    `names`, shows every run that other tables have in common with it.
    """
    table = load_table(name)
    lines = summary(runs, table)
    found = lines[lines["n"] > 0]
    keys = runs.groupby("table")["key"].agg(set)
    repeated = any(keys.get(name, set()) <= keys.get(before, set()) for before in names()[: names().index(name)])
    if repeated and not asked_rows(table, parameters_file()):
        found = found[:0]
    return markdown(lines, table, len(found) > 0, controls(runs, table)), found


def lines_of(name, runs):
    """The rows of the table that ran, as `laid_out` has them."""
    return laid_out(name, runs)[1]


def say(line, baseline="KD"):
    """One sentence on a line of a summary, from its numbers alone."""
    if not line["n"] or pd.isna(line["difference"]):
        return f"{line['row']}: {plus_minus(line['mean'], line['interval'])} %, nothing to compare it with."
    gap = plus_minus(line["difference"], line["difference_interval"], sign=True)
    meaning = {
        "no difference shown": "no difference shown: the interval covers zero",
        "not after correction": "no claim: the interval excludes zero, but not after Holm's correction",
        "no interval": "no claim: one run, or every seed differs alike, so there is no interval",
    }.get(line["verdict"], judged(line))
    return f"{line['row']} against {baseline}: {gap} points over {line['pairs']:.0f} paired seed{'s' * (line['pairs'] != 1)}: {meaning}."


def said(name, runs):
    """`say` for every row that ran but the baseline, as a Markdown list for a notebook; None where there is nothing to say."""
    from IPython.display import Markdown

    lines, baseline = lines_of(name, runs), load_table(name).get("baseline", "KD")
    chosen = lines[lines["difference"].notna()].to_dict("records")
    return Markdown("\n".join(f"- {say(line, baseline)}" for line in chosen)) if chosen else None


def everything(profile=None):
    """(DataFrame of all rows of all stages, {key: record}) of a profile's records under runs/."""
    folder = ROOT / "runs" / (profile or parameters_file()["profile"])
    known, rows = {}, []
    for stage in sorted(path.parent for path in folder.glob("*/rows.json")):
        known |= {record["key"]: record for record in read_records(stage)}
        rows += json.loads((stage / "rows.json").read_text())
    if not rows:
        raise Problem(f"runs/{folder.name} holds no records; run `make repro` (or `dvc repro`) first")
    unique = {(row["table"], row["row"], row["pair"], row["seed"]): row for row in rows}
    return frame([known[row["key"]] | row for row in unique.values() if row["key"] in known], folder.name), known


# --- reports/


def read_results(path):
    """results.csv as a DataFrame; pandas.read_csv(path, dtype={"key": str}) is all it does."""
    if not Path(path).exists():
        raise Problem(f"{path} is missing; run `make repro` (or `dvc repro`) first")
    return pd.read_csv(path, dtype={"key": str}, keep_default_na=False, na_values=[""])


def reports_folder(profile=None):
    """Where reports go: what the pipeline says (KD_REPORTS), else scratch/, which nothing depends on."""
    return Path(os.environ.get("KD_REPORTS") or ROOT / "scratch" / (profile or parameters_file()["profile"]) / "reports")


def small_png(figure, colours=24):
    """A figure as the bytes of a PNG with a palette: a third of the size, and plots have few colours."""
    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=80, metadata={"Software": None})
    image = Image.open(whole).convert("RGB").quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True)
    return small.getvalue()


def write_reports(folder=None, profile=None):
    """Write results.csv, tables.md and a figure a table into `folder`. Returns the DataFrame of all runs.

    The tables are laid out from results.csv as written, rounding included, so that whoever reads that file gets the same numbers.
    """
    from matplotlib import pyplot as plt

    from kd import effects, figures

    profile = profile or parameters_file()["profile"]
    folder = Path(folder or reports_folder(profile))
    runs, _ = everything(profile)
    runs = runs.sort_values(["table", "pair", "row", "seed"], kind="stable")
    checkpoints.write_atomically(folder / "results.csv", runs.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    runs = read_results(folder / "results.csv")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for old in (folder / "figures").glob("*.png"):
        old.unlink()

    def save(figure, name, colours=24):
        checkpoints.write_atomically(folder / "figures" / f"{name}.png", small_png(figure, colours))
        plt.close(figure)
        return f"\n![{name}](figures/{name}.png)\n"

    def section(name):
        body, lines = laid_out(name, runs)
        accuracy = effects.accuracies(runs) if name == "combined" and len(lines) else None
        if accuracy is not None and "kd" in accuracy:
            body += "\n**In words**, computed from these numbers:\n\n" + "".join(f"- {text}\n" for text in effects.answer(accuracy))
            body += save(effects.heat_map(accuracy), name, 160)
        elif len(lines):
            body += save(figures.table_figure(lines), name)
        return f'<a id="{name}"></a>\n\n{body}'

    with plt.rc_context():
        figures.style()
        sections = {name: section(name) for name in names()}
    params = parameters_file()
    text = page(profile, runs, sections, params.get("about"), teachers_in_words(profile, params))
    checkpoints.write_atomically(folder / "tables.md", text)
    return runs


def teachers_in_words(profile, params):
    """One sentence with the test accuracy of every teacher that was trained, and of its supernet at full width; "" without any."""
    found = []
    for kind, key, what in (("route", "teachers", ""), ("supernet", "supernets", " as a supernet at full width")):
        for network in params.get(key) or []:
            path = teacher_file(profile, kind, network)
            if path.exists():
                found.append(f"{network}{what} {open_teacher(kind, str(path), 'cpu').accuracy[-1]['test']:.2f} %")
    return f"The teachers themselves, converged, on the same test images: {', '.join(found)}." if found else ""


def page(profile, runs, sections, about=None, teachers=""):
    """tables.md: what must be known of the study, contents, sections {table name: Markdown}, columns of results.csv."""
    text = [f"# Every table: {profile}\n"]
    text += ["".join(f"- {line}\n" for line in about)] if about else []
    text.append(
        f"Generated from the records of {runs['key'].nunique()} runs; do not edit. `python -m kd show TABLE ROW` prints the records behind a "
        "row, e.g. `python -m kd show kd_main KD`. A difference counts as better or worse only if its interval excludes zero and "
        "Holm's correction, for all comparisons of its table, leaves it below 5 %: so one difference may be claimed in a table of few "
        "rows and not in one of many, and what holds among all methods is what the common ground says. Intervals are over the student's "
        "seeds alone: one teacher, one split and one choice of few images underlie all runs.\n"
    )
    text += [f"{teachers}\n"] if teachers else []
    for stage, title in STAGES.items():
        mine = [name for name in sections if stage_of(load_table(name)) == stage]
        if mine:
            text.append(f"- **{title}**")
            text += [f"  - [{load_table(name)['title']}](#{name})" for name in mine]
    text.append("- [Columns of results.csv](#columns)\n")
    for stage, title in STAGES.items():
        mine = [name for name in sections if stage_of(load_table(name)) == stage]
        if mine:
            text += [f"## {title}\n", *(sections[name] for name in mine)]
    text.append('<a id="columns"></a>\n\n## Columns of results.csv\n')
    text.append("One line a run and row; a run that several tables share stands there once for each.\n")
    text.append('```python\nruns = pandas.read_csv("results.csv")\n```\n')
    text.append(grid_of(["column", "meaning"], COLUMNS.items()) + "\n")
    return "\n".join(text)
