import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data():
    return tiny.data()


@pytest.fixture
def networks():
    """(teacher, student), freshly initialised, for the tiny data."""
    return tiny.network("cnn6x8"), tiny.network()


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """(folder, the first run's subprocess.CompletedProcess) of a fresh clone in which the smoke profile has run.

    Tests of the xdist_group "pipeline" run in one process and so share it; each leaves it as it was.
    """
    from pipeline import clone, command

    folder = clone(tmp_path_factory.mktemp("clone"))
    command(folder, "kd", "use", "smoke")
    return folder, command(folder, "kd", "repro")
