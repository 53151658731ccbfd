"""The tables of a study from its records, as Markdown and as sentences; and the records of a whole profile."""

from pathlib import Path

import pandas as pd

from kd.errors import ConfigError
from kd.report.markdown import markdown, plus_minus
from kd.report.summary import controls, summary
from kd.study.parameters import study_parameters
from kd.study.paths import STAGES, runs_path
from kd.study.records import frame, read_json, read_records
from kd.study.tables import asked_rows, load_table, table_names

MAIN = ("main", "common", "headline")  # how the names of main tables end
MEANING = {
    "(higher)": "higher",
    "(lower)": "lower",
    "(open)": "the interval covers zero",
    "(no interval)": "one run, or every seed differs alike, so there is no interval",
}


def names():
    """Every table's name, in the order in which the methods are taught; of each stage the main one first."""
    return [name for stage in STAGES for name in sorted(table_names(stage), key=lambda name: not name.endswith(MAIN))]


def display(name, runs):
    """The table `name` from `runs` (a DataFrame of kd.Study.run), as a rendered Markdown cell."""
    from IPython.display import Markdown

    return Markdown(render(name, runs)[0])


def render(name, runs):
    """(the table as Markdown, its rows that ran as kd.report.summary has them).

    A table without runs is "", and so is one that the parameters do not ask for (`run:`) if an earlier table shows all its runs.
    """
    table = load_table(name)
    lines = summary(runs, table)
    ran, keys = lines[lines["n"] > 0], runs.groupby("table")["key"].agg(set)
    earlier = names()[: names().index(name)]
    repeated = any(keys.get(name, set()) <= keys.get(other, set()) for other in earlier)
    if repeated and not asked_rows(table, study_parameters()):
        return "", ran[:0]
    return markdown(lines, table, controls(runs, table)), ran


def lines_of(name, runs):
    """The rows of the table that ran, as `render` has them."""
    return render(name, runs)[1]


def conclusion(line, baseline="KD"):
    """What a line of a summary says, as one sentence; exploratory, of its interval alone."""
    if not line["n"] or pd.isna(line["difference"]):
        return f"{line['row']}: {plus_minus(line['mean'], line['interval'])} %, nothing to compare it with."
    gap = plus_minus(line["difference"], line["difference_interval"], sign=True)
    over = f"{line['pairs']:.0f} paired seed{'' if line['pairs'] == 1 else 's'}"
    said = MEANING[line["verdict"]]
    if round(line["epochs"]) != round(line["baseline_epochs"]):
        said += f" ({line['epochs']:.0f} epochs against {line['baseline_epochs']:.0f})"
    return f"{line['row']} against {baseline}: {gap} points over {over}: {said}."


def conclusions(name, runs):
    """The `conclusion` of every row that was compared, as a Markdown list for a notebook; None where there is none."""
    from IPython.display import Markdown

    lines, baseline = lines_of(name, runs), load_table(name).get("baseline", "KD")
    compared = lines[lines["difference"].notna()].to_dict("records")
    return Markdown("\n".join(f"- {conclusion(line, baseline)}" for line in compared)) if compared else None


def load_records(profile):
    """(DataFrame of all rows of all stages, {key: record}) of a profile's records. ConfigError when there are none."""
    records, rows = {}, {}
    for folder in (runs_path(profile, stage) for stage in STAGES):
        records |= {record["key"]: record for record in read_records(folder)}
        for row in read_json(folder / "rows.json", []):
            rows[row["table"], row["row"], row["pair"], row["seed"]] = row
    if not rows:
        raise ConfigError(f"runs/{profile} holds no records; run `make repro` (or `dvc repro`) first")
    return frame([records[row["key"]] | row for row in rows.values() if row["key"] in records], profile), records


def read_results(path):
    """results.csv, or claims.csv, as a DataFrame, as pandas.read_csv(path, dtype={"key": str}) reads it. ConfigError for what is none."""
    if not Path(path).exists():
        raise ConfigError(f"{path} is missing; run `make repro` (or `dvc repro`) first")
    try:
        found = pd.read_csv(path, dtype={"key": str}, keep_default_na=False, na_values=[""])
    except ValueError:  # pandas' own errors are such
        found = pd.DataFrame()
    if not {"profile", "pair"} <= set(found):
        raise ConfigError(f"{path} is damaged; delete it and run `dvc repro` again, or restore it from git")
    return found
