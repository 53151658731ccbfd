"""A profile's reports: results.csv, claims.csv, facts.json, tables.md with every table and how to read them, and a figure a table."""

import io
import json

import matplotlib.pyplot as plt

from kd.checkpoints import write_atomically
from kd.report import claims, effects, figures, findings
from kd.report.conclusions import conclusions
from kd.report.markdown import READING_NOTE, Sources, grid_of, joined
from kd.report.summary import controls, summary
from kd.report.tables import load_records, names, read_results, render
from kd.study import profiles
from kd.study.parameters import study_parameters
from kd.study.paths import STAGES, reports_path, runs_path, scratch_unless_pipeline, teacher_path
from kd.study.records import COLUMNS, read_json
from kd.study.runs import open_teacher
from kd.study.tables import asked_rows, load_table

HOW_TO_READ = """\
Generated from the records of {runs} runs; do not edit. `python -m kd show TABLE ROW` prints the records behind a row, \
e.g. `python -m kd show kd_main KD`. Of all comparisons, those that test what a paper claims \
(claims/) are one family, their verdicts hold in every table, and ../claims.md has them with their tests, and says which runs are older. All \
others are exploratory: in brackets stands what the interval says by itself, without correction. Intervals are over the \
student's seeds alone: one teacher and one choice of training images underlie all runs.
"""
RESULTS = """<a id="columns"></a>

## Columns of results.csv

One line a run and row; a run that several tables share stands there once for each.

```python
runs = pandas.read_csv("results.csv")
```
"""
ON_REQUEST = """\
<a id="more"></a>

## More tables on request

This profile leaves these out. What stands in the second column, under `run:` in params.yaml, beside what its stage has there, asks for a \
table; then `dvc repro` trains its runs."""


def reports_folder():
    """Where reports are written: reports/PROFILE by the pipeline, below scratch/ by a notebook opened by hand."""
    return scratch_unless_pipeline(reports_path(study_parameters()["profile"]))


def small_png(figure, colours=24):
    """A figure as the bytes of a PNG with a palette: a third of the size, and plots have few colours."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png", metadata={"Software": None})
    return figures.with_palette(whole.getvalue(), colours)


def write_reports(folder=None):
    """Write results.csv, claims.csv, facts.json, tables.md and figures/ of the profile in force. Returns the DataFrame of all runs.

    folder: default `reports_folder`. The tables come from results.csv as written, rounding included, so that whoever
    reads that file gets the same numbers.
    """
    params, folder = study_parameters(), folder or reports_folder()
    runs, _ = load_records(params["profile"])
    facts = facts_of(params["profile"])
    write_atomically(folder / "facts.json", json.dumps(facts, indent=1, sort_keys=True) + "\n")
    runs = runs.sort_values(["table", "pair", "row", "seed"], kind="stable")
    write_atomically(folder / "results.csv", runs.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    runs = read_results(folder / "results.csv")
    for old in (folder / "figures").glob("*.png"):
        old.unlink()
    judged = claims.judge(runs)
    write_atomically(folder / "claims.csv", judged.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    plt.close(plt.figure())  # loads a notebook's backend, which turns on what rc_context would turn off again
    with plt.rc_context():
        figures.style()
        sections = {name: claims.decided(text, judged) for name in names() if (text := section(name, runs, folder, judged))}
    left_out = [name for name in names() if name not in sections]
    saw = findings.sentences(params["profile"], "tables", runs, facts, strict=findings.as_published())
    write_atomically(folder / "tables.md", page(params, runs, sections, left_out, saw))
    return runs


def facts_of(profile):
    """{stage: {name: value}}: what the profile's notebooks saw."""
    paths = {stage: runs_path(profile, stage) / "facts.json" for stage in STAGES}
    return {stage: read_json(path, {}) for stage, path in paths.items() if path.exists()}


