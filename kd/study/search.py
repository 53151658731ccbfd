"""Choosing a method's parameters on validation images: a small stated grid, every run recorded, the test images unseen.

    searches/kr.yaml              knowledge: [kd, kr]
                                  grid: {kr.weight: [1, 3, 10]}           also of the recipe: recipe.learning_rate
                                  parameters: {kr: {recoding: none}}      optional: what is the same in all
                                  epochs: 1.0                             optional: share of the recipe's epochs, whatever params.yaml says
    python -m kd search kr        writes reports/PROFILE/searches/kr.csv and says what came out best
    dvc repro search@kr           the same as a stage, for those listed under searches: in params.yaml

The values chosen are written into the profile by hand, with the search as their reason: no stage changes another's parameters.
"""

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from annotated_types import MinLen

from kd import checkpoints
from kd.errors import ConfigError, Positive, Section, nearest, several, validated
from kd.methods import CURRICULA, KNOWLEDGE
from kd.statistics import interval
from kd.study.parameters import FIRST_SEED
from kd.study.paths import FILES, reports_path, runs_path
from kd.study.runs import key_of
from kd.study.study import Study
from kd.study.tables import ParametersOfMethods
from kd.study.yaml_files import read_yaml

MOST_CANDIDATES = 10_000  # of a grid; more than that is a slip of the keyboard


class SearchFile(Section):
    """A file of searches/."""

    knowledge: several(Literal[tuple(KNOWLEDGE)])
    curriculum: Literal[tuple(CURRICULA)] = "fixed"
    grid: Annotated[dict[str, Annotated[several(Any), MinLen(1)]], MinLen(1)]
    parameters: ParametersOfMethods = ParametersOfMethods()
    epochs: Positive | None = None


def names():
    """The searches there are."""
    return sorted(path.stem for path in (FILES / "searches").glob("*.yaml"))


def load_search(name):
    """The search `name` from searches/NAME.yaml. Raises ConfigError for what it does not know."""
    if name not in names():
        raise ConfigError(f"unknown search {name!r}{nearest(name, names())}; searches/ has {', '.join(names())}")
    place = f"searches/{name}.yaml"
    search = read_yaml(FILES / place, place)
    validated(SearchFile, search, place)
    search = {"curriculum": "fixed", **search}
    methods = {*search["knowledge"], search["curriculum"], "recipe"}
    for path in search["grid"]:
        method, _, parameter = path.partition(".")
        if method not in methods or not parameter:
            raise ConfigError(f"{place}: {path!r} names no parameter of {', '.join(sorted(methods))}; write METHOD.PARAMETER")
    if (count := math.prod(map(len, search["grid"].values()))) > MOST_CANDIDATES:
        raise ConfigError(f"{place}: the grid has {count:,} candidates; at most {MOST_CANDIDATES:,}")
    return search


def candidates(search):
    """Every combination of the grid: a list of {"method.parameter": value}."""
    return [dict(zip(search["grid"], values, strict=True)) for values in itertools.product(*search["grid"].values())]


def row_of(search, candidate, share):
    """The row, as a table has it, that tries a candidate, over `share` of the recipe's epochs unless the search says how much."""
    row = {"row": str(candidate), "knowledge": search["knowledge"], "curriculum": search["curriculum"], "epochs": search.get("epochs", share)}
    row |= {method: dict(values) for method, values in search.get("parameters", {}).items()}
    for path, value in candidate.items():
        method, _, parameter = path.partition(".")
        row.setdefault(method, {})[parameter] = value
    return row


def chosen(table):
    """The index of the best line: highest mean validation accuracy; the earlier in the grid when two are equal."""
    return int(table["validation"].idxmax())


def wanted_by(name, study):
    """[(candidate, {key: (run, paths, keep the weights?)}), ...] of a search under a study's parameters."""
    search, settings = load_search(name), study.params["search"]
    pair, found = study.pairs(name)[0], []
    for candidate in candidates(search):
        row = row_of(search, candidate, settings["epochs"])
        runs = [study.run_of({"paper": name}, row, pair, seed) for seed in range(FIRST_SEED, FIRST_SEED + settings["seeds"])]
        found.append((candidate, {key_of(run): (run, paths, False) for run, paths in runs}))
    return found


def run_search(name, folder=None):
    """Run a search on the pairs and under the recipe of params.yaml; write and return its table, best line marked."""
    load_search(name)  # a misspelt name is said at once
    study = Study(f"search {name}")
    if not len(study.data.labels["validation"]):
        raise ConfigError("a search needs validation images, and this profile holds none out; raise data.validation")
    study.folder, lines = runs_path(study.profile, f"searches/{name}"), wanted_by(name, study)
    study.records = study.train_missing({key: item for _, wanted in lines for key, item in wanted.items()})
    study.save()
    table = []
    for candidate, wanted in lines:
        mean, width = interval([study.records[key]["top1_val"] for key in wanted])
        table.append({**candidate, "validation": mean, "interval": width, "seeds": len(wanted), "keys": " ".join(wanted)})
    table = pd.DataFrame(table)
    table.insert(0, "best", [index == chosen(table) for index in range(len(table))])
    folder = Path(folder or reports_path(study.profile) / "searches")
    checkpoints.write_atomically(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    checkpoints.write_atomically(folder / "README.md", overview(folder))
    return table


OVERVIEW = """\
# What was searched

Generated by `python -m kd search NAME`; do not edit. Each grid was judged on validation images alone, on seeds that no table uses. *At the \
edge*: the best value is the first or the last of those tried, so that a better one may lie beyond. ± is half of the 95 % interval: \
candidates within it of each other are not told apart.

| search | tried | best | validation accuracy, % | seeds | at the edge |
|---|---|---|---|---|---|
"""


def overview(folder):
    """README.md of a folder of searches: what each tried, what it chose, and which of the chosen values stand at an edge."""
    lines = []
    for path in sorted(folder.glob("*.csv")):
        table = pd.read_csv(path, dtype={"keys": str})
        best = table[table["best"]].iloc[0]
        grid = [column for column in table if "." in column]
        tried = "; ".join(f"{column} {', '.join(f'{value}' for value in dict.fromkeys(table[column]))}" for column in grid)
        values = ", ".join(f"{column} {best[column]}" for column in grid)
        edges = ", ".join(column for column in grid if at_edge(table[column], best[column])) or "–"
        accuracy = f"{best['validation']:.2f}" + (f" ± {best['interval']:.2f}" if pd.notna(best["interval"]) else "")
        lines.append(f"| [{path.stem}]({path.name}) | {tried} | {values} | {accuracy} | {best['seeds']} | {edges} |\n")
    return OVERVIEW + "".join(lines)


def at_edge(tried, value):
    """Whether a number is the least or the largest of three or more tried."""
    return pd.api.types.is_numeric_dtype(tried) and tried.nunique() > 2 and value in (tried.min(), tried.max())
