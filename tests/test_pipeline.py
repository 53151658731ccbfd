"""The whole pipeline on the smoke profile, as a person with a fresh clone has it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from pipeline import ROOT, clone, command, counted, environment, hashes, ran

from kd.study.paths import STAGES


def test_the_first_run_makes_every_report(project):
    folder, first = project
    stages = list(yaml.safe_load((folder / "dvc.yaml").read_text())["stages"])
    assert {name.split("@")[0] for name in ran(first)} == set(stages)
    reports = folder / "reports" / "smoke"
    assert {p.name for p in reports.iterdir()} >= {"notebooks", "results.csv", "tables.md", "figures"}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert list((reports / "notebooks").glob(f"{notebook.stem}*.ipynb")), f"{notebook.name} did not reach the reports"


def test_every_stage_says_what_it_trained_and_shared_runs_are_trained_once(project):
    folder, first = project
    found = counted(first)
    assert {"kd", "kr", "srm", "rco", "iekd", "pwkd", "combined"} <= set(found)
    keys = {json.loads(line)["key"] for path in (folder / "runs" / "smoke").glob("*/records.jsonl") for line in path.read_text().splitlines()}
    assert sum(n for title, (n, _) in found.items() if " " not in title) == len(keys)  # "teacher cnn3x8" and the like have no records


def test_it_ends_with_a_screen_that_can_be_read(project):
    screen = project[1].stdout.rpartition("\n\n\n")[2].splitlines() if "\n\n\n" in project[1].stdout else project[1].stdout.splitlines()[-45:]
    text = "\n".join(screen)
    assert len(screen) <= 45 and max(map(len, screen)) <= 100, text
    assert "smoke" in text and "KD" in text and "reports/smoke" in text


def test_executed_notebooks_are_small_whole_and_quiet(project):
    for path in (project[0] / "reports" / "smoke" / "notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert len(text) < 600_000, f"{path.name}: {len(text) / 1000:.0f} kB"
        outputs = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
        assert outputs and not [o for o in outputs if o["output_type"] == "error"]
        assert not [o for o in outputs if o.get("name") == "stderr"], f"{path.name} shows warnings: {[o['text'] for o in outputs if o.get('name') == 'stderr'][:1]}"
        assert "trained" not in " ".join(o.get("text", "") for o in outputs if "known" in str(o.get("text", "")))  # what was known depends on the past


def test_the_second_run_does_nothing(project):
    second = command(project[0], "dvc", "repro")
    assert ran(second) == [] and "up to date" in second.stdout


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
    # a stage alone has no tables to end with, and those that lie there may be of other runs
    shutil.copytree(folder / "reports" / "smoke", again / "reports" / "smoke")
    said = command(again, "kd", "repro", "data")
    assert "made, from these stages and all others, by `python -m kd repro`" in said.stdout and "Reports, in" not in said.stdout
    assert "results.csv" not in said.stderr
    shutil.rmtree(again / "reports" / "smoke")
    # two of the methods' stages stand for all: the whole again would double the tests' time
    command(again, "dvc", "repro", "kd", "rco", KD_WORKERS="1")
    names = ["runs/smoke/kd", "runs/smoke/rco", "models/smoke/routes", "data/smoke"]
    names += [f"runs/smoke/notebooks/{name}.ipynb" for name in ("00_teacher-cnn3x8", "01_kd", "04_rco")]
    assert hashes(folder, *names) == hashes(again, *names)


def test_dvc_compares_studies(project):
    """Metrics, plots and experiments, as a person who knows DVC expects them; the experiment runs in a folder of its own."""
    folder, _ = project
    shown = json.loads(command(folder, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert {Path(name).stem for name in shown} == set(STAGES) and all(found["data"]["KD"] > 0 for found in shown.values())
    (folder / "scratch").mkdir(exist_ok=True)  # DVC makes the folder itself, not those above it
    command(folder, "dvc", "plots", "show", "-o", str(folder / "scratch" / "plots"))
    page = (folder / "scratch" / "plots" / "index.html").read_text()
    assert page.count('"strokeDash"') == len(STAGES) and '"row": "RCO, one-stage EEI"' in page
    person = {f"GIT_{who}_{what}": "nobody@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for words in (("add", "-A"), ("commit", "-qm", "a study")):
        subprocess.run(["git", *words], cwd=folder, check=True, env=environment(**person))
    command(folder, "dvc", "exp", "run", "--temp", "-n", "warmer", "-S", "kd.temperature=8.0", "kd", **person)
    changed = json.loads(command(folder, "dvc", "exp", "diff", "HEAD", "warmer", "--json").stdout)
    assert changed["params"]["params.yaml"] == {"kd.temperature": {"old": 4.0, "new": 8.0, "diff": 4.0}}
    assert set(changed["metrics"]["reports/smoke/metrics/kd.json"]) <= {"KD"}
    columns = command(folder, "dvc", "exp", "show", "--csv").stdout.splitlines()[0].split(",")
    assert "kd.temperature" in columns and "reports/smoke/metrics/kd.json:KD" in columns and "about" not in columns
    assert ran(command(folder, "dvc", "repro")) == []


def test_the_records_behind_a_cell(project):
    shown = command(project[0], "kd", "show", "kd_main", "KD").stdout
    for part in ("temperature=4.0", "route md5", "data        digits, md5", "torch 2", "top1_last"):
        assert part in shown


def test_an_interrupted_stage_goes_on_to_the_same_bits(project):
    """kill -9 in the middle of a stage; the next run takes over the finished runs and ends in the same records."""
    folder, _ = project
    before = hashes(folder, "runs/smoke/kd", "runs/smoke/notebooks/01_kd.ipynb")
    aside = {name: f"{name}.aside" for name in ("store", ".dvc/cache", "dvc.lock", "runs/smoke")}
    for name, other in aside.items():  # nor shall DVC know the runs
        (folder / name).rename(folder / other)
    arguments = [sys.executable, "-m", "kd", "stage", "kd"]
    process = subprocess.Popen(arguments, cwd=folder, env=environment(KD_WORKERS="1"), start_new_session=True, stderr=subprocess.DEVNULL)
    kept = lambda: [p for p in (folder / "store").rglob("*.json") if p.stat().st_size]  # noqa: E731
    deadline = time.monotonic() + 120
    while len(kept()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "the stage ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    found = len(kept())
    assert found >= 3
    again = subprocess.run(arguments, cwd=folder, env=environment(), check=True, capture_output=True, text=True)
    assert counted(again)["kd"][1] >= found
    assert hashes(folder, "runs/smoke/kd", "runs/smoke/notebooks/01_kd.ipynb") == before
    for name, other in aside.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / other).rename(folder / name)


# notebooks opened by hand: in Jupyter, whose kernels start in notebooks/, and under papermill


@pytest.fixture(scope="module")
def run_in(project, tmp_path_factory):
    """Runs (folder, arguments of Python) in an environment that has the clone installed as the Makefile installs it."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) + "\n")
    # no variable may help the kernel to find the package, no other kernel of the user's may be taken
    variables = {name: value for name, value in environment().items() if not name.startswith(("PYTHON", "KD_", "JUPYTER", "MPL"))}
    variables |= {"JUPYTER_DATA_DIR": str(venv / "data"), "JUPYTER_CONFIG_DIR": str(venv / "config"), "PIP_NO_INDEX": "1"}

    def run(folder, *arguments):
        done = subprocess.run([venv / "bin" / "python", *arguments], cwd=folder, capture_output=True, text=True, env=variables)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.endswith("-e ."))
    run(project[0], *shlex.split(line)[1:])
    return run


