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


def pytest_collection_modifyitems(items):
    """The pipeline's tests first: they share one clone, and so one process, and take longer than all others."""
    items.sort(key=lambda item: item.path.stem != "test_pipeline")
