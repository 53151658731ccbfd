"""The files in tables/, and which of their rows a study runs."""

import json
import re

import pytest
import yaml
from made_up import record_of, write_params

from kd.errors import ConfigError
from kd.methods import CURRICULA, KNOWLEDGE, make
from kd.report.effects import cells
from kd.report.summary import by_pair
from kd.study import tables
from kd.study.paths import ROOT, STAGES, appendix_paths, notebook_path
from kd.study.plan import Planned, student_epochs
from kd.study.records import method_name
from kd.study.runs import key_of
from kd.study.tables import asked_rows, load_table, table_names

pytest_plugins = ["made_up_root"]


@pytest.fixture
def study(root, monkeypatch):
    """study(run={...}): a Planned study whose trainings are noted in study.trained, and end there."""

    class Trained(Exception):
        pass

    def run_parallel(wanted, *_):
        made.trained = sorted(method_name(run) for run, *_ in wanted)
        raise Trained

    def made(**changes):
        write_params(root / "params.yaml", **changes)
        return Planned()

    def train(planned, *names, **options):
        with pytest.raises(Trained):
            planned.run(*names, **options)
        return made.trained

    made.train = train
    monkeypatch.setattr("kd.study.study.run_parallel", run_parallel)
    monkeypatch.setattr("kd.study.store.absorb", lambda profile: 0)
    return made


@pytest.mark.parametrize("name", table_names())
def test_table_file(name):
    table = load_table(name)
    assert table["caption"]
    rows = [row["row"] for row in table["rows"]]
    assert table.get("baseline", "KD") in rows, "differences need their baseline row"
    overrides = table.get("parameters") or {}
    assert set(overrides) <= {*KNOWLEDGE, *CURRICULA}
    for row in table["rows"]:
        figures = row.get("reported") or {}
        for figure in figures.values() if by_pair(row) else [figures] if figures else []:
            assert len(figure["source"]) > 5, row
        if "not_run" in row:
            assert len(row["not_run"]) > 10, row
            continue
        knowledge, curriculum = row.get("knowledge", ["kd"]), row.get("curriculum", "fixed")
        values = {method: {**(overrides.get(method) or {}), **(row.get(method) or {})} for method in (*knowledge, curriculum)}
        make(knowledge, curriculum, values)
        ignored = {key for key in row if key in {*KNOWLEDGE, *CURRICULA}} - {*knowledge, curriculum}
        assert not ignored, f"{row['row']}: {ignored} changes a method that the row does not have"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_and_depends_on_its_tables_and_names_no_other(stage):
    cells = [cell for path in (notebook_path(stage), *appendix_paths(stage)) for cell in json.loads(path.read_text())["cells"]]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for name in table_names(stage):
        assert f'"{name}"' in source, f"{stage} does not run {name}"
    named = [name for call in re.findall(r"\bstudy\.run\(([^)]*)\)", source) for name in re.findall(r'"(\w+)"', call)]
    named += re.findall(r'\btables\.(?:display|conclusions|lines_of|render)\("(\w+)"', source)
    assert named and set(named) <= set(table_names())
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    assert {f"tables/{stage}", "tables"} & set(deps)


def test_grid_expands_into_every_method_once():
    table = load_table("combined")
    rows = {row["row"]: row for row in table["rows"]}
    assert len(rows) == 34 and list(rows)[:3] == ["student alone", "kd", "kd + kr"]
    assert rows["rco * (kd + srm)"] == {"row": "rco * (kd + srm)", "knowledge": ["kd", "srm"], "curriculum": "rco", "control": [], "rival": []}
    assert rows["pwkd * iekd"]["knowledge"] == ["iekd"]
    assert set(rows) - {"student alone"} == set(cells())
    assert table["parameters"]["srm"]["within_budget"] is True  # equal student epochs


def test_every_combined_run_has_the_same_student_epochs(study):
    planned = study()
    found = {student_epochs(run) for _, _, run, _ in planned.runs(load_table("combined"))}
    assert found == {planned.params["recipe"]["epochs"]}


def test_a_control_trains_as_long_and_runs_where_its_row_does(study):
    planned = study()
    for table in map(load_table, table_names()):
        runs, rows = {}, {row["row"]: row for row in table["rows"]}
        for name, pair, run, _ in planned.runs(table):
            runs.setdefault(name, {})[pair, run["seed"]] = student_epochs(run)
        for row in table["rows"]:
            for control in row["control"]:
                if not control.startswith("no preparation"):  # there the preparation is the one thing that differs, its epochs included
                    assert set(runs[row["row"]].values()) == set(runs[control].values()), (table["name"], row["row"], control)
                assert set(runs[row["row"]]) & set(runs[control]) and control != row["row"] and "not_run" not in rows[control]


