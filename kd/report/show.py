"""The study on the terminal: the records behind a row (`python -m kd show`) and the last screen of `make repro`."""

import textwrap

import pandas as pd

from kd.errors import ConfigError, nearest
from kd.report import conclusions, effects
from kd.report.claims import CONTRADICTED, OPEN, SUPPORTED, judge, load_claims
from kd.report.claims_page import contrast_in_words, in_words, studies
from kd.report.markdown import plus_minus
from kd.report.summary import judged, summary
from kd.report.tables import load_records, names, read_results
from kd.study import store
from kd.study.parameters import study_parameters
from kd.study.paths import reports_path
from kd.study.tables import load_table, table_names

WIDTH = 100  # columns of the last screen


def row_called(row, rows):
    """The one of `rows` called `row`, or the only one with that in its name ("GS": "greedy search (GS)"), or None."""
    having = [name for name in rows if row.lower() in name.lower()]
    return row if row in rows else having[0] if len(having) == 1 else None


def show(table, row, profile=None, versions=True):
    """The records behind a row as text: what ran, with which parameters, teacher, data and versions, and what came out.

    versions: also those under which a run was trained, where that was here. Without records, as on a fresh clone, what
    the committed reports/PROFILE/results.csv knows. ConfigError when that is nothing.
    """
    profile = profile or study_parameters()["profile"]
    definition = load_table(table)
    rows = {r["row"]: r for r in definition["rows"]}
    if (found := row_called(row, rows)) is None:
        raise ConfigError(f"table {table} has no row {row!r}{nearest(row, rows)}; it has {', '.join(map(repr, rows))}")
    if reason := rows[found].get("not_run"):
        raise ConfigError(f"{table}, {found!r} is not run: {reason}")
    try:
        runs, records = load_records(profile)
    except ConfigError:
        runs, records = read_results(reports_path(profile) / "results.csv"), {}
    here = runs[(runs["table"] == table) & (runs["row"] == found)].sort_values(["pair", "seed"])
    if not len(here):
        advice = f"run `dvc repro {definition['stage']}`, if `run:` in params.yaml asks for the row"
        raise ConfigError(f"{table}, {found!r} has no records in profile {profile}; {advice}")
    out = []
    for pair, group in here.groupby("pair", sort=False):
        first = group.iloc[0]
        out += [f"{table} / {found} / {pair} (profile {profile})", f"  method      {first['method']}"]
        if record := records.get(first["key"]):
            out += of_record(record, versions)
        else:
            out.append(f"  teacher     {f'md5 {first.teacher_md5}' if pd.notna(first.teacher_md5) else 'none'}")
            out.append(f"  (from reports/{profile}/results.csv; parameters and curves: `dvc pull` or `make repro`)")
        out.append(f"  data        {first['data']}, md5 {first['data_md5']}")
        out.append("  seed  epochs  top1_last  top1_val  top1_best_test  key")
        for line in group.to_dict("records"):
            numbers = f"{line['top1_last']:9.2f}  {line['top1_val']:8.2f}  {line['top1_best_test']:14.2f}"
            out.append(f"  {line['seed']:4d}  {line['epochs']:6d}  {numbers}  {line['key']}")
    return "\n".join(out)


def of_record(record, versions):
    """Lines on a run's parameters, recipe and teacher; with `versions` also on those, where the store has them."""
    run, entry = record["run"], store.load(record.get("program", ""), record["key"])
    lines = [f"  {name:<11} {listed(values, '=')}" for name, values in run["parameters"].items() if values]
    lines.append(f"  recipe      {listed(run['recipe'], '=')}")
    teacher = ", ".join(f"{run['teacher']} {kind} md5 {md5}" for kind, md5 in run["teacher_md5"].items())
    lines.append(f"  teacher     {teacher or 'none'}")
    if versions and entry and entry["machine"]:
        lines.append(f"  versions    {listed(entry['machine']['versions'], ' ')}")
    return lines


def listed(values, between):
    return ", ".join(f"{name}{between}{value}" for name, value in values.items())


