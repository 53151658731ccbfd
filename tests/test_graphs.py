"""What a recorded step must get right that does not need a GPU: here the recording is a tape of torch's operations, and replaying
it does them again on the same memory, without the Python around them, as a CUDA graph does."""

import itertools
import os

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd import graphs
from kd.methods import KNOWLEDGE, Teachers, make
from kd.methods.kd import KD
from kd.models import build
from kd.recipe import Recipe
from kd.training import distill

# powers of two: a learning rate in a tensor is a float32
RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=2.0**-6, milestones=(0.5,), gamma=0.25)
OPTIONS = [
    ("kr", {"recoding": "threshold"}),
    ("kr", {"recoding": "mask gradient"}),
    ("kr", {"aggregation": "gram"}),
    ("kr", {"statistic": "weights"}),
    ("srm", {"exact_atoms": True, "drift": True}),
    ("iekd", {"carry": "features", "distance": "cka"}),
]
SRM = {"learning_rate": 2.0**-6, "warm_up": 0.5}  # by Adam


def method(name, options=None):
    """The arguments of kd.methods.make; SRM alone would pass on nothing after its warm-up."""
    knowledge = [name, "kd"] if name == "srm" else [name]
    return knowledge, "fixed", {name: (SRM if name == "srm" else {}) | (options or {})}


METHODS = {name: method(name) for name in KNOWLEDGE} | {f"{name} {options}": method(name, options) for name, options in OPTIONS}
METHODS |= {"rco": (["kd"], "rco", {"rco": {"anchors": 2}})}


class Tape(TorchDispatchMode):
    """The operations asked for, in order, each with the tensors it was given and those it gave."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, found))
        return found

    @torch.no_grad()
    def play(self):
        for function, arguments, options, found in self.calls:
            again = function(*arguments, **options)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor done in place
                    old.copy_(new)


@pytest.fixture
def replays(monkeypatch):
    """Recordings on the CPU. Counts the replays."""
    count = []

    def record(step, groups):
        with Tape() as tape:
            found = step()  # unlike a graph's recording this does the step: the first replay is done

        def replay():
            if count and count[-1] is tape:
                tape.play()
            count.append(tape)
            return found

        return replay

    monkeypatch.setattr(graphs, "wanted", lambda device: os.environ["KD_GRAPHS"] == "1")
    monkeypatch.setattr(graphs, "record", record)
    return count


def trained(method, on, monkeypatch, recipe=RECIPE):
    """(result, student) of a run over 45 images: five batches of 8, and a rest."""
    monkeypatch.setenv("KD_GRAPHS", str(int(on)))
    torch.manual_seed(0)
    data = tiny.data(45, 0, 16, classes=10, channels=3, padding=1, flip=True)
    networks = [build(name, 10, 3) for name in ("cnn6x16", "cnn6x16", "cnn3x4")]
    return distill(networks[2], make(*method), Teachers(route=networks[:2]), data, recipe), networks[2]


@pytest.mark.parametrize("name, precision", [*((name, "fp32") for name in METHODS), ("kd", "bf16"), ("iekd", "bf16")])
def test_a_recorded_step_learns_the_same(name, precision, replays, monkeypatch):
    recipe = RECIPE.replace(precision=precision)
    (plain, mine), (recorded, theirs) = (trained(METHODS[name], on, monkeypatch, recipe) for on in (False, True))
    phases = sum(entry["epoch"] == 1 for entry in recorded.curve)
    assert len(replays) == 5 * len(recorded.curve) - graphs.WARM_UP * phases  # the rest of an epoch is never replayed
    assert plain.teacher_images == recorded.teacher_images
    for a, b in zip(plain.curve, recorded.curve, strict=True):
        assert a["phase"] == b["phase"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["kd", "srm", "rco"])
def test_a_recorded_run_resumes_to_the_bit(name, replays, monkeypatch, tmp_path):
    monkeypatch.setenv("KD_GRAPHS", "1")
    tiny.check_resume(make(*METHODS[name]), Teachers(route=[tiny.teacher(5), tiny.teacher(6)]), tmp_path, [2, 3], RECIPE)
    assert replays


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
    data = tiny.data(8 * batches - 3, 0, 8, classes=10, channels=3, padding=1, flip=True)
    networks = [build(name, 10, 3) for name in ("cnn6x16", "cnn6x16", "cnn3x4")]
    with Waits() as waits:
        distill(networks[2], make(*method), Teachers(route=networks[:2]), data, RECIPE.replace(epochs=2))
    return waits.count


@pytest.mark.parametrize("name", METHODS)
def test_no_step_makes_the_host_wait(name):
    assert waits(METHODS[name], 2) == waits(METHODS[name], 6) > 0


def test_a_loss_that_reads_a_number_is_noticed(monkeypatch):
    loss = KD.loss
    monkeypatch.setattr(KD, "loss", lambda self, *arguments: {k: v * float(v > 0) for k, v in loss(self, *arguments).items()})
    assert waits((["kd"],), 2) < waits((["kd"],), 6)


def test_a_loss_that_counts_its_steps_is_noticed(replays, monkeypatch):
    loss, sums = KD.loss, []
    for on in (False, True):
        steps = itertools.count(1)
        monkeypatch.setattr(KD, "loss", lambda *arguments, steps=steps: {k: v * next(steps) for k, v in loss(*arguments).items()})
        sums.append(trained(METHODS["kd"], on, monkeypatch)[0].last["loss"]["logits"])
    assert sums[1] < 0.9 * sums[0]  # the recording knows one number
