"""Two ranks do what one process does: every method, the same curve and weights within rounding, killed and resumed by another number.

This file is also the program that torchrun starts, once for all tests: it trains every case, then dies in the middle of one.
"""

import copy
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import tiny
import torch
from made_up import write_params
from torch import nn

import kd
from kd import ranks
from kd.data import Data
from kd.data.stream import open_stream
from kd.errors import ConfigError
from kd.methods import KNOWLEDGE, Method, Teachers, make
from kd.models.synchronised import synchronised
from kd.study import executor, store
from kd.study.on_ranks import on_ranks
from kd.study.runs import key_of
from kd.study.settings import settings
from kd.teachers import Route, SubNetworks, train_route, train_supernet
from kd.training import Checkpoint, distill

pytest_plugins = ["made_up_root"]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")

CASES = {name: ([name],) for name in KNOWLEDGE} | {
    "ft, collapsed": (["ft"], "fixed", {"ft": {"collapse": True, "rescale": True}}),
    "kr, gram": (["kr"], "fixed", {"kr": {"aggregation": "gram", "recoding": "l1"}}),
    "kr, weights": (["kr"], "fixed", {"kr": {"statistic": "weights"}}),
    "kr, cells": (["kr", "kd"], "fixed", {"kr": {"aggregation": "cells", "recoding": "threshold"}}),
    "srm, all stages": (["srm", "kd"], "fixed", {"srm": {"drift": True, "selection": True, "pooled": True}}),
    "srm, probe": (["srm"], "fixed", {"srm": {"probe": True, "freeze_statistics": True}}),
    "hints first": (["fitnet"], "fixed", {"fitnet": {"stage": "initial"}}),
    "iekd, l2": (["iekd"], "fixed", {"iekd": {"distance": "l2", "split": "random"}}),
    "iekd, cka": (["iekd"], "fixed", {"iekd": {"distance": "cka", "carry": "features"}}),
    "iekd, cosine": (["iekd"], "fixed", {"iekd": {"distance": "cosine", "carry": "attention"}}),
    "dml, at once": (["dml"], "fixed", {"dml": {"update": "simultaneous"}}),
    "iedml, cka": (["iedml"], "fixed", {"iedml": {"distance": "cka"}}),
    "route": (["kd"], "rco", {"rco": {"anchors": 2}}),
    "route of factors": (["ft"], "rco", {"rco": {"anchors": 2}}),
    "greedy": (["kd"], "rco", {"rco": {"strategy": "greedy", "lessons": 2}}),
    "widths": (["kd", "at"], "pwkd", {}),
    "together": (["kd"], "pwkd", {"pwkd": {"order": "together"}}),
}
WITHOUT_SYNC = ["labels", "ft"]
RECIPE = tiny.RECIPE.replace(epochs=2, batch_size=15)
KILLED = RECIPE.replace(epochs=6)  # one process trains two epochs, two ranks two more and are killed, one process the rest


class Doubles(Data):
    """In float64, so that what is not exact shows. The last batch has fewer images than there are ranks, the others are uneven."""

    def batches(self, *arguments, **options):
        return super().batches(*arguments, dtype=torch.float64, **options)

    def chunks(self, split, size, dtype=torch.float64, **options):
        return super().chunks(split, size, dtype, **options)


def data(train=31):
    of = tiny.data(train, validation=40, padding=1, flip=True)
    return Doubles(**{field: getattr(of, field) for field in ("name", "classes", "images", "labels", "mean", "std", "padding", "flip")})


def teachers():
    """Untrained, which is as good here, and the same in every process."""
    route = [tiny.shaken(tiny.network("cnn3x8", seed)) for seed in (5, 6)]
    return Teachers(tiny.Steps(route, [1, 2]), [tiny.shaken(tiny.network("cnn3x8", seed)) for seed in (7, 8)])


