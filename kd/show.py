"""The records behind a row of a table, as text: `python -m kd show TABLE ROW`."""

import pandas as pd

from kd.errors import Problem, nearest
from kd.study import ROOT, load_table, parameters_file
from kd.tables import everything, read_results, stage_of


def row_called(row, rows):
    """The one of `rows` that is called `row`, or the only one that has it in its name ("GS" finds "greedy search (GS)"), or None."""
    having = [name for name in rows if row.lower() in name.lower()]
    return row if row in rows else having[0] if len(having) == 1 else None


def show(table, row, profile=None):
    """The records behind a row as text: what ran, with which parameters, teacher, data and versions, and what came out.

    Without records, as on a fresh clone, what the committed reports/PROFILE/results.csv knows. Raises Problem when that is nothing.
    """
    profile = profile or parameters_file()["profile"]
    definition = load_table(table)
    rows = [r["row"] for r in definition["rows"]]
    if (found := row_called(row, rows)) is None:
        raise Problem(f"table {table} has no row {row!r}{nearest(row, rows)}; it has {', '.join(map(repr, rows))}")
    row = found
    if reason := next(r for r in definition["rows"] if r["row"] == row).get("not_run"):
        raise Problem(f"{table}, {row!r} is not run: {reason}")
    try:
        runs, known = everything(profile)
    except Problem:
        runs, known = read_results(ROOT / "reports" / profile / "results.csv"), {}
    here = runs[(runs["table"] == table) & (runs["row"] == row)].sort_values(["pair", "seed"])
    if not len(here):
        raise Problem(f"{table}, {row!r} has no records in profile {profile}; run `dvc repro {stage_of(definition)}`, if `run:` in params.yaml asks for the row")
    out = []
    for pair, group in here.groupby("pair", sort=False):
        first = group.iloc[0]
        out.append(f"{table} / {row} / {pair} (profile {profile})")
        out.append(f"  method      {first['method']}")
        if record := known.get(first["key"]):
            run = record["run"]
            for name, values in run["parameters"].items():
                if values:
                    out.append(f"  {name:<11} " + ", ".join(f"{k}={v}" for k, v in values.items()))
            out.append("  recipe      " + ", ".join(f"{k}={v}" for k, v in run["recipe"].items()))
            out.append("  teacher     " + (", ".join(f"{run['teacher']} {k} md5 {v}" for k, v in run["teacher_md5"].items()) or "none"))
            out.append("  versions    " + ", ".join(f"{k} {v}" for k, v in record["versions"].items()))
        else:
            out.append(f"  teacher     md5 {first['teacher_md5']}" if pd.notna(first["teacher_md5"]) else "  teacher     none")
            out.append(f"  (from reports/{profile}/results.csv; parameters, curves and versions come with runs/: `dvc pull` or `make repro`)")
        out.append(f"  data        {first['data']}, md5 {first['data_md5']}")
        out.append("  seed  epochs  top1_last  top1_val  top1_best_test  key")
        for line in group.to_dict("records"):
            numbers = f"{line['top1_last']:9.2f}  {line['top1_val']:8.2f}  {line['top1_best_test']:14.2f}"
            out.append(f"  {line['seed']:4d}  {line['epochs']:6d}  {numbers}  {line['key']}")
    return "\n".join(out)
