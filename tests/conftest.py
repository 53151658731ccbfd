import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """The digits, 100 of them to train on: one epoch takes a few milliseconds."""
    from kd.data import load_data

    return load_data("digits", validation=257, padding=1, flip=False, cache=None).few(10, 0)


@pytest.fixture
def networks():
    """(teacher, student), freshly initialised: cnn6x8 and cnn3x4 for 1x8x8 images of ten classes."""
    from kd.models import build

    torch.manual_seed(0)
    return build("cnn6x8", 10, 1), build("cnn3x4", 10, 1)