def summary_screen(profile):
    """The end of `make repro` as plain text: the main table, the conclusions, and where the reports are."""
    folder = reports_path(profile)
    runs = read_results(folder / "results.csv")
    name = next(name for name in ("common", *names()) if (runs["table"] == name).any())
    table = load_table(name)
    lines = summary(runs, table)
    lines = lines[lines["n"] > 0]
    pairs = list(lines["pair"].unique())
    lines = lines[lines["pair"] == pairs[0]]
    which = f"{pairs[0]} (the first of {len(pairs)} pairs)" if len(pairs) > 1 else pairs[0]
    seeds = " or ".join(map(str, sorted(set(lines["n"]))))
    notebooks = ", ".join(sorted(path.stem for path in (folder / "notebooks").glob("*.ipynb")))
    return "\n".join(
        [
            f"Profile {profile}: {runs['key'].nunique()} students trained on {runs['data'].iloc[0]}.",
            "",
            *wrapped(f"{table['title']}. Teacher -> student: {which}, {seeds} seeds."),
            "",
            *main_table(lines, table.get("baseline", "KD")),
            "",
            *wrapped(
                "±: 95 % interval over seeds; of differences, paired by seed. In brackets: exploratory, what the interval "
                "says by itself."
            ),
            "",
            *claims_in_words(runs),
            *combined_study(runs),
            f"Reports, in reports/{profile}/:",
            *wrapped(f"notebooks/, to be read in this order: {notebooks}" if notebooks else "", "- "),
            *wrapped("claims.csv: what the papers claim, tested; tables.md: every table, with the papers' figures; results.csv: a line a run", "- "),
            *wrapped(f"the records behind a row: python -m kd show {name} '{lines['row'].iloc[-1]}'", "- "),
        ]
    )


def main_table(lines, baseline):
    """Lines of a summary as aligned plain text: names and verdicts to the left, numbers to the right."""
    cells = [["row", "epochs", "accuracy (%)", f"against {baseline}", "verdict"]]
    for line in lines.to_dict("records"):
        accuracy = plus_minus(line["mean"], line["interval"])
        difference = plus_minus(line["difference"], line["difference_interval"], sign=True)
        cells.append([line["row"], f"{line['epochs']:.0f}", accuracy, difference, judged(line | {"claim": ""})])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    out = []
    for row, *numbers, verdict in cells:
        numbers = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
        out.append("  ".join([row.ljust(widths[0]), *numbers, verdict]).rstrip())
    return [out[0], "-" * max(map(len, out)), *out[1:]]


def claims_in_words(runs):
    """What the papers claim, by verdict."""
    lines = judge(runs)
    if not len(lines):
        return []
    out = ["What the papers claim, tested as one family (reports/claims.md):"]
    for verdict in (SUPPORTED, CONTRADICTED, OPEN):
        names = list(lines.loc[lines["verdict"] == verdict, "claim"])
        out += wrapped(f"{verdict}: {', '.join(names) or 'none'}", "- ")
    return [*out, ""]


def show_claim(name):
    """A claim as text: what it says, how it is tested, what is reported, and what every study says of it."""
    claims = load_claims()
    if (found := row_called(name, claims)) is None and name in table_names():
        rows = ", ".join(repr(row["row"]) for row in load_table(name)["rows"])
        raise ConfigError(f"{name} is a table; name one of its rows too, as in `python -m kd show {name} ROW`: {rows}")
    if found is None:
        raise ConfigError(f"no claim {name!r}{nearest(name, claims)}; there are {', '.join(map(repr, claims))}")
    claim = claims[found]
    reported = f"{claim['effect']:+.2f} points ({claim['source']}, tier {claim['tier']})" if claim["effect"] is not None else "not verified"
    out = [f"{found} ({claim['paper']})", *wrapped(claim["says"], "  "), f"  tested by   {contrast_in_words(claim)}, table {claim['table']}"]
    out += [f"  reported    {reported}; {claim['setting']}", f"  matters     from {claim['matters']:g} points on: {claim['reason']}"]
    for lines in studies().values():
        for line in lines[lines["claim"] == found].to_dict("records"):
            out.append(f"  {line['profile']}, {line['pair']}: {in_words(line)}")
    return "\n".join(out)


def combined_study(runs):
    """The combined study's first three conclusions and its last; nothing where it did not run."""
    if not runs["method"][runs["table"] == "combined"].isin(effects.cells()).any():
        return []
    found = conclusions.conclusions(effects.accuracies(runs), judged=judge(runs))
    chosen = [*found[:3], found[-1]] if len(found) > 4 else found
    lines = [line for sentence in chosen for line in wrapped(sentence.replace("`", ""), "- ")]
    return ["All methods and their sums, at equal epochs (notebook 07):", *lines, ""]


def wrapped(text, bullet=""):
    """`text` in lines of at most WIDTH columns."""
    indents = {"initial_indent": bullet, "subsequent_indent": " " * len(bullet)}
    return textwrap.wrap(text, WIDTH, **indents, break_long_words=False, break_on_hyphens=False)
