"""Table files, plans, reports and README; the combined study's effects against their definitions; conclusions that follow the numbers."""

import json
import math
import re
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from kd import checkpoints, effects, figures, plan, readme, records, show, study, tables
from kd.errors import Problem
from kd.methods import CURRICULA, KNOWLEDGE, make
from kd.models import Supernet, build
from kd.records import COLUMNS, frame
from kd.source import write_programs
from kd.study import ROOT, load_table

NAMES = sorted(path.stem for path in (ROOT / "tables").glob("*.yaml"))
MADE = {"kd_main", "kd_temperature", "common", "combined"}


# --- the files in tables/


@pytest.mark.parametrize("name", NAMES)
def test_table_file(name):
    table = load_table(name)
    assert table["title"] and table["caption"] and table["paper"]
    rows = [row["row"] for row in table["rows"]]
    assert table.get("baseline", "KD") in rows, "differences need their baseline row"
    overrides = table.get("parameters") or {}
    assert set(overrides) <= {*KNOWLEDGE, *CURRICULA}
    for row in table["rows"]:
        figures = row.get("reported") or {}
        for figure in figures.values() if records.by_pair(row) else [figures] if figures else []:
            assert figure["tier"] in ("A", "B", "C") and len(figure["source"]) > 5 and figure["value"] is not None, row
        if "not_run" in row:
            assert len(row["not_run"]) > 10, row
            continue
        knowledge, curriculum = row.get("knowledge", ["kd"]), row.get("curriculum", "fixed")
        values = {method: {**(overrides.get(method) or {}), **(row.get(method) or {})} for method in (*knowledge, curriculum)}
        make(knowledge, curriculum, values)
        ignored = {key for key in row if key in {*KNOWLEDGE, *CURRICULA}} - {*knowledge, curriculum}
        assert not ignored, f"{row['row']}: {ignored} changes a method that the row does not have"


def test_each_table_is_run_by_the_notebook_of_its_stage():
    for stage in tables.STAGES:
        (path,) = (ROOT / "notebooks").glob(f"0?_{stage}.ipynb")
        source = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
        for name in [name for name in NAMES if tables.stage_of(load_table(name)) == stage]:
            assert f'"{name}"' in source, f"{path.name} does not run {name}"


def test_each_stage_depends_on_its_tables_and_no_other_is_named():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in tables.STAGES:
        named = {Path(dep).stem for dep in stages[stage]["deps"] if str(dep).startswith("tables/")}
        assert named == {name for name in NAMES if tables.stage_of(load_table(name)) == stage}
        (path,) = (ROOT / "notebooks").glob(f"0?_{stage}.ipynb")
        source = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
        for call in re.findall(r"\bstudy\.run\(([^)]*)\)", source):
            assert set(re.findall(r'"(\w+)"', call)) <= set(NAMES), f"{path.name}: study.run({call})"
        for name in re.findall(r'\btables\.(?:display|said|lines_of|laid_out)\("(\w+)"', source):
            assert name in NAMES, f"{path.name} shows {name}"


def test_grid_expands_into_every_method_once():
    table = load_table("combined")
    rows = {row["row"]: row for row in table["rows"]}
    assert len(rows) == 34 and list(rows)[:3] == ["student alone", "kd", "kd + kr"]
    assert rows["rco * (kd + srm)"] == {"row": "rco * (kd + srm)", "knowledge": ["kd", "srm"], "curriculum": "rco"}
    assert rows["pwkd * iekd"]["knowledge"] == ["iekd"]
    assert set(rows) - {"student alone"} == set(effects.CELLS)
    assert table["parameters"]["srm"]["within_budget"] is True  # equal student epochs


def test_every_combined_run_has_the_same_student_epochs():
    planned = plan.Planned(made_up_params())
    found = {plan.student_epochs(run) for _, _, run, _ in planned.runs(load_table("combined"))}
    assert found == {16}


def test_a_control_trains_as_long_and_runs_where_its_row_does():
    planned = plan.Planned(made_up_params())
    for table in map(load_table, NAMES):
        runs, rows = {}, {row["row"]: row for row in table["rows"]}
        for name, pair, run, _ in planned.runs(table):
            runs.setdefault(name, {})[pair, run["seed"]] = plan.student_epochs(run)
        for row in table["rows"]:
            for control in np.atleast_1d(row.get("control", [])):
                if not control.startswith("no preparation"):  # there the preparation is the one thing that differs, its epochs included
                    assert set(runs[row["row"]].values()) == set(runs[control].values()), (table["name"], row["row"], control)
                assert set(runs[row["row"]]) & set(runs[control]) and control != row["row"] and "not_run" not in rows[control]


@pytest.mark.parametrize(
    "rows, message",
    [
        ("- {row: KD}\n- {row: KR, control: KD}\n- {row: both, control: [KD, KRR]}", r"row 'both': no row 'KRR' to be its control \(did you mean 'KR'\?\)"),
        ("- {row: KD}\n- {row: KR, control: KDD}", r"tables/t.yaml, row 'KR': no row 'KDD' to be its control \(did you mean 'KD'\?\)"),
        ("- {row: KD}\n- {row: KR, contrl: KD}", r"row 'KR': unknown key 'contrl' \(did you mean 'control'\?\)"),
        ("- {row: KD}\n- {rwo: KR}", r"row None: unknown key 'rwo' \(did you mean 'row'\?\)"),
        ("- {row: KD}\n- {row: KD}", "row 'KD' stands there twice"),
    ],
)
def test_mistakes_in_a_tables_file_are_named(tmp_path, monkeypatch, rows, message):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.yaml").write_text(f"title: T\nrows:\n{rows}\n")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    with pytest.raises(Problem, match=message):
        load_table("t")


def test_a_control_may_stand_below_its_row_and_in_the_grid(tmp_path, monkeypatch):
    (tmp_path / "tables").mkdir()
    text = "rows: [{row: KR, control: [later, rco * kd]}, {row: later, control: KR}]\ngrid: {curricula: [rco], knowledge: [[kd]]}\n"
    (tmp_path / "tables" / "t.yaml").write_text(text)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    assert [row["row"] for row in load_table("t")["rows"]] == ["KR", "later", "rco * kd"]


# --- plan


def made_up_params(**changes):
    params = {
        "profile": "made_up",
        "data": {"name": "cifar100", "validation": 5000},
        "recipe": {"epochs": 16, "batch_size": 64, "learning_rate": 0.05},
        "recipes": {"kd": {"batch_size": 32}, "resnet8x4": {"learning_rate": 0.01}},
        "seeds": 2,
        "grid_seeds": 3,
        "teachers": ["resnet56", "resnet32x4"],
        "supernets": ["resnet56", "resnet32x4"],
        "pairs": {"default": ["resnet56", "resnet20"], "common": [["resnet56", "resnet20"], ["resnet32x4", "resnet8x4"]]},
        "teacher": {"epochs": 30},
        "supernet": {"widths": [0.5, 1.0]},
    }
    return params | changes


