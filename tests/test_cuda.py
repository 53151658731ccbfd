"""What only a GPU can show: that the host does not wait for it inside a step, and that results agree with the CPU's."""

import warnings

import pytest
import tiny
import torch

from kd.methods import KNOWLEDGE, make
from kd.models import build
from kd.recipe import Recipe
from kd.training import distill

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ONCE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3)


def waits(method, steps, precision):
    """How often the host waits for the device in an epoch of `steps` batches, the last of them smaller."""
    torch.manual_seed(0)
    data = tiny.data(16 * steps - 3, 0, 16, classes=10, channels=3, padding=1, flip=True).to("cuda")
    teacher, student = (build(name, 10, 3).to("cuda") for name in ("cnn6x16", "cnn3x4"))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            distill(student, make([method]), teacher, data, ONCE.replace(precision=precision))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", KNOWLEDGE)
def test_a_step_never_waits_for_the_device(method, precision):
    waits(method, 2, precision)  # the first time, kernels are chosen and memory is fetched
    assert waits(method, 4, precision) == waits(method, 12, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", KNOWLEDGE)
def test_a_recorded_step_learns_the_same(method, precision, monkeypatch):
    """Graph or not: the same losses, up to the order in which a GPU adds up."""
    losses = []
    for on in "01":
        monkeypatch.setenv("KD_GRAPHS", on)
        torch.manual_seed(0)
        data = tiny.data(16 * 9 - 3, 0, 16, classes=10, channels=3, padding=1, flip=True).to("cuda")
        teacher, student = (build(name, 10, 3).to("cuda") for name in ("cnn6x16", "cnn3x4"))
        losses.append(distill(student, make([method]), teacher, data, ONCE.replace(precision=precision)))
    plain, recorded = losses
    assert plain.teacher_images == recorded.teacher_images
    for a, b in zip(plain.curve, recorded.curve, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3 if precision == "fp32" else 2e-2)


def test_batches_are_the_same_on_every_device():
    data = tiny.data(100, 0, 10, classes=10, channels=3, padding=1, flip=True)
    for here, there in zip(data.batches(3, 5, 32), data.to("cuda").batches(3, 5, 32), strict=True):
        assert torch.equal(here.index, there.index.cpu()) and torch.equal(here.labels, there.labels.cpu())
        assert torch.allclose(here.images, there.images.cpu(), atol=1e-6)
