"""Processes that begin alike, run one at a time where they must, end together, and leave nothing behind.

A study is a tree: `python -m kd repro`, DVC, a stage, its notebook's kernel, and workers. Whichever of them is told to end, by Ctrl-C, by
a batch system or by a closed terminal, all of them end within seconds; what had finished stays in the store.
"""

import ctypes
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kd.errors import ConfigError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5  # seconds that a process has to end by itself before it is ended
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# What a person's shell says of Python and must not decide a result. These say where packages lie, or change nothing that is computed.
HARMLESS = {"PATH", "HOME", "NOUSERSITE", "USERBASE", "SAFEPATH", "PYCACHEPREFIX", "DONTWRITEBYTECODE", "UNBUFFERED", "FAULTHANDLER"}
TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # how kd.checkpoints.write_atomically names a file on its way, with its process
AGE = 60  # seconds after which something temporary whose owner is gone is certainly no longer being made


# --- ending


class Stopped(KeyboardInterrupt):
    """A signal told this process to end; `number` is the signal's. A KeyboardInterrupt, so that every library takes it as Ctrl-C."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def end_on_signals():
    """From now on the first of SIGNALS raises Stopped in the main thread, and seconds later this process is over whatever holds it up.

    A signal that whoever started the process has it ignore (nohup, a script's &) stays ignored.
    """

    def stop(number, frame):
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # the first one is being obeyed
        logging.getLogger("asyncio").disabled = True  # it would tell of every task that is broken off, with a traceback
        last = threading.Timer(2 * GRACE, os._exit, [128 + number])
        last.daemon = True
        last.start()
        raise Stopped(number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def end_with_parent(number=signal.SIGKILL):
    """Have this process sent a signal when its parent ends, however that ends. Where the system cannot (not Linux), nothing happens."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def end_with_parent_gently():
    """As `end_with_parent`, by SIGTERM; for what has something to put down."""
    end_with_parent(signal.SIGTERM)


def end_with_dvc():
    """In a stage that DVC has started: get SIGTERM when DVC ends. Between the two there may be a shell, which would not pass it on."""
    import psutil

    end_with_parent_gently()
    above = psutil.Process().parents()[:2]
    if above and "python" in above[0].name():
        above = above[:1]  # no shell between

    def watch():
        while all(process.is_running() for process in above):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_children(lowest_first=False):
    """End all processes below this one. lowest_first: so that DVC sees its stage end, and has time to put down what it knows."""
    import psutil

    own = psutil.Process()
    direct, below = own.children(), own.children(recursive=True)

    def ask(processes, how, seconds):
        for process in processes:
            with suppress(psutil.Error):
                if "resource_tracker" not in " ".join(process.cmdline()):  # Python's, which clears away and ends by itself
                    how(process)
        return psutil.wait_procs(processes, seconds)[1]

    if lowest_first and len(below) > len(direct):
        ask([process for process in below if process not in direct], psutil.Process.terminate, 0)
        psutil.wait_procs(direct, GRACE / 2)
    ask(ask(below, psutil.Process.terminate, GRACE / 2), psutil.Process.kill, 0)


# --- one at a time


@contextmanager
def alone(path, what, waiting=None):
    """Hold the lock `path` while the block runs. It is let go when the process ends, even by a kill -9.

    what: how a message names whoever holds it, "another repro". waiting: (text) -> None, told so before this process waits its turn;
    None: it does not wait, ConfigError names the process that holds the lock.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(path, timeout=0), path.with_name(f"{path.name}.pid")
    try:
        lock.acquire()
    except Timeout:
        holder = owner.read_text() if owner.exists() else "?"
        if waiting is None:
            raise ConfigError(f"{what} is running here, process {holder}; wait until it has ended, or end it with `kill {holder}`") from None
        waiting(f"{what} is running here, process {holder}; waiting until it has ended")
        lock.acquire(timeout=-1)
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


# --- the same beginning


def without_python_variables(variables):
    """{name: ""} of what environment variables, a mapping, say to Python and may decide a result; Python takes "" for nothing."""
    return {name: "" for name in variables if name.startswith("PYTHON") and name.removeprefix("PYTHON") not in HARMLESS}


def same_environment():
    """What every process of a study computes under, whoever started it: text is UTF-8, sets have one order, no clock has a zone."""
    return {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def begin_alike():
    """Start this very program anew under `same_environment`, unless it has been: a running Python cannot change it any more.

    To be called before anything else, by the main program alone.
    """
    wanted = {**os.environ, **without_python_variables(os.environ), **same_environment()}
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


# --- what is temporary


@contextmanager
def temporary_folder():
    """A folder that is removed at the end; if this process is killed, by the next one that asks for such a folder."""
    for old in Path(tempfile.gettempdir()).glob("kd-*"):
        sweep_folder(old)
    with tempfile.TemporaryDirectory(prefix="kd-", ignore_cleanup_errors=True) as folder, FileLock(f"{folder}/lock"):
        yield Path(folder)


def sweep_folder(folder):
    """Remove a folder of `temporary_folder` whose process is gone: nobody holds its lock."""
    with suppress(OSError, Timeout):
        if folder.stat().st_uid == os.getuid() and time.time() - folder.stat().st_mtime > AGE and (folder / "lock").exists():
            with FileLock(folder / "lock", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def sweep_files(folder):
    """Remove below a folder what `write_atomically` had not finished when its process was killed."""
    import psutil

    for path in Path(folder).rglob(".*.tmp"):
        named = TEMPORARY.fullmatch(path.name)
        with suppress(OSError):
            if named and not psutil.pid_exists(int(named[1])) and time.time() - path.stat().st_mtime > AGE:
                path.unlink()
