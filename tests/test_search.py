"""Searches: stated grids, validation only, seeds of their own."""

import pandas as pd
import pytest
import tiny

from kd import search
from kd.errors import Problem
from kd.methods import make, resolved
from kd.recipe import Recipe
from kd.study import ROOT, key_of


def test_every_search_is_a_grid_of_real_parameters():
    for search_name in search.names():
        found = search.load_search(search_name)
        methods = [*found["knowledge"], found["curriculum"]]
        for candidate in search.candidates(found):
            options = {}
            for name, value in candidate.items():
                method, _, parameter = name.partition(".")
                options.setdefault(method, {})[parameter] = value
            Recipe.of(options.pop("recipe", {}))
            assert resolved(methods, options)
            make(found["knowledge"], found["curriculum"], options)
        assert len(search.candidates(found)) == len({tuple(c.values()) for c in search.candidates(found)})


def test_the_searches_of_profiles_exist():
    import yaml

    for path in (ROOT / "profiles").glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())["searches"]) <= set(search.names())


def test_the_best_on_validation_is_chosen_and_the_earlier_of_equals():
    assert search.chosen(pd.DataFrame({"validation": [90.0, 92.0, 92.0, 91.0]})) == 1


def test_a_search_goes_by_validation_and_runs_seeds_of_its_own(tmp_path, monkeypatch):
    class OnePair:
        """What a search asks of a Study; a run is its alpha and its seed."""

        stage, profile, params, data = "search-x", "tiny", {"search": {"seeds": 2}}, tiny.data()
        __init__ = save = lambda self, _: None

        def pairs(self, name):
            return [("teacher", "student")]

        def run_of(self, table, row, pair, seed):
            return {"alpha": row["kd"]["alpha"], "seed": seed}, {}

    asked = []

    def execute(runs, title):  # the more alpha, the better on validation images, and the worse on the test's
        asked.extend(run for run, _, _ in runs)
        return {key_of(run): {"top1_val": 100 * run["alpha"], "top1_last": 90 - 100 * run["alpha"]} for run in asked}, {}

    (tmp_path / "searches").mkdir()
    (tmp_path / "searches" / "x.yaml").write_text("knowledge: [kd]\ngrid: {kd.alpha: [0.1, 0.5, 0.3]}\n")
    for name, value in {"ROOT": tmp_path, "Study": OnePair, "execute": execute, "forget": lambda folder: None}.items():
        monkeypatch.setattr(search, name, value)
    search.run_search("x", tmp_path)
    table = pd.read_csv(tmp_path / "x.csv")
    assert table["best"].tolist() == [False, True, False] and table["validation"].tolist() == [10, 50, 30]
    assert {run["seed"] for run in asked} == {search.FIRST_SEED, search.FIRST_SEED + 1} and len(asked) == 6


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(Problem, match=r"unknown search 'rcoo' \(did you mean 'rco'\?\)"):
        search.load_search("rcoo")
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches" / "x.yaml").write_text("knowledge: [kd]\ngrid: {kr.weight: [1]}\n")
    (tmp_path / "searches" / "y.yaml").write_text("knowledge: [kd]\ngrid: {kd.alpha: [1]}\nepoch: 1.0\n")
    monkeypatch.setattr(search, "ROOT", tmp_path)
    with pytest.raises(Problem, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        search.load_search("y")
    with pytest.raises(Problem, match="'kr.weight' names no parameter of fixed, kd, recipe"):
        search.load_search("x")


def test_a_candidate_is_a_row_and_a_search_may_say_how_long_it_trains():
    found = {"knowledge": ["kd"], "curriculum": "rco", "parameters": {"rco": {"strategy": "one-stage"}}}
    row = search.row_of(found, {"rco.anchors": 3, "kd.alpha": 0.5}, 0.2)
    assert row["rco"] == {"strategy": "one-stage", "anchors": 3} and row["kd"] == {"alpha": 0.5} and row["epochs"] == 0.2
    assert "anchors" not in found["parameters"]["rco"]  # the next candidate begins with what is the same in all
    assert search.row_of({**found, "epochs": 1.0}, {}, 0.2)["epochs"] == 1.0


def test_search_seeds_are_none_of_a_tables():
    import yaml

    for path in (ROOT / "profiles").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["seeds"] <= search.FIRST_SEED