@pytest.mark.parametrize(
    "rows, message",
    [
        ("- {row: KD}\n- {row: KR, control: KD}\n- {row: both, control: [KD, KRR]}", r"row 'both': no row 'KRR' to be its control \(did you mean 'KR'\?\)"),
        ("- {row: KD}\n- {row: KR, control: KDD}", r"tables/kd/t.yaml, row 'KR': no row 'KDD' to be its control \(did you mean 'KD'\?\)"),
        ("- {row: KD}\n- {row: KR, rival: KDD}", r"tables/kd/t.yaml, row 'KR': no row 'KDD' to be its rival \(did you mean 'KD'\?\)"),
        ("- {row: KD}\n- {row: KR, contrl: KD}", r"tables/kd/t.yaml: rows.1: unknown key 'contrl' \(did you mean 'control'\?\)"),
        ("- {row: KD}\n- {rwo: KR}", r"rows.1: unknown key 'rwo' \(did you mean 'row'\?\)"),
        ("- {row: KD}\n- {row: KD}", "row 'KD' stands there twice"),
        ("- {row: KD}\nbaseline: KDD", r"no row 'KDD' to be its baseline \(did you mean 'KD'\?\); there are KD"),
        ("- {row: KD, kr: {weight: 1.0}}", "row 'KD': kr: changes a method that the row does not have; it has fixed, kd"),
        ("- {row: KD}\nparameters: {kdd: {alpha: 1.0}}", r"parameters: unknown key 'kdd' \(did you mean 'kd'\?\)"),
        ("  []", "has no rows"),
        ("- {row: KD, knowledge: [kd, kr, kd]}", "row 'KD': knowledge: 'kd' stands there twice; a sum takes each once"),
        ("- {row: KD}\nreported_for: x\nseeds: some", "seeds: .*'main' or 'grid'"),
        ("- {row: KD}\npaper: Q", "not YAML, line 5: found duplicate key \"paper\""),
    ],
)
def test_mistakes_in_a_tables_file_are_named(tmp_path, monkeypatch, rows, message):
    (tmp_path / "tables" / "kd").mkdir(parents=True)
    (tmp_path / "tables" / "kd" / "t.yaml").write_text(f"title: T\npaper: KD\nrows:\n{rows}\n")
    monkeypatch.setattr(tables, "FILES", tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_table("t")


def test_a_paper_that_there_is_not_is_named(tmp_path, monkeypatch):
    (tmp_path / "tables" / "kd").mkdir(parents=True)
    (tmp_path / "tables" / "kd" / "t.yaml").write_text("title: T\npaper: common\nrows: [{row: KD}]\n")
    monkeypatch.setattr(tables, "FILES", tmp_path)
    with pytest.raises(ConfigError, match="tables/kd/t.yaml: paper: .*'KD', 'KR'"):
        load_table("t")


def test_a_control_may_stand_below_its_row_and_in_the_grid(tmp_path, monkeypatch):
    (tmp_path / "tables" / "kd").mkdir(parents=True)
    text = "title: T\npaper: KD\nrows: [{row: KR, control: [later, rco * kd]}, {row: later, control: KR}]\ngrid: {curricula: [rco], knowledge: [[kd]]}\n"
    (tmp_path / "tables" / "kd" / "t.yaml").write_text(text)
    monkeypatch.setattr(tables, "FILES", tmp_path)
    assert [row["row"] for row in load_table("t")["rows"]] == ["KR", "later", "rco * kd"]


@pytest.mark.parametrize("only", [["labels", "kd", "rco * kd"], []])
def test_only_leaves_other_methods_out(study, only):
    """Study.run(only=...) asks for no other run, and for all when it is empty."""
    assert set(study.train(study(seeds=1, run={"combined": "all"}), "combined", only=only)) == (set(only) or {"labels", *cells()})


def test_a_profile_runs_the_rows_it_asks_for(study):
    planned = study(seeds=2, run={"kd": {"kd_main": ["KD"]}, "kr": {"kr_main": "all"}, "combined": "all"})
    assert study.train(planned, "kd_main", "kd_temperature") == ["kd", "kd"]
    asked = {name: asked_rows(load_table(name), planned.params) for name in table_names()}
    assert asked["kr_main"] == [row["row"] for row in load_table("kr_main")["rows"] if "not_run" not in row]
    assert asked["kd_main"] == ["KD"] and asked["kd_temperature"] == asked["kr_ablation"] == [] and len(asked["srm_grid"]) > 5


@pytest.mark.parametrize("run, message", [
    ({"kd": {"kd_mian": "all"}}, r"run.kd: unknown table 'kd_mian' \(did you mean 'kd_main'\?\)"),
    ({"kd": {"kd_main": ["KDD"]}}, r"run.kd.kd_main: no row 'KDD' \(did you mean 'KD'\?\)"),
])  # fmt: skip
def test_rows_that_are_not_there_are_named(run, message):
    with pytest.raises(ConfigError, match=message):
        asked_rows(load_table("kd_main"), {"run": run})


def test_a_row_that_is_known_from_another_table_is_shown_unasked(study):
    planned = study(seeds=1, grid_seeds=1, run={"kd": {"kd_main": ["KD"]}})
    run, _ = planned.row_of("kd_main", "KD")
    known = record_of(key_of(run)) | {"run": run}
    planned.train_missing = lambda wanted: dict.fromkeys(wanted, known)
    planned.save = lambda: None
    found = planned.run("kd_main", "kd_temperature")
    assert set(zip(found["table"], found["row"], strict=True)) == {("kd_main", "KD"), ("kd_temperature", "KD")}
    assert planned.ran("kd_temperature", "KD") and not planned.ran("kd_main", "KD", "student alone")