@contextmanager
def weights_of(dtype):
    """While the context lasts, networks are made with weights of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trained(case, recipe=RECIPE, of=data, seed=3, dtype=torch.float64, **options):
    """What a run leaves: weights, what its result says, its lessons."""
    if "cka" in case:
        of = partial(data, 29)  # of a single image there is no CKA
    with weights_of(dtype):
        student, method = tiny.network(seed=1), Method.of(make(*CASES[case]))
        result = distill(student, method, teachers(), of(), recipe, seed, **options)
    weights = {"student": student.state_dict(), "knowledge": method.knowledge.state_dict()}
    said = {name: getattr(result, name) for name in ("curve", "teacher_images", "measured")}
    return copy.deepcopy(weights), said, [vars(lesson) for lesson in result.lessons]


def low_precision():
    """What a run in bf16 leaves."""
    return trained("ft", RECIPE.replace(precision="bf16"), tiny.data, dtype=torch.float32)


@weights_of(torch.float64)
def files(folder):
    """What a route and a supernet leave in their files."""
    folder = Path(folder)
    train_route("cnn3x4", data(), RECIPE, 1, folder / "route", resume=folder / "resume")
    train_supernet("cnn3x4", data(), RECIPE, (0.5, 1.0), folder / "supernet", distil_in_place=True, start=folder / "route")
    route, supernet = Route(folder / "route"), SubNetworks(folder / "supernet")
    return {"route": route.states, "supernet": supernet.network.state_dict()}, [route.accuracy, supernet.accuracy]


def checkpoint(folder):
    return Checkpoint(Path(folder) / "killed.safetensors", every=0, case="killed")


def at(epoch, do):
    """An after_epoch that calls do() in that epoch, before it is saved."""
    return lambda result, student: do() if len(result.curve) == epoch else None


def one_of_two(folder):
    """What each process does that torchrun starts."""
    refused = []
    try:
        trained("labels")
    except ConfigError as problem:
        refused.append(str(problem))
    assert kd.join_ranks(device="cpu") == torch.device("cpu") and ranks.count() == 2
    try:
        trained("labels", seed=ranks.rank())
    except ConfigError as problem:
        refused.append(str(problem))
    found = {case: trained(case) for case in CASES}
    found["files"] = files(folder)
    found["low precision"] = low_precision()
    kd.join_ranks(sync_norms=False, device="cpu")
    found |= {f"{case}, norms apart": trained(case) for case in WITHOUT_SYNC}
    kd.join_ranks(device="cpu")
    torch.save({"found": found, "refused": refused}, f"{folder}/rank{ranks.rank()}.pt")
    ranks.wait()
    end = at(4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    trained("srm", KILLED, checkpoint=checkpoint(folder), after_epoch=end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the two ranks left what they found, and a checkpoint that one process began and they went on with until one was killed."""
    folder = tmp_path_factory.mktemp("ranks")

    def stop():
        raise tiny.Stop

    with pytest.raises(tiny.Stop):
        trained("srm", KILLED, checkpoint=checkpoint(folder), after_epoch=at(3, stop))
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(folder)]
    variables = os.environ | {"PYTHONPATH": f"{Path(kd.__file__).parents[1]}{os.pathsep}{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, *program], env=variables, capture_output=True, text=True)
    assert (folder / "rank0.pt").exists() and (folder / "rank1.pt").exists(), done.stderr[-5000:]
    assert done.returncode != 0 and "SIGKILL" in done.stderr
    return folder


@pytest.fixture(scope="module")
def both(folder):
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def check_close(one, other, tolerance=1e-9):
    """The same structure, text and whole numbers; other numbers within a tolerance, relative and absolute."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            check_close(value, other[name], tolerance)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            check_close(*pair, tolerance)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    else:
        assert one == other


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_process_learns(case, both):
    check_close(trained(case), both[0]["found"][case])


def test_a_route_and_a_supernet_too(both, tmp_path):
    check_close(files(tmp_path), both[0]["found"]["files"])


@pytest.mark.parametrize("case", [*CASES, "files", "low precision"])
def test_all_ranks_hold_the_same_bits(case, both):
    check_close(*(said["found"][case] for said in both), 0.0)


@pytest.mark.parametrize("case", WITHOUT_SYNC)
def test_norms_apart_learn_something_else(case, both):
    """Or the option would do nothing. Running statistics are rank 0's, on both."""
    apart = [said["found"][f"{case}, norms apart"] for said in both]
    check_close(*apart, 0.0)
    with pytest.raises(AssertionError):
        check_close(trained(case), apart[0], 1e-3)
    assert apart[0][1]["teacher_images"] == both[0]["found"][case][1]["teacher_images"]


def test_bf16_agrees_within_its_rounding(both):
    curves = [said[1]["curve"] for said in (low_precision(), both[0]["found"]["low precision"])]
    for one, other in zip(*curves, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.03)


def test_what_does_not_fit_is_refused_by_every_rank(both):
    for said in both:
        lonely, other = said["refused"]
        assert "torchrun started 2 processes, and this one has not joined the others; call kd.join_ranks()" in lonely
        assert "rank 1 has another seed than rank 0" in other


def test_a_run_goes_on_with_another_number_of_ranks(folder):
    """1, then 2 until one of them was killed, then 1 again."""
    where, before = checkpoint(folder), checkpoint(folder).load()["progress"]
    assert len(before["curve"]) == 3
    check_close(trained("srm", KILLED), trained("srm", KILLED, checkpoint=where))


# --- slices, without processes


@pytest.fixture
def of(monkeypatch):
    """of(rank, count): be one rank of several, for what needs no other."""

    def be(rank, count):
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "count", lambda: count)

    return be


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 44])
def test_slices_are_the_batches_in_their_order(count, batch_size, of, tmp_path):
    plain = tiny.data(padding=1, flip=True)
    plain.save(tmp_path / "images.safetensors")
    for source in (plain, open_stream(tmp_path / "images.safetensors")):
        slices = []
        for rank in range(count):
            of(rank, count)
            slices.append(list(source.batches(2, 1, batch_size, part=ranks.part)))
        for number, batch in enumerate(plain.batches(2, 1, batch_size)):
            mine = [taken[number] for taken in slices]
            if len(batch.labels) < count:
                assert all(torch.equal(one.images, batch.images) for one in mine)
            else:
                assert torch.equal(torch.cat([one.images for one in mine]), batch.images)
                assert torch.equal(torch.cat([one.index for one in mine]), batch.index)
                assert {len(one.labels) for one in mine} <= {len(batch.labels) // count, -(-len(batch.labels) // count)}


@pytest.mark.parametrize("images", [1, 2, 3, 4, 11])
def test_shares_add_up(images, of):
    found = []
    for rank in range(3):
        of(rank, 3)
        with ranks.batch_of(images):
            taken = ranks.part(images)
            found.append((ranks.share(), ranks.counted(taken.stop - taken.start)))
        assert ranks.IMAGES == 0
    assert sum(share for share, _ in found) == pytest.approx(1) and sum(counted for _, counted in found) == images


def test_chunks_are_shared_out():
    source = tiny.data()
    parts = [list(source.chunks("train", 8, first=rank, every=4)) for rank in range(4)]
    assert torch.equal(torch.cat([chunk.index for part in parts for chunk in part]).sort().values, torch.arange(44))
    assert [len(part) for part in parts] == [2, 2, 1, 1]


def test_an_unknown_norm_is_refused_and_classes_come_back(of):
    class Own(nn.BatchNorm2d):
        pass

    of(0, 2)
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.SyncBatchNorm(2))
    with synchronised(network, network):
        assert type(network[0]) is not nn.BatchNorm1d and type(network[2]) is nn.SyncBatchNorm
    assert [type(part) for part in network] == [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm]
    with pytest.raises(ConfigError, match=r"Own is a batch norm of a kind .*sync_norms=False"), synchronised(nn.Sequential(Own(2))):
        pass