def section(name, runs, folder, judged):
    """A table's part of tables.md, whose figure is written below `folder`; "" for a table without runs. judged: of `claims.judge`."""
    body, lines = render(name, runs)
    if not body:
        return ""
    accuracy = effects.accuracies(runs) if name == "combined" and len(lines) else ()
    if "kd" in accuracy:
        sentences = "".join(f"- {sentence}\n" for sentence in conclusions(accuracy, judged=judged))
        body += f"\n**In words**, computed from these numbers:\n\n{sentences}"
        figure, colours = figures.heat_map(*effects.gain_grid(accuracy)), 160
    elif name == "lengths":
        figure, colours = figures.over_length(controls(runs, load_table(name))), 96
    else:
        figure, colours = figures.table_figure(lines), 24
    if figure:
        write_atomically(folder / "figures" / f"{name}.png", small_png(figure, colours))
        plt.close(figure)
        body += f"\n![{name}](figures/{name}.png)\n"
    return f'<a id="{name}"></a>\n\n{body}'


def page(params, runs, sections, left_out=(), saw=()):
    """tables.md: what must be known of the study and what was seen, contents, sections {table name: Markdown}, the tables that this
    profile leaves out, columns of results.csv.
    """
    lines = profiles.about(params["profile"])
    if lines and not findings.as_published():
        lines = [*lines, "**These runs are of an edited params.yaml.** What stands above is said of the profile as it comes, and may not hold here."]
    about = "".join(f"- {line}\n" for line in lines)
    contents, chapters = [], []
    for stage, title in STAGES.items():
        if mine := {name: table for name in sections if (table := load_table(name))["stage"] == stage}:
            contents += [f"- **{title}**", *(f"  - [{table['title']}](#{name})" for name, table in mine.items())]
            chapters += [f"## {title}\n", *(sections[name] for name in mine)]
    teachers = teachers_in_words(params)
    head = [
        f"# Every table: {params['profile']}\n",
        about,
        f"## What we saw\n\n{findings.as_list(saw)}" if saw else "",
        HOW_TO_READ.format(runs=runs["key"].nunique()),
        f"{teachers}\n" if teachers else "",
    ]
    pending = [name for name in left_out if asked_rows(load_table(name), params)]
    if pending:
        head.append(f"**Still to run in this study**: {', '.join(load_table(name)['title'] for name in pending)}.\n")
    if left_out := [name for name in left_out if name not in pending]:
        contents.append("- [More tables on request](#more)")
        chapters.append(on_request(left_out, runs[:0]))
    tail = [RESULTS, grid_of(["column", "meaning"], COLUMNS.items()) + "\n"]
    return "\n".join([*filter(None, head), *contents, "- [Columns of results.csv](#columns)\n", *chapters, *tail])


def on_request(left_out, no_runs):
    """The section that lists the tables which this profile leaves out, by name: how each is asked for, and what is reported.

    no_runs: a DataFrame of runs without a line.
    """
    rows, sources = [], Sources()
    for name in left_out:
        table = load_table(name)
        lines = summary(no_runs, table)
        figures = [f"{line['row']}: {sources.of_line(line)}" for line in lines[lines["reported"].notna()].to_dict("records")]
        reported = f"{table.get('reported_for', 'other data')}; {'; '.join(figures)}" if figures else "–"
        rows.append([f'<a id="{name}"></a>{table["title"]}', f"`{table['stage']}: {{{name}: all}}`", reported])
    grid = grid_of(["table", "under `run:`", "reported by the papers"], rows)
    note = READING_NOTE if "†" in grid else ""
    return joined([ON_REQUEST, grid, f"{sources} {note}".strip()]) + "\n"


def teachers_in_words(params):
    """One sentence with the test accuracy of every trained teacher and supernet at full width; "" without any."""
    found = []
    for kind, key, what in (("route", "teachers", ""), ("supernet", "supernets", " as a supernet at full width")):
        for network in params.get(key) or []:
            path = teacher_path(params["profile"], kind, network)
            if path.exists():
                found.append(f"{network}{what} {open_teacher(kind, str(path), 'cpu').accuracy[-1]['test']:.2f} %")
    return f"The teachers themselves, converged, on the same test images: {', '.join(found)}." if found else ""