def errors(path):
    """(code cells of an executed notebook, those among them that did not run or failed)."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()]
    bad = [c for c in cells if c.execution_count is None or any(o.output_type == "error" for o in c.outputs)]
    return len(cells), bad


def test_jupyter_runs_a_notebook_where_it_lies(project, run_in, tmp_path):
    folder, _ = project
    before = hashes(folder, "runs", "models", "reports", "notebooks")
    shown = run_in(folder / "notebooks", "-c", "import kd; print(kd.__file__)")
    assert shown.strip() == str(folder / "kd" / "__init__.py")
    out = tmp_path / "out.ipynb"
    run_in(folder / "notebooks", "-c", "from nbclient.cli import main; main()", "01_kd.ipynb", f"--output={out}")  # jupyter execute
    count, bad = errors(out)
    assert count > 5 and not bad
    assert hashes(folder, "runs", "models", "reports", "notebooks") == before  # what a reader does by hand stays in scratch/
    assert list((folder / "scratch").rglob("*.jsonl"))


def test_papermill_runs_a_notebook_from_the_root(project, run_in, tmp_path):
    out = tmp_path / "out.ipynb"
    values = ["-p", "alpha", "0.4", "-p", "seeds", "1", "-p", "grid_seeds", "1"]
    run_in(project[0], "-m", "papermill", "notebooks/01_kd.ipynb", str(out), "--no-progress-bar", *values)
    count, bad = errors(out)
    assert count > 5 and not bad and "alpha = 0.4" in out.read_text()
