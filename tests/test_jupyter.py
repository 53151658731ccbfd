"""Notebooks opened by hand: in Jupyter, whose kernels start in notebooks/, and under papermill."""

import shlex
import subprocess
import sys
import sysconfig

import nbformat
import pytest
from pipeline import ROOT, environment, hashes

pytestmark = pytest.mark.xdist_group("pipeline")


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