def write_params(path, **changes):
    """A params.yaml that is whole: made_up_params, and whatever else one must hold from the digits profile."""
    pattern, params = yaml.safe_load((ROOT / "profiles" / "digits.yaml").read_text()), made_up_params(**changes)
    params |= {section: pattern[section] | params[section] for section in ("teacher", "supernet")}
    path.write_text(yaml.safe_dump(pattern | params))


@pytest.fixture
def few_tables(monkeypatch):
    monkeypatch.setattr(plan, "names", lambda: ["kd_main", "kd_temperature", "common", "combined"])


def test_plan_counts_by_hand(few_tables):
    counts, lacking = plan.plan_counts(made_up_params())
    assert lacking == []
    # kd_main: 2 rows x 2 seeds; kd_temperature: 7 rows x 3 seeds, of which plain KD with seeds 0 and 1 is kd_main's
    assert len(counts["kd"]["runs"]) == 4 + 21 - 2 and counts["kd"]["shared"] == 0 and counts["kd"]["tables"] == 2
    # the kd stage's own recipe has other batches, so that nothing of it is shared with common and combined
    common = sum("knowledge" in row for row in load_table("common")["rows"])
    same = 6  # student alone, KD, KR, SRM within the budget, IE-KD, PWKD of common's first pair stand in combined too
    assert len(counts["combined"]["runs"]) == 2 * (2 * common + 34 - same) and counts["combined"]["shared"] == 0
    counts, _ = plan.plan_counts(made_up_params(recipes={}))
    assert counts["combined"]["shared"] == 2 * 2  # now student alone and KD are taken over from kd
    assert len(counts["combined"]["runs"]) == 2 * (2 * common + 34 - same - 2)
    epochs = [run["recipe"]["epochs"] for run in counts["combined"]["runs"]]
    assert {run["recipe"]["learning_rate"] for run in counts["combined"]["runs"]} == {0.05}
    assert set(epochs) == {16, 29} and epochs.count(29) == 2 * 2  # KD, as long as SRM: 1.8 x 16, two seeds on two pairs


def test_recipe_of_a_student(few_tables):
    counts, _ = plan.plan_counts(made_up_params())
    rates = {(run["student"], run["recipe"]["learning_rate"]) for run in counts["combined"]["runs"]}
    assert rates == {("resnet20", 0.05), ("resnet8x4", 0.01)}


def test_plan_names_what_params_lack(few_tables):
    _, lacking = plan.plan_counts(made_up_params(teachers=["resnet56"], supernets=[]))
    assert [text.split(", which")[0] for text in lacking] == [
        "supernets: in params.yaml lacks resnet32x4",
        "supernets: in params.yaml lacks resnet56",
        "teachers: in params.yaml lacks resnet32x4",
    ]


def test_plan_prints_without_data(few_tables, monkeypatch, tmp_path):
    write_params(tmp_path / "params.yaml", profile="no_such_profile")
    monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))
    text = plan.plan()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line and line.split()[0] in ("teacher", "kd", "total")}
    assert lines["kd"][1:3] == ["2", "23"] and lines["kd"][3] == str(23 * 16)
    assert lines["teacher"][1:3] == ["2", "60"]
    assert "45,000 training images of 3x32x32" in text and "estimate, not a measurement" in text and "unknown" not in text
    write_params(tmp_path / "params.yaml", profile="x", data={"name": "imagefolder", "size": 32})
    text = plan.plan()
    assert "size unknown until" in text and "unknown" in next(line for line in text.splitlines() if line.startswith("total"))


def test_seconds_on_gpu_by_hand():
    # 1 GMAC of teacher and 0.1 of student: 2 (1 + 0.3) GFLOP an image at 76.9 TFLOP/s
    assert plan.seconds_on_gpu(50_000, 64, (10**9, 1), (10**8, 1)) == pytest.approx(50_000 * 2.6e9 / (32.3e15 / 420))
    # tiny networks wait for their kernels: 782 steps of 10 + 3 x 5 + 50 starts
    assert plan.seconds_on_gpu(50_000, 64, (1000, 10), (100, 5)) == pytest.approx(782 * 8e-6 * 75)


def test_known_sizes():
    macs, layers = plan.size_of("resnet20", 100, (3, 32, 32))
    assert 40e6 < macs < 42e6 and layers > 50  # 41 million multiply-adds, as usually quoted
    both, _ = plan.size_of("resnet20", 100, (3, 32, 32), (0.5, 1.0))
    assert 1.2 * macs < both < 1.3 * macs  # half the width, a quarter of the arithmetic


def test_hours_follow_the_machine_records(few_tables, monkeypatch, tmp_path):
    write_params(tmp_path / "params.yaml", profile="p")
    monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    monkeypatch.setattr(plan, "MACHINE", tmp_path / "machine")
    run = {"teacher": "resnet56", "student": "resnet20", "knowledge": ["kd"], "curriculum": "fixed"}
    (tmp_path / "runs/p/kd").mkdir(parents=True)
    (tmp_path / "machine/p").mkdir(parents=True)
    (tmp_path / "runs/p/kd/records.jsonl").write_text(json.dumps({"key": "k", "run": run, "epochs": 16}) + "\n")
    (tmp_path / "machine/p/kd.jsonl").write_text(json.dumps({"key": "k", "seconds": 16 * 3600, "device": "abacus"}) + "\n")
    rates, devices = plan.measured_rates("p")
    assert rates == {(("resnet56", "resnet20"), "kd"): 3600.0} and devices == ["abacus"]
    monkeypatch.setattr(plan, "names", lambda: ["kd_temperature"])
    line = next(line for line in plan.plan().splitlines() if line.startswith("kd "))
    assert line.split()[1:] == ["1", "21", "336", "336"]  # runs, epochs, and an hour an epoch


def test_cost_by_hand_of_each_method(monkeypatch):
    run = {"knowledge": ["kd"], "curriculum": "fixed"}
    other = {"knowledge": ["kd", "kr"], "curriculum": "rco"}
    records = {key: {"run": chosen, "epochs": 10} for key, chosen in (("a", run), ("b", run), ("c", other), ("not timed", other))}
    machine = {"device": "abacus", "threads": 1}
    machines = [{"key": key, "seconds": s, "peak_memory_mib": m} | machine for key, s, m in (("a", 20, 5), ("b", 40, 7), ("c", 90, 6), ("gone", 1, 1))]
    monkeypatch.setattr(plan, "machine_records", lambda profile: (machines, records))
    text = plan.cost("p")
    assert "| kd | 2 | 3.00 | 1.00 | 7 |" in text and "| rco * (kd + kr) | 1 | 9.00 | 3.00 | 6 |" in text
    assert "3 runs of students took 2 min 30 s" in text and "(abacus, 1 thread a run)" in text
    monkeypatch.setattr(plan, "machine_records", lambda profile: ([], records))
    with pytest.raises(Problem, match="machine/p holds no record"):
        plan.cost("p")


