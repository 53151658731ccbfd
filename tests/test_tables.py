"""Table files, plans, reports and README; the combined study's effects against their definitions; conclusions that follow the numbers."""

import json
import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from kd import effects, figures, plan, readme, records, show, study, tables
from kd.errors import Problem
from kd.methods import CURRICULA, KNOWLEDGE, make
from kd.records import COLUMNS, frame
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
    for run in counts["combined"]["runs"]:
        assert run["recipe"]["learning_rate"] == 0.05 and run["recipe"]["epochs"] == 16


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
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(made_up_params(profile="no_such_profile")))
    monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))
    text = plan.plan()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line and line.split()[0] in ("teacher", "kd", "total")}
    assert lines["kd"][1:3] == ["2", "23"] and lines["kd"][3] == str(23 * 16)
    assert lines["teacher"][1:3] == ["2", "60"]
    assert "45,000 training images of 3x32x32" in text and "estimate, not a measurement" in text and "unknown" not in text
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(made_up_params(profile="x", data={"name": "imagefolder", "size": 32})))
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
    params = made_up_params(profile="p")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
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
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(made_up_params(profile="digits")))
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
    assert text.count("Not run in this profile; `run:` in params.yaml says what is.") == 2 and "| pwkd * iekd |" not in text
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
    lines = pd.DataFrame({"table": "t", "row": ["KD", "a | b"], "pair": "x -> y", "seed": 0, "epochs": [20, 40], "top1_last": [90.0, 91.0]})
    text = records.markdown(records.summary(lines, table), table)
    assert "| row | epochs |" in text and "| KD | 20 |" in text and "a \\| b | 40 |" in text and "- a | b: longer.\n" in text
    text = records.markdown(records.summary(lines.assign(epochs=20), table), table)
    assert "| epochs |" not in text and "20 epochs each" in text


def test_a_table_without_runs_of_its_own_is_a_sentence_and_its_reported_figures():
    runs = frame(made_up_records(accuracy_kd_better, "srm_imagenet", rows=["student alone", "KD"]), "p")
    assert len(tables.lines_of("srm_imagenet", runs)) == 2  # no other table shows these runs
    runs = pd.concat([runs, runs.assign(table="kd_main")])
    text = tables.display("srm_imagenet", runs).data
    assert text.startswith("### SRM with its ImageNet settings\n\nmu = 4")
    assert "Not run in this profile, but for rows that other tables show (student alone; KD); `run:` in params.yaml says what is." in text
    assert "| row | reported |\n|---|---|\n| SRM | 71.21 [1] |\n\n[1] viebboy" in text and "not run:" not in text and "90." not in text
    assert not len(tables.lines_of("srm_imagenet", runs)) and tables.said("srm_imagenet", runs) is None
    assert figures.table_figure(tables.lines_of("srm_imagenet", runs)) is None
    text = tables.display("srm_imagenet", runs[:0]).data
    assert "Not run in this profile; `run:`" in text and "71.21" in text
    # nothing is missing where all that can be run stands in other tables
    runs = frame(made_up_records(accuracy_kd_better, "kr_cifar10"), "p")
    runs = pd.concat([runs.assign(table="kr_main"), runs])
    assert "| KD | 93." in tables.display("kr_cifar10", runs).data and len(tables.lines_of("kr_cifar10", runs)) == 2
    # and of two tables with the same runs the first keeps them
    runs = pd.concat([runs.assign(table="pwkd_stages"), runs.assign(table="pwkd_schedule")])
    assert len(tables.lines_of("pwkd_schedule", runs)) == 1 and not len(tables.lines_of("pwkd_stages", runs))
    # a comparison of rows that several tables show one by one is that comparison's only place
    runs = frame(made_up_records(accuracy_kd_better, "common", rows=["KD", "AT"]), "p")
    runs = pd.concat([runs[runs["row"] == "KD"].assign(table="kd_main"), runs[runs["row"] == "AT"].assign(table="iekd_main"), runs])
    assert len(tables.lines_of("common", runs)) == 2


def test_rows_that_the_profile_leaves_out_keep_their_place():
    runs = frame(made_up_records(accuracy_kd_better, "kr_main", rows=["student alone", "KD", "KR"]), "p")
    text = tables.display("kr_main", runs).data
    assert "| KR, neither | not run in this profile | – |" in text and "| FSP | not run: not one of this companion's methods" in text
    assert list(tables.lines_of("kr_main", runs)["row"]) == ["student alone", "KD", "KR"]
    assert tables.said("kr_main", runs).data.count("\n- ") == 1
    assert len(figures.table_figure(tables.lines_of("kr_main", runs)).axes[0].get_yticks()) == 3
    # without its baseline a table has accuracies and no differences
    runs = frame(made_up_records(accuracy_kd_better, "pwkd_schedule", rows=["KD", "cosine"]), "p")
    assert "| no cycle | not run in this profile | – |" in tables.display("pwkd_schedule", runs).data
    assert len(tables.lines_of("pwkd_schedule", runs)) == 2 and tables.said("pwkd_schedule", runs) is None


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

KD reaches <!-- number:kd_main/KD -->stale<!-- end --> %, that is <!-- gain:kd_main/KD --><!-- end -->.

<!-- table:kd_main -->
old
<!-- end -->

