"""Searches: stated grids, validation only, seeds of their own."""

import pandas as pd
import pytest
import tiny

from kd.errors import ConfigError
from kd.methods import make, resolved
from kd.recipe import Recipe
from kd.study import profiles, search
from kd.study.yaml_files import parse_value


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
    for name in profiles.names():
        assert set(parse_value(profiles.compose(name))["searches"]) <= set(search.names())


def test_the_best_on_validation_is_chosen_and_the_earlier_of_equals():
    assert search.chosen(pd.DataFrame({"validation": [90.0, 92.0, 92.0, 91.0]})) == 1


def test_a_search_goes_by_validation_and_runs_seeds_of_its_own(tmp_path, monkeypatch):
    asked = []

    class OnePair:
        """What a search asks of a Study; a run is its alpha and its seed."""

        stage, profile, params, data = "search x", "tiny", {"search": {"seeds": 2, "epochs": 1.0}}, tiny.data()
        __init__ = lambda self, _: None  # noqa: E731
        save = lambda self: None  # noqa: E731

        def pairs(self, name):
            return [("teacher", "student")]

        def run_of(self, table, row, pair, seed):
            return {"alpha": row["kd"]["alpha"], "seed": seed}, {}

        def train_missing(self, wanted):  # the more alpha, the better on validation images, and the worse on the test's
            asked.extend(run for run, _, keep in wanted.values() if not keep)
            return {key: {"top1_val": 100 * run["alpha"], "top1_last": 90 - 100 * run["alpha"]} for key, (run, *_) in wanted.items()}

    (tmp_path / "searches").mkdir()
    (tmp_path / "searches" / "x.yaml").write_text("knowledge: [kd]\ngrid: {kd.alpha: [0.1, 0.5, 0.3]}\n")
    monkeypatch.setattr(search, "FILES", tmp_path)
    monkeypatch.setattr(search, "Study", OnePair)
    search.run_search("x", tmp_path)
    table = pd.read_csv(tmp_path / "x.csv")
    assert table["best"].tolist() == [False, True, False] and table["validation"].tolist() == [10, 50, 30]
    assert {run["seed"] for run in asked} == {search.FIRST_SEED, search.FIRST_SEED + 1} and len(asked) == 6


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown search 'rcoo' \(did you mean 'rco'\?\)"):
        search.load_search("rcoo")
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches" / "x.yaml").write_text("knowledge: [kd]\ngrid: {kr.weight: [1]}\n")
    (tmp_path / "searches" / "y.yaml").write_text("knowledge: [kd]\ngrid: {kd.alpha: [1]}\nepoch: 1.0\n")
    wrong = {
        "knowledge: [kd": "searches/z.yaml is not YAML",
        "knowledge: [kd]\ngrid: {}": "grid: {} must be longer",
        "knowledge: [kd]\ngrid: {kd.alpha: []}": r"grid.kd.alpha: \[\] must be longer",
        "knowledge: [kd]\ngrid: {kd.alpha: [1]}\nparameters: {kdd: {}}": "parameters: unknown key 'kdd'",
        f"knowledge: [kd]\ngrid: {{kd.alpha: {[1] * 200}, kd.temperature: {[1] * 200}}}": "the grid has 40,000 candidates; at most 10,000",
    }
    monkeypatch.setattr(search, "FILES", tmp_path)
    for text, said in wrong.items():
        (tmp_path / "searches" / "z.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said) as caught:
            search.load_search("z")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        search.load_search("y")
    with pytest.raises(ConfigError, match="'kr.weight' names no parameter of fixed, kd, recipe"):
        search.load_search("x")


def test_a_candidate_is_a_row_and_a_search_may_say_how_long_it_trains():
    found = {"knowledge": ["kd"], "curriculum": "rco", "parameters": {"rco": {"strategy": "one-stage"}}}
    row = search.row_of(found, {"rco.anchors": 3, "kd.alpha": 0.5}, 0.2)
    assert row["rco"] == {"strategy": "one-stage", "anchors": 3} and row["kd"] == {"alpha": 0.5} and row["epochs"] == 0.2
    assert "anchors" not in found["parameters"]["rco"]  # the next candidate begins with what is the same in all
    assert search.row_of({**found, "epochs": 1.0}, {}, 0.2)["epochs"] == 1.0


def test_search_seeds_are_none_of_a_tables():
    for name in profiles.names():
        assert parse_value(profiles.compose(name))["seeds"] <= search.FIRST_SEED


def test_the_overview_names_what_stands_at_an_edge(tmp_path):
    table = pd.DataFrame({"best": [False, False, True], "a.weight": [1.0, 3.0, 10.0], "a.kind": ["x", "y", "x"], "b.share": [0.1, 0.5, 0.1]})
    table.assign(validation=[90.0, 91.0, 92.0], interval=1.0, seeds=5, keys="k").to_csv(tmp_path / "a.csv", index=False)
    text = search.overview(tmp_path)
    chosen = "a.weight 10.0, a.kind x, b.share 0.1"
    assert f"| [a](a.csv) | a.weight 1.0, 3.0, 10.0; a.kind x, y; b.share 0.1, 0.5 | {chosen} | 92.00 ± 1.00 | 5 | a.weight |" in text