def test_ranks_draw_random_numbers_of_their_own(of):
    """Dropout in a slice: rank 0's are those of one process; the others' hang on rank and epoch alone, so that a run can be resumed."""
    def drawn(rank, *key):
        of(rank, 3)
        torch.manual_seed(1)
        with ranks.own_random_numbers(torch.device("cpu"), *key):
            inside = torch.rand(()).item()
        return inside, torch.rand(()).item()

    torch.manual_seed(1)
    plain = torch.rand(()).item()
    assert drawn(0, 7, 0)[0] == plain and drawn(1, 7, 0) == drawn(1, 7, 0)
    assert len({drawn(rank, 7, epoch)[0] for rank in (1, 2) for epoch in (0, 1)} | {plain}) == 5
    assert drawn(1, 7, 0)[1] == drawn(2, 7, 1)[1] == plain  # outside nothing has moved


# --- KD_RANKS


def run_of(source, **recipe):
    run = {"profile": "made_up", "data": "tiny", "data_md5": source.md5, "images_per_class": 0, "teacher": "", "teacher_md5": {}}
    run |= {"student": "cnn3x4", "knowledge": ["dml"], "curriculum": "fixed", "parameters": {"dml": {}, "fixed": {}}}
    return run | {"recipe": RECIPE.replace(**recipe).as_dict(), "seed": 3}