The end.
"""


def test_readme_is_filled_and_drift_is_found(repository):
    tables.write_reports(repository / "reports" / "digits")
    path, results = repository / "README.md", repository / "reports" / "digits" / "results.csv"
    path.write_text(README)
    with pytest.raises(Problem, match="differs from results.csv at number:kd_main/KD, gain:kd_main/KD, table:kd_main; run"):
        readme.write_readme(check=True, readme=path, results=results)
    assert path.read_text() == README  # a check changes nothing
    readme.write_readme(readme=path, results=results)
    text = path.read_text()
    accuracy = [93.0, 93.21, 93.44]
    half = stats.t.ppf(0.975, 2) * np.std(accuracy, ddof=1) / math.sqrt(3)
    assert f"KD reaches <!-- number:kd_main/KD -->{np.mean(accuracy):.2f} ± {half:.2f}<!-- end --> %" in text
    assert "| student alone | 90.20 ± 0.50 |" in text and "old" not in text and text.endswith("The end.\n")
    readme.write_readme(check=True, readme=path, results=results)
    results.write_text(results.read_text().replace("93.44", "95.44"))
    with pytest.raises(Problem, match="differs"):
        readme.write_readme(check=True, readme=path, results=results)
    for wrong, message in (
        ("number:kd_main/KP", "no row 'KP'.*did you mean 'KD'"),
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
    assert list(main["name"]) == ["rco", "pwkd", "kr", "srm", "iekd", "kd beside one other"]
    expected = {
        "rco": lambda c, kd, kr, srm, iekd: kd * {"rco": 1, "fixed": -1}.get(c, 0) / 8,
        "pwkd": lambda c, kd, kr, srm, iekd: kd * {"pwkd": 1, "fixed": -1}.get(c, 0) / 8,
        "kr": lambda c, kd, kr, srm, iekd: kd * plus(kr) / 12,
        "srm": lambda c, kd, kr, srm, iekd: kd * plus(srm) / 12,
        "iekd": lambda c, kd, kr, srm, iekd: kd * plus(iekd) / 12,
        "kd beside one other": lambda c, kd, kr, srm, iekd: (kr + srm + iekd == 1) * plus(kd) / 9,
    }
    for name, sign in expected.items():
        check_line(line_of(main, name), contrast(accuracy, sign))
    truth = {"rco": 1.0, "pwkd": -1.0, "kr": 0.5, "srm": -0.7, "iekd": 0.0, "kd beside one other": 2.0}
    for name, value in truth.items():
        assert line_of(main, name)["mean"] == pytest.approx(value, abs=0.1)
    assert dict(zip(main["name"], main["verdict"], strict=True)) == {
        "rco": "better", "pwkd": "worse", "kr": "better", "srm": "worse", "iekd": "no difference", "kd beside one other": "better",
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
    assert "Not estimated, because too little of the grid ran: `pwkd`, `kr`, `iekd` and `kd beside one other`." in said
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
        "None of them is better than plain KD.", "Plain KD itself has the highest mean", "Nothing that costs no more than KD is better",
        "no reason to prefer anything here to plain KD", "None is better than each of its parts", "Worse: ",
    ):  # fmt: skip
        assert expected in said, (expected, said)
    assert "combining pays" not in said and "Better than plain KD:" not in said


def test_answer_when_nothing_differs():
    said = " ".join(effects.answer(grid(lambda c, k: 0.0, noise=1.0)))
    for expected in ("None of them is better", "None is worse.", "For the other 32 no difference can be claimed", "no factor changes the accuracy", "no two parts help or hinder"):
        assert expected in said, (expected, said)
    assert "So with these seeds there is no reason" in said


def test_answer_when_a_single_method_wins():
    accuracy = grid(lambda c, k: 2.0 * (effects.name_of(c, k) == "rco * kd"))
    said = " ".join(effects.answer(accuracy))
    assert "Better than plain KD: `rco * kd`." in said and "So a method pays here, but combining adds nothing" in said


def test_answer_when_only_averages_speak():
    accuracy = grid(lambda c, k: 0.6 * ("kr" in k), seeds=5, noise=0.3)
    said = effects.answer(accuracy)
    assert "None of them is better than plain KD." in said and "only averages over the grid speak for `kr`" in said[-1]


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
    assert planned.asked(load_table("kr_main")) == [row["row"] for row in load_table("kr_main")["rows"] if "not_run" not in row]
    assert planned.asked(load_table("kr_ablation")) == [] and len(planned.asked(load_table("srm_grid"))) > 5
    assert plan.plan_counts(made_up_params(seeds=2, run=chosen))[0]["kd"] | {"runs": 0} == {"runs": 0, "tables": 1, "shared": 0}
    for chosen, message in (
        ({"kd": {"kd_mian": "all"}}, r"run.kd: unknown table 'kd_mian' \(did you mean 'kd_main'\?\)"),
        ({"kd": {"kd_main": ["KDD"]}}, r"run.kd.kd_main: no row 'KDD' \(did you mean 'KD'\?\)"),
    ):
        with pytest.raises(Problem, match=message):
            plan.Planned(made_up_params(run=chosen)).asked(load_table("kd_main"))


def test_a_row_that_is_known_from_another_table_is_shown_unasked(repository):
    params = repository / "params.yaml"
    params.write_text(yaml.safe_dump(made_up_params(seeds=1, grid_seeds=1, run={"kd": {"kd_main": ["KD"]}})))
    planned = plan.Planned(yaml.safe_load(params.read_text()))
    planned.folder = repository / "runs" / "x"
    run = planned.row_of("kd_main", "KD")[0]
    planned.records = {study.key_of(run): made_up_records(accuracy_kd_better, rows=["KD"], seeds=(0,))[0] | {"key": study.key_of(run), "run": run}}
    found = planned.run("kd_main", "kd_temperature")
    assert set(zip(found["table"], found["row"], strict=True)) == {("kd_main", "KD"), ("kd_temperature", "KD")}
    assert planned.ran("kd_temperature", "KD") and not planned.ran("kd_main", "KD", "student alone")
