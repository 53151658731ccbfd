import os
import pickle
import shutil
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny
import torch
from filelock import FileLock
from pipeline import clone, command

torch.set_num_threads(1)
# in a shell's background a process ignores Ctrl-C, and so would all that the tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data():
    return tiny.data()


@pytest.fixture
def networks():
    """(teacher, student), freshly initialised, for the tiny data."""
    return tiny.network("cnn6x8"), tiny.network()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """(folder, the first run's subprocess.CompletedProcess) of a clone in which the smoke profile has run, once for all processes that test.

    A module of tests has a copy of its own. Every test leaves it as it was.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with FileLock(shared / "smoke.lock"):
        if not (shared / "smoke.said").exists():
            folder = clone(shared / "smoke")
            command(folder, "kd", "use", "smoke")
            (shared / "smoke.said").write_bytes(pickle.dumps(command(folder, "kd", "repro")))
    folder = tmp_path_factory.mktemp("clone") / "smoke"
    shutil.copytree(shared / "smoke", folder, symlinks=True)
    return folder, pickle.loads((shared / "smoke.said").read_bytes())


def pytest_collection_modifyitems(items):
    """The pipeline's tests first, for its first run takes longer than all others; what begins with that run's clone comes last."""
    items.sort(key=lambda item: {"test_pipeline": 0, "test_pipeline_reuse": 2}.get(item.path.stem, 1))