# --- reports, show, README


def made_up_records(accuracy_of, table="kd_main", seeds=(0, 1, 2), pair="big -> small", rows=None):
    """Records as a stage leaves them, with accuracy_of(method name, seed) and rows of the real table files."""
    made = []
    for row in load_table(table)["rows"]:
        if "not_run" in row or (rows and row["row"] not in rows):
            continue
        for seed in seeds:
            run = {"data": "digits", "data_md5": "d" * 32, "teacher": "big", "student": "small", "teacher_md5": {"route": "t" * 32}, "seed": seed}
            run |= {"knowledge": row.get("knowledge", ["kd"]), "curriculum": row.get("curriculum", "fixed")}
            run |= {"parameters": {"kd": {"temperature": 4.0}, "fixed": {}}, "recipe": {"epochs": 20}}
            accuracy = accuracy_of(records.method_name(run), seed)
            record = {"key": f"{table}-{row['row']}-{seed}", "run": run, "epochs": 20, "versions": {"torch": "9.9"}}
            record |= {"top1_last": accuracy, "top1_val": accuracy, "top1_best_test": accuracy, "teacher_epochs": 20.0}
            record |= {"parameters": 10, "multiply_adds": 100, "extra_parameters": 5}
            source = "supernet" if run["curriculum"] == "pwkd" else "route"
            record["lessons"] = [{"source": source, "indices": [0], "epochs": 15}, {"source": source, "indices": [1], "epochs": 5}]
            made.append(record | {"table": table, "row": row["row"], "pair": pair})
    return made


def write_runs(root, made, profile="digits", stage="kd"):
    folder = root / "runs" / profile / stage
    folder.mkdir(parents=True)
    rows = [{k: r[k] for k in ("table", "row", "pair", "key")} | {"seed": r["run"]["seed"]} for r in made]
    kept = [{k: v for k, v in r.items() if k not in ("table", "row", "pair")} for r in made]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (folder / "rows.json").write_text(json.dumps(rows))


