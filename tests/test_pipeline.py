"""The whole pipeline on the smoke profile, as a person with a fresh clone has it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def environment(**more):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # DVC's own state elsewhere than in the home directory: one test must not see what another left there
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", **more}


def command(folder, *arguments, check=True, **more):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, env=environment(**more))
    if check:
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def clone(target):
    """What git would bring: tracked files and new ones, nothing that is ignored."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    return target


def hashes(folder, *names):
    files = [f for name in names for f in ([folder / name] if (folder / name).is_file() else sorted((folder / name).rglob("*")))]
    return {str(f.relative_to(folder)): hashlib.md5(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def ran(output):
    """The stages that an output of `dvc repro` says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A fresh clone in which the smoke profile has run."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    command(folder, "kd", "use", "smoke")
    first = command(folder, "kd", "repro")
    return folder, first


def test_the_first_run_makes_every_report(project):
    folder, first = project
    stages = list(yaml.safe_load((folder / "dvc.yaml").read_text())["stages"])
    assert {name.split("@")[0] for name in ran(first.stdout)} == set(stages)
    reports = folder / "reports" / "smoke"
    assert {p.name for p in reports.iterdir()} >= {"notebooks", "results.csv", "tables.md", "figures"}
    written = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for notebook in written:
        assert list((reports / "notebooks").glob(f"{notebook.stem}*.ipynb")), f"{notebook.name} did not reach the reports"
    assert "Reports: reports/smoke/" in first.stdout and "top-1" in first.stdout  # it ends with the tables and where they lie


def test_executed_notebooks_are_small_whole_and_quiet(project):
    for path in (project[0] / "reports" / "smoke" / "notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert len(text) < 600_000, f"{path.name}: {len(text) / 1000:.0f} kB"
        outputs = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
        assert outputs and not [o for o in outputs if o["output_type"] == "error"]
        assert not [o for o in outputs if o.get("name") == "stderr"], f"{path.name} shows warnings: {[o['text'] for o in outputs if o.get('name') == 'stderr'][:1]}"


def test_the_second_run_does_nothing(project):
    folder, _ = project
    second = command(folder, "dvc", "repro")
    assert ran(second.stdout) == []
    assert "up to date" in second.stdout


def test_two_clean_runs_give_the_same_bytes(project, tmp_path):
    folder, _ = project
    again = clone(tmp_path)
    shutil.copy(folder / "params.yaml", again / "params.yaml")  # `kd use` would make empty folders, which DVC calls modified
    # a fresh clone with the lock file: what is not there yet is said to be missing, and nothing is said to have changed
    shutil.copy(folder / "dvc.lock", again / "dvc.lock")
    status = json.loads(command(again, "dvc", "status", "--json").stdout or "{}")
    for stage, changes in status.items():
        kinds = {kind for change in changes if isinstance(change, dict) for part in change.values() for kind in part.values()}
        assert kinds <= {"deleted", "not in cache"}, f"{stage}: {changes}"
    # two of the methods' stages stand for all: the whole again would double the tests' time
    command(again, "dvc", "repro", "kd", "rco", KD_WORKERS="1")
    names = ["runs/smoke/kd", "runs/smoke/rco", "runs/smoke/notebooks/00_teacher-cnn3x8.ipynb", "models/smoke/routes"]
    names += ["runs/smoke/notebooks/01_kd.ipynb", "runs/smoke/notebooks/04_rco.ipynb", "data/smoke"]
    assert hashes(folder, *names) == hashes(again, *names)


def test_correcting_prose_trains_nothing_and_reaches_the_report(project):
    folder, _ = project
    notebook = folder / "notebooks" / "01_kd.ipynb"
    original = notebook.read_text()
    try:
        content = json.loads(original)
        cell = next(c for c in content["cells"] if c["cell_type"] == "markdown")
        cell["source"] = ["# A corrected title\n"]
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        loop = folder / "kd" / "distill.py"
        loop.write_text(loop.read_text().replace('"""The one training loop', '"""THE one training loop') + "\n# a comment\n")
        done = command(folder, "dvc", "repro")
        assert set(ran(done.stdout)) == {"code", "pages"}
        assert "A corrected title" in (folder / "reports" / "smoke" / "notebooks" / "01_kd.ipynb").read_text()
    finally:
        notebook.write_text(original)
        shutil.copy(ROOT / "kd" / "distill.py", folder / "kd" / "distill.py")
        command(folder, "dvc", "repro")


def test_a_parameter_reruns_its_stage_and_what_depends_on_it(project):
    folder, _ = project
    params = folder / "params.yaml"
    original = params.read_text()
    try:
        params.write_text(original.replace("  delta: 0.8", "  delta: 0.7"))
        assert params.read_text() != original
        planned = command(folder, "dvc", "repro", "--dry")
        assert "rco" in ran(planned.stdout) and not {"kd", "kr", "srm", "iekd", "pwkd"} & set(ran(planned.stdout))
    finally:
        params.write_text(original)


def test_the_whole_plan_shows_before_anything_is_there(tmp_path):
    folder = clone(tmp_path)
    command(folder, "kd", "use", "cifar100")
    planned = ran(command(folder, "dvc", "repro", "--dry").stdout)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    single = [name for name, stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].items() if "foreach" not in stage]
    assert set(planned) == {*single, *(f"teacher@{n}" for n in params["teachers"]), *(f"supernet@{n}" for n in params["supernets"])}


def test_switching_away_and_back_retrains_nothing(project):
    folder, _ = project
    before = hashes(folder, "reports/smoke", "models/smoke", "runs/smoke")
    command(folder, "kd", "use", "digits")
    command(folder, "dvc", "repro", "data")
    command(folder, "kd", "use", "smoke")
    back = command(folder, "dvc", "repro")
    assert not [name for name in ran(back.stdout) if name != "data"]
    assert hashes(folder, "reports/smoke", "models/smoke", "runs/smoke") == before


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["kd", "run", "notebooks/01_kd.ipynb", "--out", "x.ipynb", "-p", "temprature=2"], "did you mean 'temperature'"),
        (["kd", "run", "notebooks/01_kd.ipynb", "--out", "x.ipynb", "-p", "temperature=warm"], "temperature: expected a number"),
        (["kd", "run", "notebooks/01_kd.ipynb", "--out", "x.ipynb", "--params", "params.yaml:kdd"], "did you mean 'kd'"),
        (["kd", "use", "digit"], "did you mean 'digits'"),
        (["kd", "show", "kd_man", "KD"], "did you mean 'kd_main'"),
        (["kd", "show", "kd_main", "KR"], "has no row 'KR'"),
        (["kd", "fetch", "cifar1000"], "cifar100"),
    ],
)
def test_mistakes_are_named_in_one_line(project, arguments, said):
    done = command(project[0], *arguments, check=False)
    assert done.returncode == 2 and said in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (project[0] / "x.ipynb").exists()


def test_the_records_behind_a_cell(project):
    shown = command(project[0], "kd", "show", "kd_main", "KD").stdout
    for part in ("temperature=4.0", "route md5", "data        digits, md5", "torch 2", "top1_last", "epochs=10"):
        assert part in shown


def test_an_interrupted_stage_goes_on_to_the_same_bits(project):
    """kill -9 in the middle of a stage; the next run takes over the finished runs and ends in the same records."""
    folder, _ = project
    before = hashes(folder, "runs/smoke/rco", "runs/smoke/notebooks/04_rco.ipynb")
    arguments = [sys.executable, "-m", "kd", "run", "notebooks/04_rco.ipynb", "--params", "params.yaml:rco", "-p", "seeds=2", "-p", "grid_seeds=1"]
    arguments += ["--output", "runs/smoke/rco", "--out", "runs/smoke/notebooks/04_rco.ipynb"]
    process = subprocess.Popen(arguments, cwd=folder, env=environment(KD_WORKERS="1"), start_new_session=True, stderr=subprocess.DEVNULL)
    import signal
    import time

    kept = lambda: [p for p in (folder / ".resume").rglob("*.json") if p.stat().st_size]  # noqa: E731
    deadline = time.monotonic() + 120
    while len(kept()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "the stage ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = len(kept())
    assert found >= 3
    subprocess.run(arguments, cwd=folder, env=environment(), check=True, stderr=subprocess.DEVNULL)
    assert hashes(folder, "runs/smoke/rco", "runs/smoke/notebooks/04_rco.ipynb") == before
    assert not kept()  # the stage is done: nothing is kept
