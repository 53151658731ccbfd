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
import os
from pathlib import Path

import pandas as pd
import yaml

from kd import checkpoints
from kd.errors import Problem, nearest
from kd.records import interval
from kd.study import ROOT, Study, execute, forget, key_of

KEYS = ("knowledge", "curriculum", "grid", "parameters", "epochs")  # of a search's file
FIRST_SEED = 1000  # the tables' seeds begin at 0: a parameter must not be chosen on the runs that it is then reported on


def names():
    """The searches there are."""
    return sorted(path.stem for path in (ROOT / "searches").glob("*.yaml"))


def load_search(name):
    """The search `name` from searches/NAME.yaml: {"knowledge", "curriculum", "grid"}. Raises Problem for what it does not know."""
    if name not in names():
        raise Problem(f"unknown search {name!r}{nearest(name, names())}; searches/ has {', '.join(names())}")
    search = {"curriculum": "fixed", **yaml.safe_load((ROOT / "searches" / f"{name}.yaml").read_text())}
    for key in search:
        if key not in KEYS:
            raise Problem(f"searches/{name}.yaml: unknown key {key!r}{nearest(key, KEYS)}; known: {', '.join(KEYS)}")
    methods = {*search["knowledge"], search["curriculum"], "recipe"}
    for path in search["grid"]:
        method, _, parameter = path.partition(".")
        if method not in methods or not parameter:
            raise Problem(f"searches/{name}.yaml: {path!r} names no parameter of {', '.join(sorted(methods))}; write METHOD.PARAMETER")
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


def run_search(name, folder=None):
    """Run a search on the pairs and under the recipe of params.yaml; write and return its table, best line marked."""
    search, study = load_search(name), Study(f"search-{name}")
    settings = study.params.get("search") or {}
    seeds, share = settings.get("seeds", 3), settings.get("epochs", 1.0)
    if not len(study.data.labels["validation"]):
        raise Problem("a search needs validation images, and this profile holds none out; raise data.validation")
    study.folder = ROOT / "runs" / study.profile / "searches" / name
    pair, lines, wanted = study.pairs(name)[0], [], {}
    for candidate in candidates(search):
        row, keys = row_of(search, candidate, share), []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            run, paths = study.run_of({"paper": name}, row, pair, seed)
            keys.append(key_of(run))
            wanted[keys[-1]] = (run, paths, False)
        lines.append((candidate, keys))
    study.records, machines = execute(list(wanted.values()), study.stage)
    study.save(machines)
    forget(study.folder)
    table = []
    for candidate, keys in lines:
        mean, width = interval([study.records[key]["top1_val"] for key in keys])
        table.append({**candidate, "validation": mean, "interval": width, "seeds": len(keys), "keys": " ".join(keys)})
    table = pd.DataFrame(table)
    table.insert(0, "best", [index == chosen(table) for index in range(len(table))])
    folder = Path(folder or os.environ.get("KD_REPORTS") or ROOT / "reports" / study.profile / "searches")
    checkpoints.write_atomically(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return table
