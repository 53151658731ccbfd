"""What a recorded step must get right that does not need a GPU: here the recording is a stand-in that does the step again."""

import os

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kd import graphs
from kd.bench import random_data
from kd.distill import distill
from kd.methods import KNOWLEDGE, Teachers, make
from kd.methods.kd import KD
from kd.models import build
from kd.recipe import Recipe

# powers of two: a learning rate in a tensor is a float32
RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=2.0**-6, milestones=(0.5,), gamma=0.25)
METHODS = {
    "labels": (["labels"], "fixed", {}),
    "kd": (["kd"], "fixed", {}),
    "ft": (["ft"], "fixed", {}),
    "kr": (["kr"], "fixed", {}),
    "srm, Adam": (["srm", "kd"], "fixed", {"srm": {"learning_rate": 2.0**-6, "warm_up": 0.5}}),
    "dml": (["dml"], "fixed", {}),
    "iedml": (["iedml"], "fixed", {}),
    "rco": (["kd"], "rco", {"rco": {"anchors": 2}}),
}


@pytest.fixture
def stand_in(monkeypatch):
    """Recordings on the CPU. Counts the replays."""
    replays = []

    def record(step, optimizers):
        return lambda: (replays.append(1), step())[1]

    monkeypatch.setattr(graphs, "wanted", lambda device: os.environ["KD_GRAPHS"] == "1")
    monkeypatch.setattr(graphs, "record", record)
    return replays


def trained(method, on, monkeypatch):
    """(result, student) of a run over 45 images: five batches of 8, and a rest."""
    monkeypatch.setenv("KD_GRAPHS", str(int(on)))
    torch.manual_seed(0)
    data = random_data(45, test=16, side=8, classes=10)
    networks = [build(name, 10, 3) for name in ("cnn6x16", "cnn6x16", "cnn3x4")]
    return distill(networks[2], make(*METHODS[method]), Teachers(route=networks[:2]), data, RECIPE), networks[2]


@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_step_learns_the_same(method, stand_in, monkeypatch):
    (plain, mine), (recorded, theirs) = (trained(method, on, monkeypatch) for on in (False, True))
    phases = sum(entry["epoch"] == 1 for entry in recorded.curve)
    assert len(stand_in) == 5 * len(recorded.curve) - graphs.WARM_UP * phases  # the rest of an epoch is never replayed
    assert plain.teacher_images == recorded.teacher_images
    for a, b in zip(plain.curve, recorded.curve, strict=True):
        assert a["phase"] == b["phase"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["kd", "srm, Adam", "rco"])
def test_a_recorded_run_resumes_to_the_bit(method, stand_in, monkeypatch, tmp_path):
    monkeypatch.setenv("KD_GRAPHS", "1")
    tiny.check_resume(make(*METHODS[method]), Teachers(route=[tiny.teacher(5), tiny.teacher(6)]), tmp_path, [2, 3], RECIPE)
    assert stand_in


def test_only_a_gpu_records_and_only_when_asked(monkeypatch):
    monkeypatch.setenv("KD_GRAPHS", "1")
    assert not graphs.wanted(torch.device("cpu")) and graphs.wanted(torch.device("cuda"))
    monkeypatch.delenv("KD_GRAPHS")
    assert not graphs.wanted(torch.device("cuda"))


class Waits(TorchDispatchMode):
    """Counts the operations for which a host must wait for its device, or feed it from its own memory: no graph may hold one."""

    kinds = {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "_unique2", "unique_dim"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function.overloadpacket.__name__ in self.kinds
        return function(*arguments, **(options or {}))


def waits(method, batches):
    torch.manual_seed(0)
    data = random_data(8 * batches - 3, test=8, side=8, classes=10)
    networks = [build(name, 10, 3) for name in ("cnn6x16", "cnn3x4")]
    with Waits() as waits:
        distill(networks[1], make(*method), networks[0], data, RECIPE.but(epochs=2))
    return waits.count


OPTIONS = [
    ("kr", {"recoding": "threshold"}),
    ("kr", {"recoding": "mask gradient"}),
    ("kr", {"aggregation": "gram"}),
    ("kr", {"statistic": "weights"}),
    ("srm", {"exact_atoms": True, "drift": True}),
    ("iekd", {"carry": "features", "distance": "cka"}),
]


@pytest.mark.parametrize("name, options", [(name, {}) for name in KNOWLEDGE] + OPTIONS, ids=str)
def test_no_step_makes_the_host_wait(name, options):
    method = ([name, "kd"] if name == "srm" else [name], "fixed", {name: options})
    assert waits(method, 2) == waits(method, 6) > 0


def test_a_loss_that_reads_a_number_is_noticed(monkeypatch):
    loss = KD.loss
    monkeypatch.setattr(KD, "loss", lambda self, *arguments: {k: v * float(v > 0) for k, v in loss(self, *arguments).items()})
    assert waits((["kd"],), 2) < waits((["kd"],), 6)
