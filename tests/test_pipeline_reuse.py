"""What a change to a finished study trains anew, and what it does not."""

import json
import shutil

import yaml
from pipeline import clone, command, counted, edited, hashes, ran, trained


def test_correcting_prose_runs_nothing_and_reaches_the_report(project):
    folder, _ = project
    notebook = folder / "notebooks" / "01_kd.ipynb"
    title = json.loads(notebook.read_text())["cells"][0]["source"][0].strip()
    with edited(folder, "notebooks/01_kd.ipynb", title, "# A corrected title"), edited(folder, "kd/training.py", "The one way of training", "THE way of training"):
        done = command(folder, "dvc", "repro")
        assert set(ran(done)) == {"code", "pages"}
        assert "A corrected title" in (folder / "reports" / "smoke" / "notebooks" / "01_kd.ipynb").read_text()
    command(folder, "dvc", "repro")


def test_pictures_captions_notes_and_tables_code_train_nothing(project):
    folder, _ = project
    with (
        edited(folder, "kd/report/figures.py", '"#0072B2"', '"#0072B3"'),
        edited(folder, "kd/study/records.py", "fixes initial weights", "fixes the initial weights"),
        edited(folder, "kd/study/group.py", '"done"', '"at its end"'),
        edited(folder, "tables/kd/kd_main.yaml", "A student trained on the labels alone", "A student that learns from the labels alone"),
    ):
        done = command(folder, "dvc", "repro", "kd", "rco")
        assert {"kd", "rco"} <= set(ran(done)) and counted(done)["rco"][1] and not trained(done)
        assert "A student that learns from the labels alone" in (folder / "runs/smoke/notebooks/01_kd.ipynb").read_text()
    assert not trained(command(folder, "dvc", "repro"))


def test_one_more_row_and_one_more_seed_train_their_own_runs(project):
    folder, _ = project
    row = "  - row: KD\n    knowledge: [kd]\n"
    with edited(folder, "tables/kd/kd_main.yaml", row, f"  - {{row: warm KD, knowledge: [kd], kd: {{temperature: 7.0}}}}\n{row}"):
        seeds = yaml.safe_load((folder / "params.yaml").read_text())["seeds"]
        assert trained(command(folder, "dvc", "repro", "kd")) == {"kd": seeds}
    with edited(folder, "params.yaml", f"\nseeds: {seeds}", f"\nseeds: {seeds + 1}"):
        rows = len(yaml.safe_load((folder / "tables/kd/kd_main.yaml").read_text())["rows"])
        assert trained(command(folder, "dvc", "repro", "kd")) == {"kd": rows}
    assert not trained(command(folder, "dvc", "repro"))


def test_a_changed_method_trains_its_own_runs(project):
    folder, _ = project
    with edited(folder, "kd/methods/pwkd.py", "from kd.recipe import Schedule\n", "from kd.recipe import Schedule\n\nCHANGED = True\n"):
        done = command(folder, "dvc", "repro", "kd", "pwkd")
        records = [json.loads(line) for line in (folder / "runs/smoke/pwkd/records.jsonl").read_text().splitlines()]
        assert trained(done) == {"pwkd": sum(record["run"]["curriculum"] == "pwkd" for record in records)}
    assert not trained(command(folder, "dvc", "repro"))


def test_a_parameter_reruns_its_stage_and_what_depends_on_it(project):
    with edited(project[0], "params.yaml", "  delta: 0.8", "  delta: 0.7"):
        planned = command(project[0], "dvc", "repro", "--dry")
        assert "rco" in ran(planned) and not {"kd", "kr", "srm", "iekd", "pwkd"} & set(ran(planned))


def test_switching_away_and_back_retrains_nothing(project):
    folder, _ = project
    before = hashes(folder, "reports/smoke", "models/smoke", "runs/smoke")
    command(folder, "kd", "use", "digits")
    command(folder, "dvc", "repro", "data")
    command(folder, "kd", "use", "smoke")
    back = command(folder, "dvc", "repro")
    assert not [name for name in ran(back) if name != "data"]
    assert hashes(folder, "reports/smoke", "models/smoke", "runs/smoke") == before


def test_a_study_is_shared_through_a_remote(project, tmp_path):
    """push on one machine, pull in a fresh clone on another: nothing is trained there, not even after a caption has changed."""
    folder, _ = project
    before = hashes(folder, "reports/smoke", "models/smoke", "runs/smoke")
    remote, other = tmp_path / "remote", clone(tmp_path / "other")
    command(folder, "dvc", "remote", "add", "-f", "-d", "shared", str(remote))
    command(folder, "dvc", "push")
    for name in ("params.yaml", "dvc.lock", ".dvc/config"):  # what git brings
        shutil.copy(folder / name, other / name)
    shutil.copytree(folder / "reports" / "smoke", other / "reports" / "smoke")
    command(other, "dvc", "pull")
    assert hashes(other, "models/smoke", "runs/smoke", "reports/smoke") == before
    assert ran(command(other, "dvc", "repro")) == []
    with edited(other, "tables/kd/kd_main.yaml", "A student trained on the labels alone", "A student of the labels alone"):
        done = command(other, "dvc", "repro", "kd", "teacher")
        assert ran(done)[-1] == "kd" and counted(done)["kd"][1] and not trained(done)
    command(folder, "dvc", "remote", "remove", "shared")


def test_the_store_is_counted_and_pruned(project):
    folder, _ = project
    assert "smoke" in command(folder, "kd", "clean", "--prune").stdout
    with edited(folder, "tables/kd/kd_main.yaml", "A student trained on the labels alone", "A student of labels"):
        done = command(folder, "dvc", "repro", "kd")
        assert ran(done)[-1] == "kd" and not trained(done)  # what tables ask for is still there
    assert "would remove 0 entries" in command(folder, "kd", "clean").stdout