def accuracy_kd_better(method, seed):
    return {"labels": 90.0, "kd": 93.0}.get(method, 92.0) + 0.2 * seed + 0.01 * seed**2 * (method == "kd")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with records of kd_main and a params.yaml of the digits profile."""
    write_runs(tmp_path, made_up_records(accuracy_kd_better))
    write_params(tmp_path / "params.yaml", profile="digits")
    monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(show, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "names", lambda: ["kd_main", "common", "combined"])
    return tmp_path


def test_reports(repository):
    folder = repository / "reports" / "digits"
    tables.write_reports(folder)
    runs = pd.read_csv(folder / "results.csv")
    assert list(runs.columns) == list(COLUMNS) and len(runs) == 6
    assert runs["top1_last"].tolist() == [93.0, 93.21, 93.44, 90.0, 90.2, 90.4]
    text = (folder / "tables.md").read_text()
    for column in COLUMNS:
        assert f"| {column} |" in text
    for name in ("kd_main", "common", "combined"):  # tables that did not run stand there as well
        assert f"](#{name})" in text and f'<a id="{name}">' in text
    for row in load_table("kd_main")["rows"]:
        assert f"| {row['row']} |" in text
    assert text.count("Not run in this profile; `run:` in params.yaml says what is, and reports/digits has every table whole.") == 2 and "| pwkd * iekd |" not in text
    assert [path.name for path in (folder / "figures").iterdir()] == ["kd_main.png"]
    assert "93.22" in text and (folder / "figures" / "kd_main.png").stat().st_size > 1000
    for line in text.splitlines():
        if line.startswith("!["):
            assert (folder / line.split("](")[1].rstrip(")")).exists()
    before = {path.name: path.read_bytes() for path in folder.rglob("*.*")}
    tables.write_reports(folder)
    assert before == {path.name: path.read_bytes() for path in folder.rglob("*.*")}


def test_reports_of_the_combined_study(repository):
    write_runs(repository, made_up_records(lambda method, seed: 90 + seed + len(method) * 0.01, "combined"), stage="combined")
    folder = repository / "out"
    tables.write_reports(folder)
    text = (folder / "tables.md").read_text()
    assert "In words" in text and "stood against plain KD" in text and "figures/combined.png" in text


def test_reported_figures_of_other_pairs_do_not_look_measured():
    table = load_table("common")
    runs = frame(made_up_records(accuracy_kd_better, "common", pair="cnn6x16 -> cnn3x4"), "digits")
    text = records.markdown(records.summary(runs, table), table)
    measured, elsewhere = text.split("**Reported elsewhere, not measured here**")
    assert "70.66" not in measured and "| reported |" not in measured
    assert "| KD | 70.66 [1] | 73.33 [1] | 74.92 [1] | 72.98 [1] | 67.35 [1] |" in elsewhere
    assert "| AT | 70.55 [1] | 73.44 [1] | 74.08 [1] | 71.43 [1] | 58.58 [1] |" in elsewhere
    # on a pair that has reported figures they stand in the row, and only the other pairs' stand below
    runs = frame(made_up_records(accuracy_kd_better, "common", pair="resnet56 -> resnet20"), "cifar100")
    measured, elsewhere = records.markdown(records.summary(runs, table), table).split("**Reported elsewhere, not measured here**")
    assert "| 70.66 [1] |" in measured and "70.66" not in elsewhere and "73.33" in elsewhere


def test_markdown_keeps_columns_that_differ():
    table = {"name": "t", "title": "T", "rows": [{"row": "KD"}, {"row": "a | b", "note": "longer."}]}
    lines = pd.DataFrame({"profile": "p", "table": "t", "row": ["KD", "a | b"], "pair": "x -> y", "seed": 0, "epochs": [20, 40], "top1_last": 90.0})
    text = records.markdown(records.summary(lines, table), table)
    assert "| row | epochs |" in text and "| KD | 20 |" in text and "a \\| b | 40 |" in text and "- a | b: longer.\n" in text
    text = records.markdown(records.summary(lines.assign(epochs=20), table), table)
    assert "| epochs |" not in text and "20 epochs each" in text


@pytest.fixture
def asks(tmp_path, monkeypatch):
    """asks(kr={"kr_main": "all"}): a params.yaml in force that asks for these tables of these stages, and for nothing else."""

    def write(**run):
        write_params(tmp_path / "params.yaml", run={stage: {} for stage in tables.STAGES} | run)
        monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))

    return write


def test_a_table_without_runs_of_its_own_is_a_sentence_and_its_reported_figures(asks):
    asks()
    runs = frame(made_up_records(accuracy_kd_better, "srm_imagenet", rows=["student alone", "KD"]), "p")
    assert len(tables.lines_of("srm_imagenet", runs)) == 2  # no other table shows these runs
    runs = pd.concat([runs, runs.assign(table="kd_main")])
    text = tables.display("srm_imagenet", runs).data
    assert text.startswith("### SRM with its ImageNet settings\n\nmu = 4")
    said = "Not run in this profile, but for rows that other tables show (student alone; KD); `run:` in params.yaml says what is, and reports/digits has"
    assert said in text and "not run:" not in text and "90." not in text
    assert "| row | reported |\n|---|---|\n| SRM | 71.21 [1] |\n\n[1] viebboy" in text
    assert not len(tables.lines_of("srm_imagenet", runs)) and tables.said("srm_imagenet", runs) is None
    assert figures.table_figure(tables.lines_of("srm_imagenet", runs)) is None
    text = tables.display("srm_imagenet", runs[:0]).data
    assert "Not run in this profile; `run:`" in text and "71.21" in text
    # of two tables with the same runs the first keeps them
    runs = frame(made_up_records(accuracy_kd_better, "kd_main"), "p")
    runs = pd.concat([runs.assign(table="pwkd_stages"), runs.assign(table="pwkd_schedule")])
    assert len(tables.lines_of("pwkd_schedule", runs)) == 1 and not len(tables.lines_of("pwkd_stages", runs))
    # a comparison of rows that several tables show one by one is that comparison's only place
    runs = frame(made_up_records(accuracy_kd_better, "common", rows=["KD", "AT"]), "p")
    runs = pd.concat([runs[runs["row"] == "KD"].assign(table="kd_main"), runs[runs["row"] == "AT"].assign(table="iekd_main"), runs])
    assert len(tables.lines_of("common", runs)) == 2


def test_a_table_that_the_profile_asks_for_is_shown_though_an_earlier_one_has_its_runs(asks):
    runs = frame(made_up_records(accuracy_kd_better, "srm_imagenet", rows=["student alone", "KD"]), "p")
    runs = pd.concat([runs.assign(table="kd_main"), runs])
    for asked in ("all", ["KD"], ["student alone", "KD"], ["SRM"]):  # SRM is asked for and has not run yet
        asks(srm={"srm_imagenet": asked})
        text, lines = tables.laid_out("srm_imagenet", runs)
        assert list(lines["row"]) == ["student alone", "KD"] and "| KD | 93.22 ± " in text and "| SRM | not asked for |" in text
        assert "Not run in this profile" not in text and tables.said("srm_imagenet", runs).data.startswith("- student alone against KD: ")
    asks(srm="all")
    assert len(tables.lines_of("srm_imagenet", runs)) == 2
    for others in ({"srm": {"srm_imagenet": []}}, {"srm": {"srm_grid": "all"}}, {"kd": "all"}):
        asks(**others)
        text, lines = tables.laid_out("srm_imagenet", runs)
        assert not len(lines) and "93." not in text and "Not run in this profile, but for rows that other tables show" in text
        assert len(tables.lines_of("kd_main", runs)) == 2  # the earlier one has them, asked for or not


def test_rows_that_the_profile_leaves_out_keep_their_place(asks):
    asks(kr={"kr_main": ["student alone", "KD", "KR"]}, pwkd={"pwkd_schedule": ["KD", "cosine"]})
    runs = frame(made_up_records(accuracy_kd_better, "kr_main", rows=["student alone", "KD", "KR"]), "p")
    text = tables.display("kr_main", runs).data
    assert "| KR, neither | not asked for | – |" in text and "| FSP | not run | – |" in text
    assert "\n- FSP: not run: not one of this companion's methods; KR's aggregation gram is its nearest kin here.\n" in text
    assert "Test accuracy after the last epoch, on p: " in text
    assert list(tables.lines_of("kr_main", runs)["row"]) == ["student alone", "KD", "KR"]
    assert tables.said("kr_main", runs).data.count("\n- ") == 1
    assert len(figures.table_figure(tables.lines_of("kr_main", runs)).axes[0].get_yticks()) == 3
    # without its baseline a table has accuracies and no differences
    runs = frame(made_up_records(accuracy_kd_better, "pwkd_schedule", rows=["KD", "cosine"]), "p")
    assert "| no cycle | not asked for | – |" in tables.display("pwkd_schedule", runs).data
    assert len(tables.lines_of("pwkd_schedule", runs)) == 2 and tables.said("pwkd_schedule", runs) is None


def test_a_sentence_says_what_the_verdict_is():
    line = {"row": "A", "n": 3, "mean": 91.0, "interval": 0.5, "difference": 1.0, "difference_interval": 0.2, "pairs": 3.0}
    line |= {"epochs": 20.0, "baseline_epochs": 20.0}
    for verdict, meaning in (
        ("better", "better."),
        ("worse", "worse."),
        ("no difference shown", "no difference shown: the interval covers zero."),
        ("not after correction", "no claim: the interval excludes zero, but not after Holm's correction."),
        ("no interval", "no claim: one run, or every seed differs alike, so there is no interval."),
    ):
        assert tables.say(line | {"verdict": verdict}) == f"A against KD: +1.00 ± 0.20 points over 3 paired seeds: {meaning}"
    longer = tables.say(line | {"verdict": "better", "epochs": 60.0, "pairs": 1.0}, "plain")
    assert longer == "A against plain: +1.00 ± 0.20 points over 1 paired seed: better, 60 epochs against 20."
    assert tables.say(line | {"difference": math.nan, "verdict": ""}) == "A: 91.00 ± 0.50 %, nothing to compare it with."


def test_controls_stand_below_their_table(asks):
    """In the reports and in README alike: the rows of rco_table7 against KD trained as long."""
    asks(rco="all")
    longer = {"KD": 91.0, "KD, 3 x epochs": 91.6, "KD, 3 cycles, 3 x epochs": 92.0, "EEI-3": 93.0}
    made = made_up_records(accuracy_kd_better, "rco_table7", rows=list(longer))
    for record in made:
        record["top1_last"] = longer[record["row"]] + 0.1 * record["run"]["seed"] + 0.02 * record["run"]["seed"] ** 2 * (record["row"] == "EEI-3")
    text = tables.display("rco_table7", frame(made, "digits")).data
    gaps = [np.array([0.0, 0.02, 0.08]) + gap for gap in (1.4, 1.0)]
    half = stats.t.ppf(0.975, 2) * np.std(gaps[0], ddof=1) / math.sqrt(3)
    for control, gap in zip(("KD, 3 x epochs", "KD, 3 cycles, 3 x epochs"), gaps, strict=True):
        assert f"| EEI-3 | {control} | +{gap.mean():.2f} ± {half:.2f} | 3 | better |" in text
    assert "for these 2." in text and text.index("paired by seed, against KD") < text.index("| row | against its control |")
    filled = readme.filled("<!-- table:rco_table7 --><!-- end -->", {"": frame(made, "digits")})
    assert f"| EEI-3 | KD, 3 x epochs | +{gaps[0].mean():.2f} ± {half:.2f} | 3 | better |" in filled


def made_up_teacher(root, kind, network, accuracy, profile="p"):
    """A teacher's file with these test accuracies, of its states or widths."""
    module = build(network, 10, 1)
    about = {"network": network, "classes": 10, "channels": 1}
    state = {"accuracy": [{"validation": 1.0, "test": value} for value in accuracy], "curve": []}
    if kind == "route":
        state |= {"states": [module.state_dict()] * len(accuracy), "epochs": list(range(1, len(accuracy) + 1))}
    else:
        about["widths"] = [0.5, 1.0]
        state["weights"] = Supernet(module, about["widths"]).state_dict()
    path = root / "models" / profile / f"{kind}s" / f"{network}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_state(path, state, kind=kind, **about)