def train_groups(folder, images, groups, messages):
    """What a worker of a study does with several groups of runs, into a store of its own."""
    store.STORE, store.program_of_run = Path(folder), lambda run: "p"
    for runs in groups:
        executor.train_on_rank([(run, {"data": images}, True) for run in runs], "cpu", messages)


def test_a_study_trains_each_run_on_several_ranks(root, monkeypatch):
    """The same key, alike within float32's rounding; the machine's record says on how many; an error of the ranks is raised here."""
    write_params(root / "params.yaml")
    source, images, entries, queue = tiny.data(train=45), str(root / "images.safetensors"), [], get_context("spawn").Queue()
    source.save(images)
    run, fails = run_of(source), run_of(source, learning_rate=1e30)
    monkeypatch.setenv("KD_DEVICE", "cpu")
    monkeypatch.setattr(store, "program_of_run", store.program_of_run)  # both are put back at the end
    for count in (1, 2):
        monkeypatch.setenv("KD_RANKS", str(count))
        begin = partial(executor.begin_rank, 1)
        with pytest.raises(ConfigError, match=r"dml, seed 3: .*not finite"):
            on_ranks(train_groups, str(root / str(count)), images, [[run], [fails]], queue, begin=begin)
        store.STORE = root / str(count)
        entries.append(store.load("p", key_of(run), weights=True))
        assert store.load("p", key_of(fails)) is None
    assert [entry["machine"]["ranks"] for entry in entries] == [1, 2]
    check_close(*(entry["record"] for entry in entries), 1e-3)
    told = [queue.get(timeout=5) for _ in range(2 * (RECIPE.epochs + 1))]
    assert [message[1:2] + message[3:] for message in told[:3]] == [message[1:2] + message[3:] for message in told[3:]]  # rank 0 alone


def test_with_several_ranks_each_run_has_a_process_group_of_its_own(monkeypatch):
    monkeypatch.setenv("KD_DEVICE", "cpu")
    monkeypatch.delenv("KD_WORKERS", raising=False)
    monkeypatch.setenv("KD_RANKS", "2")
    found = settings()
    assert (found.ranks, found.side_by_side, found.workers) == (2, 1, max(1, os.cpu_count() // 2))
    monkeypatch.setenv("KD_RANKS", "none")
    with pytest.raises(ConfigError, match="KD_RANKS=none"):
        settings()


if __name__ == "__main__":
    torch.set_num_threads(1)
    one_of_two(sys.argv[1])
