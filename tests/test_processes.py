"""Processes: a whole tree ends with any of its parts, one repro at a time, the same beginning, nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from pipeline import clone, environment

from kd import processes
from kd.checkpoints import write_atomically
from kd.errors import ConfigError

SLEEP = """import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from beginning import begin
pool = ProcessPoolExecutor(1, get_context("spawn"), begin)
worker = pool.submit(os.getpid).result()
with open("pids.new", "w") as file:
    file.write(f"{os.getppid()} {os.getpid()} {worker}")
os.rename("pids.new", "pids")
pool.submit(time.sleep, 600).result()"""
# what kd.study.executor.begin_worker does for signals and parents, in a module that a worker process can import
BEGINNING = """import signal
from kd.processes import end_with_parent
def begin():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()"""
STAGE = "stages:\n  sleep:\n    cmd: python -m kd run sleep.ipynb --out out.ipynb\n    outs: [out.ipynb]\n"
NUMBERS = {name: getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "KILL")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone whose only stage runs a notebook that waits, and has a worker that waits."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    (folder / "dvc.yaml").write_text(STAGE)
    (folder / "beginning.py").write_text(BEGINNING)
    write(new_notebook(cells=[new_code_cell("n: int = 1", metadata={"tags": ["parameters"]}), new_code_cell(SLEEP)]), folder / "sleep.ipynb")
    return folder


def tree(folder, *arguments):
    """(the process `python -m ARGUMENTS`, {name of each process of the tree: psutil.Process}), all of them at work."""
    (folder / "pids").unlink(missing_ok=True)
    main = subprocess.Popen([sys.executable, "-m", *arguments], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (folder / "pids").exists() and main.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (folder / "pids").exists(), main.communicate()[1]
    stage, kernel, worker = map(psutil.Process, map(int, (folder / "pids").read_text().split()))
    found = {"main": psutil.Process(main.pid), "stage": stage, "kernel": kernel, "worker": worker}
    dvc = [process for process in stage.parents() if "dvc" in process.cmdline()]
    return main, found | ({"dvc": dvc[0]} if dvc else {})


# who gets which signal, and what `python -m kd repro` answers
QUICK = [("main", "TERM", 143), ("main", "INT", 130), ("dvc", "TERM", None)]
LONG = [("main", "HUP", 129), ("main", "KILL", -9), ("dvc", "HUP", None), ("dvc", "KILL", None)]
LONG += [(who, name, None) for who in ("stage", "kernel", "worker") for name in NUMBERS]


def check_tree_ends(folder, who, name, code):
    main, found = tree(folder, "kd", "repro")
    try:
        found[who].send_signal(NUMBERS[name])
        said = main.communicate(timeout=12)[1]
        _, left = psutil.wait_procs([process for key, process in found.items() if key != "main"], 12)
        assert not left, f"{name} to {who} leaves {[key for key, process in found.items() if process in left]}"
        assert main.returncode == code if code else main.returncode != 0, said
        assert "Traceback" not in said
    finally:
        for process in found.values():
            if process.is_running():
                process.kill()
        main.wait()
    assert not (folder / "out.ipynb").exists()


@pytest.mark.parametrize("who, name, code", QUICK)
def test_a_signal_ends_the_whole_tree(project, who, name, code):
    check_tree_ends(project, who, name, code)


@pytest.mark.slow
@pytest.mark.parametrize("who, name, code", LONG)
def test_any_signal_to_anyone_ends_the_whole_tree(project, who, name, code):
    check_tree_ends(project, who, name, code)


def test_a_second_repro_is_refused_by_name(project):
    main, found = tree(project, "kd", "repro")
    try:
        second = subprocess.run([sys.executable, "-m", "kd", "repro"], cwd=project, env=environment(), capture_output=True, text=True)
        assert second.returncode == 2 and f"another repro is running here, process {main.pid};" in second.stderr
        assert len(second.stderr.splitlines()) == 1 and found["worker"].is_running()
        plain = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=project, env=environment(), capture_output=True, text=True)
        assert plain.returncode and "is busy" in plain.stderr and "(PID " in plain.stderr  # DVC's own lock
        assert found["worker"].is_running()
    finally:
        main.terminate()
        main.communicate()


# --- one at a time


def test_a_lock_is_held_by_one_and_let_go_by_the_dead(tmp_path):
    script = f"from kd.processes import alone; import time\nwith alone({str(tmp_path / 'x.lock')!r}, 'this'): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"this is running here, process {holder.pid}; .*kill {holder.pid}"), processes.alone(tmp_path / "x.lock", "this"):
        pass
    told = []
    holder.kill()
    holder.communicate()
    with processes.alone(tmp_path / "x.lock", "this", waiting=told.append):
        assert not told and (tmp_path / "x.lock.pid").read_text() == str(os.getpid())
    assert not (tmp_path / "x.lock.pid").exists()


def test_whoever_waits_is_told_and_gets_its_turn(tmp_path):
    script = f"from kd.processes import alone; import time\nwith alone({str(tmp_path / 'x.lock')!r}, 'this'): print('held', flush=True); time.sleep(0.5)"
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    told = []
    with processes.alone(tmp_path / "x.lock", "this", waiting=told.append):
        assert told == [f"this is running here, process {holder.pid}; waiting until it has ended"]
    holder.communicate()


# --- the same beginning


@pytest.mark.parametrize(
    "name, value",
    [("PYTHONHASHSEED", "7"), ("PYTHONOPTIMIZE", "2"), ("PYTHONIOENCODING", "latin-1"), ("PYTHONWARNINGS", "error"), ("PYTHONSTARTUP", "/nowhere.py")]
    + [("LC_ALL", "C"), ("LC_ALL", "POSIX"), ("TZ", "Asia/Tokyo"), ("PYTHONUTF8", "0"), ("PYTHONDEVMODE", "1"), ("PYTHONINTMAXSTRDIGITS", "640")],
)
def test_whatever_the_shell_says_python_begins_alike(tmp_path, name, value):
    (tmp_path / "main.py").write_text(
        "from kd import processes\nprocesses.begin_alike()\nimport sys, time, locale\n"
        "print(sys.argv, sys.flags, hash('x'), sys.stdout.encoding, time.tzname, locale.getpreferredencoding(), sys.warnoptions)"
    )

    def said(**more):
        variables = {key: value for key, value in os.environ.items() if key not in ("LC_ALL", "TZ", "PYTHONHASHSEED")} | more
        done = subprocess.run([sys.executable, tmp_path / "main.py", "-x", "a b"], cwd=processes.Path(__file__).parents[1], env=variables, capture_output=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    assert said() == said(**{name: value})


NOTEBOOK = """import locale, os, sys, time
import matplotlib
print(sys.flags, sys.warnoptions, sys.stdout.encoding, locale.getpreferredencoding(), time.tzname, hash("x"))
print(os.getcwd(), sorted(n for n in globals() if n.startswith("mine")), matplotlib.rcParams["lines.linewidth"], {"b", "a", "c"})
assert sys.flags.optimize == 0"""


def test_nothing_of_the_shells_or_the_users_gets_into_a_page(tmp_path):
    """All at once: start-up files, variables, locale, hash seed, time zone, umask, folder, matplotlib's settings."""
    write(new_notebook(cells=[new_code_cell("n: int = 1", metadata={"tags": ["parameters"]}), new_code_cell(NOTEBOOK)]), tmp_path / "a.ipynb")
    home = tmp_path / "home"
    for name, text in {
        ".ipython/profile_default/startup/00-mine.py": "mine = 1\nprint('mine')",
        ".ipython/profile_default/ipython_config.py": "c.InteractiveShellApp.exec_lines = ['mine2 = 2']",
        ".ipython/profile_default/ipython_kernel_config.py": "c.InteractiveShellApp.exec_lines = ['mine3 = 3']",
        ".config/matplotlib/matplotlibrc": "lines.linewidth: 9",
        "startup.py": "mine4 = 4",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    variables = {"HOME": str(home), "PYTHONSTARTUP": str(home / "startup.py"), "PYTHONHASHSEED": "5", "PYTHONOPTIMIZE": "1", "PYTHONWARNINGS": "error"}
    variables |= {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "LANG": "de_DE", "TZ": "Asia/Tokyo", "PYTHONDONTWRITEBYTECODE": "1"}
    root = str(processes.Path(__file__).parents[1])
    script = f"import sys; sys.path.insert(0, {root!r}); from kd.pipeline.notebook import run; run(*sys.argv[1:], {{}})"
    pages = []
    for name, more, folder, mask in (("plain", {}, root, 0o022), ("mine", variables, home, 0o077)):
        out = tmp_path / f"{name}.ipynb"
        subprocess.run([sys.executable, "-c", script, tmp_path / "a.ipynb", out], cwd=folder, env=environment(**more), umask=mask, check=True)
        pages.append(out.read_text())
    assert pages[0] == pages[1]


# --- what is temporary


def test_what_the_killed_left_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.tempfile, "tempdir", str(tmp_path))
    script = "import sys, time, tempfile; tempfile.tempdir = sys.argv[1]; from kd.processes import temporary_folder\nwith temporary_folder() as f: print(f, flush=True); time.sleep(60)"
    killed, alive = (subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2))
    of_killed, of_alive = (processes.Path(process.stdout.readline().strip()) for process in (killed, alive))
    killed.kill()
    killed.communicate()
    with processes.temporary_folder():
        assert of_killed.exists()  # too young: it might be on its way
    for folder in (of_killed, of_alive):
        os.utime(folder, (1, 1))
    with processes.temporary_folder() as mine:
        assert not of_killed.exists() and of_alive.exists() and mine.exists()
    assert not mine.exists()
    alive.kill()
    alive.communicate()


def test_files_half_written_by_the_killed_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {"killed": f".a.json.{dead.pid}.tmp", "young": f".b.json.{dead.pid}.tmp", "other": ".notes.tmp"}
    for name in names.values():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_text("half")
        os.utime(tmp_path / "p" / name, (1, 1))
    os.utime(tmp_path / "p" / names["young"])
    write_atomically(tmp_path / "p" / "a.json", "whole")
    processes.sweep_files(tmp_path)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {names["young"], names["other"], "a.json"}