def test_teachers_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    params = {"teachers": ["cnn3x4", "cnn3x2", "cnn6x4"], "supernets": ["cnn3x4"]}
    assert tables.teachers_in_words("p", params) == ""  # none is trained yet
    made_up_teacher(tmp_path, "route", "cnn3x4", [50.0, 97.125, 96.376])
    made_up_teacher(tmp_path, "route", "cnn6x4", [98.5])
    begin = "The teachers themselves, converged, on the same test images: "
    assert tables.teachers_in_words("p", params) == f"{begin}cnn3x4 96.38 %, cnn6x4 98.50 %."  # the last state's, not the best; none of cnn3x2
    made_up_teacher(tmp_path, "supernet", "cnn3x4", [91.0, 95.0])
    assert tables.teachers_in_words("p", params) == f"{begin}cnn3x4 96.38 %, cnn6x4 98.50 %, cnn3x4 as a supernet at full width 95.00 %."
    assert tables.teachers_in_words("p", {"teachers": None, "supernets": ["cnn3x4"]}) == f"{begin}cnn3x4 as a supernet at full width 95.00 %."
    assert tables.teachers_in_words("q", params) == tables.teachers_in_words("p", {}) == ""


def test_the_reports_name_the_teachers(repository, monkeypatch):
    tables.write_reports(repository / "out")
    assert "The teachers themselves" not in (repository / "out" / "tables.md").read_text()
    monkeypatch.setattr(tables, "teacher_file", lambda profile, kind, network: repository / "models" / profile / f"{kind}s" / f"{network}.safetensors")
    made_up_teacher(repository, "route", "cnn3x4", [90.0, 97.0], "digits")
    write_params(repository / "params.yaml", profile="digits", teachers=["cnn3x4"])
    tables.write_reports(repository / "out")
    text = (repository / "out" / "tables.md").read_text()
    assert "\n\nThe teachers themselves, converged, on the same test images: cnn3x4 97.00 %.\n\n- **Knowledge distillation**" in text


def test_several_pairs_get_a_table_each():
    table = load_table("kd_main")
    made = [r for pair in ("a -> b", "c -> d") for r in made_up_records(accuracy_kd_better, pair=pair)]
    text = records.markdown(records.summary(frame(made, "p"), table), table)
    assert text.index("**a -> b**") < text.index("**c -> d**") and text.count("| row |") == 2


def test_show(repository):
    text = show.show("kd_main", "KD")
    for expected in ("temperature=4.0", "epochs=20", "route md5 tttt", "torch 9.9", "93.44", "kd_main-KD-2", "md5 dddd"):
        assert expected in text
    with pytest.raises(Problem, match="did you mean 'student alone'"):
        show.show("kd_main", "studnt alone")
    with pytest.raises(Problem, match="not run: stands in the figures of its own training"):
        show.show("common", "teacher, as reported")
    with pytest.raises(Problem, match="has no records in profile digits; run `dvc repro combined`"):
        show.show("common", "FitNet")
    with pytest.raises(Problem, match="unknown table 'kd_man'.*kd_main"):
        show.show("kd_man", "KD")


def test_a_row_is_found_by_a_part_of_its_name_that_no_other_has():
    rows = ["KD", "KD, 3 x epochs", "greedy search (GS)"]
    assert show.row_called("GS", rows) == "greedy search (GS)" and show.row_called("KD", rows) == "KD"
    assert show.row_called("kd", rows) is None and show.row_called("XX", rows) is None


def test_show_on_a_fresh_clone(repository):
    tables.write_reports(repository / "reports" / "digits")
    for path in (repository / "runs" / "digits" / "kd").iterdir():
        path.unlink()
    text = show.show("kd_main", "KD")
    assert "93.44" in text and "kd_main-KD-2" in text and "dvc pull" in text and "tttt" in text
    (repository / "reports" / "digits" / "results.csv").unlink()
    with pytest.raises(Problem, match="results.csv is missing; run `make repro`"):
        show.show("kd_main", "KD")


README = """# Title

<!-- table:kd_main -->
old
<!-- end -->

The end.
"""


def test_readme_is_filled_and_drift_is_found(repository):
    tables.write_reports(repository / "reports" / "digits")
    path, results = repository / "README.md", repository / "reports" / "digits" / "results.csv"
    path.write_text(README)
    with pytest.raises(Problem, match="differs from results.csv at table:kd_main; run"):
        readme.write_readme(check=True, readme=path, results=results)
    assert path.read_text() == README  # a check changes nothing
    readme.write_readme(readme=path, results=results)
    text = path.read_text()
    accuracy = [93.0, 93.21, 93.44]
    half = stats.t.ppf(0.975, 2) * np.std(accuracy, ddof=1) / math.sqrt(3)
    assert f"| KD | {np.mean(accuracy):.2f} ± {half:.2f} |" in text and "on digits: mean and 95 % t-interval over 3 seeds" in text
    assert "| student alone | 90.20 ± 0.50 |" in text and "old" not in text and text.endswith("The end.\n")
    readme.write_readme(check=True, readme=path, results=results)
    results.write_text(results.read_text().replace("93.44", "95.44"))
    with pytest.raises(Problem, match="differs"):
        readme.write_readme(check=True, readme=path, results=results)
    for wrong, message in (
        ("number:kd_main/KD", "1 `<!-- end -->` too many or without a marker that is known: table, answer, bench$"),
        ("gain:kd_main/KD", "without a marker that is known"),
        ("table:kd_mein", "unknown table 'kd_mein'"),
        ("answer:kd", "answer:combined"),
        ("tabel:kd_main", "without a marker that is known"),
    ):
        path.write_text(f"<!-- {wrong} -->x<!-- end -->")
        with pytest.raises(Problem, match=message):
            readme.write_readme(readme=path, results=results)


def test_readme_holds_the_committed_numbers():
    page, results = ROOT / "README.md", ROOT / "reports" / "digits" / "results.csv"
    if not (page.exists() and results.exists()):
        pytest.skip("no README.md or no committed reports here")
    readme.write_readme(check=True)


# --- what a stage depends on


def test_programs_of_the_stages_without_a_notebook(tmp_path, monkeypatch):
    """What only writes tables is no part of a supernet; what chooses is part of a search; prose is part of neither."""
    shutil.copytree(ROOT / "kd", tmp_path / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)

    def written():
        write_programs("out")
        return {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.py")}

    def changed(name, old, new):
        """The stages whose program such a change changes."""
        file, before = tmp_path / "kd" / name, written()
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        after = written()
        file.write_text(text)
        return {stage for stage in before if before[stage] != after[stage]}

    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["code"]["outs"]
    assert {f"build/code/{stage}.py" for stage in written()} == {out for out in outs if isinstance(out, str)}
    assert changed("records.py", '"no difference shown"', '"nothing"') == {"core", "search"}
    assert changed("tables.py", "nothing to compare it with", "no baseline") == {"core"}
    assert changed("search.py", "FIRST_SEED = 1000", "FIRST_SEED = 2000") == {"search"}
    assert changed("search.py", "# the tables' seeds begin at 0", "# other prose") == set()
    assert changed("teachers.py", "torch.manual_seed(seed)", "torch.manual_seed(seed + 1)") == {"core", "supernet", "search"}
    assert changed("models/base.py", "100.0 * float(correct)", "99.0 * float(correct)") == {"core", "supernet", "search"}
    assert changed("methods/kr.py", "class KR(Knowledge):", "class KR(Knowledge):  # other prose") == set()
    assert changed("methods/kr.py", "class KR(Knowledge):", "class Kr(Knowledge):") == {"kr", "search", "combined", "tables"}


def test_stages_depend_on_their_own_programs():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name in ("supernet", "search"):
        programs = [path for path in stages[name]["do"]["deps"] if path.startswith("build/code/")]
        assert programs == [f"build/code/{name}.py"]


# --- effects of the combined study


def grid(effect, seeds=6, noise=0.1):
    """Accuracies of the whole grid: effect(curriculum, knowledge) plus a seed's common part plus noise; (DataFrame, array)."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 1, seeds)
    values = {name: 90 + effect(*cell) + common + noise * generator.normal(0, 1, seeds) for name, cell in effects.CELLS.items()}
    return pd.DataFrame(values, index=pd.Index(range(seeds), name="seed"))


def additive(curriculum, knowledge):
    value = {"fixed": 0.0, "rco": 1.0, "pwkd": -1.0}[curriculum]
    return value + 2.0 * ("kd" in knowledge) + 0.5 * ("kr" in knowledge) - 0.7 * ("srm" in knowledge)


def contrast(accuracy, sign):
    """Independent derivation: a weight for every cell from sign(curriculum, has kd, kr, srm, iekd), then one number a seed."""
    total = np.zeros(len(accuracy))
    for name, (curriculum, knowledge) in effects.CELLS.items():
        total += sign(curriculum, *[kind in knowledge for kind in ("kd", "kr", "srm", "iekd")]) * accuracy[name].to_numpy()
    return total


def line_of(family, name):
    return family[family["name"] == name].iloc[0]


def check_line(line, per_seed):
    assert line["mean"] == pytest.approx(per_seed.mean(), abs=1e-9) and line["pairs"] == len(per_seed)
    half = stats.t.ppf(0.975, len(per_seed) - 1) * per_seed.std(ddof=1) / math.sqrt(len(per_seed))
    assert line["interval"] == pytest.approx(half, rel=1e-9)
    assert line["p"] == pytest.approx(stats.ttest_1samp(per_seed, 0).pvalue, rel=1e-6)


def plus(flag):
    return 1 if flag else -1


def test_main_effects_against_contrasts():
    accuracy = grid(additive)
    main = effects.main_effects(accuracy)
    assert list(main["name"]) == ["rco", "pwkd", "kr", "srm", "iekd", "kd, added to another alone"]
    expected = {
        "rco": lambda c, kd, kr, srm, iekd: kd * {"rco": 1, "fixed": -1}.get(c, 0) / 8,
        "pwkd": lambda c, kd, kr, srm, iekd: kd * {"pwkd": 1, "fixed": -1}.get(c, 0) / 8,
        "kr": lambda c, kd, kr, srm, iekd: kd * plus(kr) / 12,
        "srm": lambda c, kd, kr, srm, iekd: kd * plus(srm) / 12,
        "iekd": lambda c, kd, kr, srm, iekd: kd * plus(iekd) / 12,
        "kd, added to another alone": lambda c, kd, kr, srm, iekd: (kr + srm + iekd == 1) * plus(kd) / 9,
    }
    for name, sign in expected.items():
        check_line(line_of(main, name), contrast(accuracy, sign))
    truth = {"rco": 1.0, "pwkd": -1.0, "kr": 0.5, "srm": -0.7, "iekd": 0.0, "kd, added to another alone": 2.0}
    for name, value in truth.items():
        assert line_of(main, name)["mean"] == pytest.approx(value, abs=0.1)
    assert dict(zip(main["name"], main["verdict"], strict=True)) == {
        "rco": "better", "pwkd": "worse", "kr": "better", "srm": "worse", "iekd": "no difference shown", "kd, added to another alone": "better",
    }  # fmt: skip
    np.testing.assert_allclose(main["p_holm"], records.holm(main["p"]))


def test_interactions_against_contrasts():
    accuracy = grid(lambda c, k: additive(c, k) + 1.5 * (c == "rco" and "srm" in k) - 0.8 * ("kr" in k and "iekd" in k))
    both = effects.interactions(accuracy)
    assert len(both) == 9 and "rco x pwkd" not in set(both["name"])
    check_line(line_of(both, "kr x iekd"), contrast(accuracy, lambda c, kd, kr, srm, iekd: kd * plus(kr) * plus(iekd) / 6))
    sign = {"rco": 1, "fixed": -1}
    check_line(line_of(both, "rco x srm"), contrast(accuracy, lambda c, kd, kr, srm, iekd: kd * sign.get(c, 0) * plus(srm) / 4))
    assert line_of(both, "rco x srm")["mean"] == pytest.approx(1.5, abs=0.2) and line_of(both, "rco x srm")["verdict"] == "better"
    assert line_of(both, "kr x iekd")["mean"] == pytest.approx(-0.8, abs=0.2) and line_of(both, "kr x iekd")["verdict"] == "worse"
    assert line_of(both, "pwkd x srm")["verdict"] not in ("better", "worse")


def test_parts():
    assert effects.parts_of("kd") == effects.parts_of("kd + kr") == effects.parts_of("rco * kd") == effects.parts_of("kr") == []
    assert effects.parts_of("rco * (kd + kr + srm)") == ["rco * kd", "kd + kr", "kd + srm"]
    assert effects.parts_of("pwkd * iekd") == ["pwkd * kd", "iekd"]
    assert all(part in effects.CELLS for name in effects.CELLS for part in effects.parts_of(name))


def test_chosen_brings_what_the_comparison_needs():
    assert effects.chosen([]) == []
    assert set(effects.chosen(["rco * (kd + srm)"])) == {"labels", "kd", "rco * kd", "kd + srm", "rco * (kd + srm)"}
    with pytest.raises(Problem, match="no method is called 'rco \\* \\(kd \\+ smr\\)'.*did you mean"):
        effects.chosen(["rco * (kd + smr)"])


def test_beyond_the_sum_and_beyond_each_part():
    special = "rco * (kd + kr)"
    accuracy = grid(lambda c, k: additive(c, k) + 1.2 * (effects.name_of(c, k) == special))
    total, each = effects.beyond_the_sum(accuracy), effects.beyond_each_part(accuracy)
    assert len(total) == len(each) == 3 * 8 - 6 + 2 * 3
    y = {name: accuracy[name].to_numpy() for name in accuracy}
    check_line(line_of(total, special), y[special] - y["rco * kd"] - y["kd + kr"] + y["kd"])
    name = "pwkd * (kd + kr + srm)"
    check_line(line_of(total, name), y[name] - y["pwkd * kd"] - y["kd + kr"] - y["kd + srm"] + 2 * y["kd"])
    assert set(total.loc[total["verdict"] == "better", "name"]) == {special}
    against = [y[special] - y["rco * kd"], y[special] - y["kd + kr"]]
    line = line_of(each, special)
    assert line["mean"] == pytest.approx(min(d.mean() for d in against))  # rco * kd is the stronger part
    assert line["p"] == pytest.approx(max(stats.ttest_1samp(d, 0).pvalue for d in against))
    assert line["verdict"] == "better" and line_of(each, "rco * (kd + srm)")["verdict"] == "worse"


def test_cells_that_did_not_run_are_left_out_not_guessed():
    accuracy = grid(additive)[["kd", "kd + srm", "rco * kd", "rco * (kd + srm)"]]
    y = {name: accuracy[name].to_numpy() for name in accuracy}
    main, both = effects.main_effects(accuracy), effects.interactions(accuracy)
    assert len(effects.gains(accuracy)) == 3 and list(main["name"]) == ["rco", "srm"] and list(both["name"]) == ["rco x srm"]
    check_line(line_of(main, "rco"), (y["rco * kd"] - y["kd"] + y["rco * (kd + srm)"] - y["kd + srm"]) / 2)
    check_line(line_of(both, "rco x srm"), y["rco * (kd + srm)"] - y["kd + srm"] - y["rco * kd"] + y["kd"])
    assert list(effects.beyond_the_sum(accuracy)["name"]) == ["rco * (kd + srm)"]
    said = " ".join(effects.answer(accuracy))
    assert "3 methods stood against plain KD" in said and "On average over everything else" not in said
    assert "On average over the settings that ran, `rco`" in said and "averaged over: `rco` 2 of 8, `srm` 2 of 12." in said
    assert "Not estimated, because too little of the grid ran: `pwkd`, `kr`, `iekd` and `kd, added to another alone`." in said
    assert effects.settings(grid(additive)) == ""
    lone = effects.answer(accuracy[["kd", "kd + srm"]])
    assert "On average" not in " ".join(lone)  # one setting is no average
    assert not len(effects.interactions(accuracy[["kd", "rco * (kd + srm)"]])) and "Two at a time" not in " ".join(lone)
    assert effects.answer(accuracy[["rco * kd"]]) == ["Plain KD did not run in this study, so that there is nothing to compare with."]
    hole = grid(additive)
    hole.loc[0, "rco * kd"] = np.nan  # a seed that is missing in one cell is missing in that cell's differences alone
    assert line_of(effects.gains(hole), "rco * kd")["pairs"] == 5 and line_of(effects.gains(hole), "pwkd * kd")["pairs"] == 6


def test_accuracies_from_runs():
    made = made_up_records(lambda method, seed: 80 + len(method) + seed, "combined", seeds=(1, 0))
    runs = pd.concat([frame(made, "digits"), frame(made_up_records(accuracy_kd_better), "digits")])
    accuracy = effects.accuracies(runs)
    assert list(accuracy) == list(effects.CELLS) and accuracy.loc[1, "rco * (kd + srm)"] == 80 + 16 + 1
    with pytest.raises(Problem, match="no record of the combined study"):
        effects.accuracies(runs[runs["table"] == "kd_main"])


def test_cost_by_hand():
    record = {"epochs": 20, "multiply_adds": 100, "teacher_epochs": 30.0}
    operations = {"route": 1000, "supernet": [100, 400, 1000]}
    record["lessons"] = [{"source": "route", "indices": [-1], "epochs": 20}]
    assert effects.cost(record, operations) == 3 * 20 * 100 + 30 * 1000
    record["lessons"] = [{"source": "supernet", "indices": [0], "epochs": 15}, {"source": "supernet", "indices": [2], "epochs": 5}]
    assert effects.cost(record, operations) == 6000 + 30 * (0.75 * 100 + 0.25 * 1000)
    record["lessons"] = [{"source": "supernet", "indices": [0, 1, 2], "epochs": 20}]
    assert effects.cost(record, operations) == 6000 + 30 * 500
    assert effects.cost(record | {"teacher_epochs": 0.0}, operations) == 6000


def test_teacher_operations_of_the_digits_pair():
    operations = effects.teacher_operations("cnn6x16", [0.5, 1.0], 10, (1, 8, 8))
    assert operations["supernet"][1] == operations["route"] and 0.2 < operations["supernet"][0] / operations["route"] < 0.35


def test_front_against_its_definition():
    generator = np.random.default_rng(0)
    cost, value = generator.integers(0, 5, 40).astype(float), generator.integers(0, 5, 40).astype(float)
    expected = [
        not any(c <= cost[i] and v >= value[i] and (c < cost[i] or v > value[i]) for c, v in zip(cost, value, strict=True)) for i in range(40)
    ]
    assert effects.on_front(cost, value).tolist() == expected and 0 < sum(expected) < 40


def made_up_costs(accuracy):
    made = made_up_records(lambda m, s: float(accuracy[m][s]) if m in accuracy else 80.0, "combined", seeds=range(len(accuracy)))
    return effects.costs(frame(made, "p"), {r["key"]: r for r in made}, {"route": 1000, "supernet": [100, 1000]})


def test_costs_relative_to_kd():
    spent = made_up_costs(grid(additive)).set_index("name")
    assert spent.loc["kd", "cost"] == 1 and spent.loc["rco * kd", "cost"] == 1
    assert spent.loc["pwkd * kd", "cost"] == pytest.approx((6000 + 20 * (0.75 * 100 + 0.25 * 1000)) / (6000 + 20 * 1000))
    assert spent["front"].any() and spent.loc[spent["mean"].idxmax(), "front"]


def test_answer_when_a_combination_wins():
    accuracy = grid(lambda c, k: additive(c, k) + 1.2 * (effects.name_of(c, k) == "rco * (kd + kr)"))
    said = " ".join(effects.answer(accuracy, made_up_costs(accuracy)))
    for expected in (
        "32 methods stood against plain KD", "over 6 paired seeds", "Better than plain KD: `rco * (kd + kr)`", "The highest mean is that of `rco * (kd + kr)`",
        "`rco` and `kr` raise the accuracy", "lower it", "More than the sum of their parts: `rco * (kd + kr)`.", "Better than each of their parts and than KD: `rco * (kd + kr)`",
        "At no more than KD's cost, better than KD: `rco * (kd + kr)`", "costs 1.00 times KD's training", "So combining pays here",
    ):  # fmt: skip
        assert expected in said, (expected, said)


def test_answer_when_kd_wins():
    accuracy = grid(lambda c, k: 0.0 if effects.name_of(c, k) == "kd" else -3.0)
    said = " ".join(effects.answer(accuracy, made_up_costs(accuracy)))
    for expected in (
        "None of them can be told to be better than plain KD.", "Plain KD itself has the highest mean", "Nothing that costs no more than KD can be told to be better than it.",
        "no reason to prefer anything here to plain KD", "None can be told to be better than each of its parts and than KD.", "Worse: ",
    ):  # fmt: skip
        assert expected in said, (expected, said)
    assert "combining pays" not in said and "Better than plain KD:" not in said


def test_answer_when_nothing_differs():
    said = " ".join(effects.answer(grid(lambda c, k: 0.0, noise=1.0)))
    for expected in (
        "None of them can be told to be better", "None can be told to be worse.", "For the other 32 no difference can be claimed", "no factor changes the accuracy",
        "no two parts help or hinder", "It cannot be said of any of the 24 combinations that it is more than the sum of its parts.",
    ):
        assert expected in said, (expected, said)
    assert "So with these seeds there is no reason" in said


def test_answer_when_a_single_method_wins():
    accuracy = grid(lambda c, k: 2.0 * (effects.name_of(c, k) == "rco * kd"))
    said = " ".join(effects.answer(accuracy))
    assert "Better than plain KD: `rco * kd`." in said and "So a method pays here, but combining adds nothing" in said


def test_answer_when_only_averages_speak():
    accuracy = grid(lambda c, k: 0.6 * ("kr" in k), seeds=5, noise=0.3)
    said = effects.answer(accuracy)
    assert "None of them can be told to be better than plain KD." in said and "only averages over the grid speak for `kr`" in said[-1]


def test_averages_do_not_speak_for_kd_itself():
    """That KD improves what stands alone is no reason to prefer anything to plain KD."""
    accuracy = grid(lambda c, k: 2.0 * ("kd" in k))
    said = effects.answer(accuracy)
    assert "On average over everything else, `kd, added to another alone` raises the accuracy." in said
    assert said[-1] == "So with these seeds there is no reason to prefer anything here to plain KD."


def test_answer_with_one_seed_concludes_nothing():
    said = effects.answer(grid(additive, seeds=1))
    assert len(said) == 2 and "too little" in said[1]


def test_figures_of_the_study_mark_what_the_numbers_say():
    import matplotlib

    matplotlib.use("agg")
    accuracy = grid(lambda c, k: 3.0 * (effects.name_of(c, k) == "rco * (kd + srm)"))
    texts = [t.get_text() for t in effects.heat_map(accuracy).axes[0].texts]
    starred = [t for t in texts if t.endswith("*")]
    assert len(texts) == 33 and "KD: 0" in texts and len(starred) == 1 and float(starred[0][:-1]) == pytest.approx(3, abs=0.3)
    partial = effects.heat_map(accuracy[["kd", "kd + kr"]])
    assert len(partial.axes[0].texts) == 2 and [t.get_text() for t in partial.axes[0].get_yticklabels()] == ["kd", "kd + kr"]
    assert [t.get_text() for t in partial.axes[0].get_xticklabels()] == ["fixed"]
    labels = effects.bars(effects.main_effects(accuracy)).axes[0].get_yticklabels()
    assert [t.get_text() for t in labels][:2] == ["rco", "pwkd"]
    effects.cost_figure(made_up_costs(accuracy))
    matplotlib.pyplot.close("all")


def test_every_cell_of_the_grid_has_a_name_of_its_own():
    assert len(effects.CELLS) == len(list(product(effects.CURRICULA, effects.SETS))) == 33


def test_only_leaves_other_methods_out(monkeypatch, tmp_path):
    """Study.run(only=...) asks for no other run, and for all when it is empty."""
    asked = {}

    def execute(runs, title):
        asked["methods"] = {records.method_name(run) for run, _, _ in runs}
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "execute", execute)
    planned = plan.Planned(made_up_params(seeds=1))
    for only in (["labels", "kd", "rco * kd"], []):
        with pytest.raises(KeyboardInterrupt):
            planned.run("combined", only=only)
        assert asked["methods"] == (set(only) or {"labels", *effects.CELLS})


def test_a_profile_runs_the_rows_it_asks_for(monkeypatch):
    wanted = {}

    def execute(runs, title):
        wanted["methods"] = sorted(records.method_name(run) for run, _, _ in runs)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "execute", execute)
    chosen = {"kd": {"kd_main": ["KD"]}, "kr": {"kr_main": "all"}, "combined": "all"}
    planned = plan.Planned(made_up_params(seeds=2, run=chosen))
    with pytest.raises(KeyboardInterrupt):
        planned.run("kd_main", "kd_temperature")
    assert wanted["methods"] == ["kd", "kd"]
    asked = lambda name: study.asked_rows(load_table(name), planned.params)  # noqa: E731
    assert asked("kr_main") == [row["row"] for row in load_table("kr_main")["rows"] if "not_run" not in row]
    assert asked("kd_main") == ["KD"] and asked("kd_temperature") == asked("kr_ablation") == [] and len(asked("srm_grid")) > 5
    assert plan.plan_counts(made_up_params(seeds=2, run=chosen))[0]["kd"] | {"runs": 0} == {"runs": 0, "tables": 1, "shared": 0}
    for chosen, message in (
        ({"kd": {"kd_mian": "all"}}, r"run.kd: unknown table 'kd_mian' \(did you mean 'kd_main'\?\)"),
        ({"kd": {"kd_main": ["KDD"]}}, r"run.kd.kd_main: no row 'KDD' \(did you mean 'KD'\?\)"),
    ):
        with pytest.raises(Problem, match=message):
            study.asked_rows(load_table("kd_main"), made_up_params(run=chosen))


def test_a_row_that_is_known_from_another_table_is_shown_unasked(repository):
    params = repository / "params.yaml"
    write_params(params, seeds=1, grid_seeds=1, run={"kd": {"kd_main": ["KD"]}})
    planned = plan.Planned(yaml.safe_load(params.read_text()))
    planned.folder = repository / "runs" / "x"
    run = planned.row_of("kd_main", "KD")[0]
    planned.records = {study.key_of(run): made_up_records(accuracy_kd_better, rows=["KD"], seeds=(0,))[0] | {"key": study.key_of(run), "run": run}}
    found = planned.run("kd_main", "kd_temperature")
    assert set(zip(found["table"], found["row"], strict=True)) == {("kd_main", "KD"), ("kd_temperature", "KD")}
    assert planned.ran("kd_temperature", "KD") and not planned.ran("kd_main", "KD", "student alone")
