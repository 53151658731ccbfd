"""Routes and supernets: what is saved, what joint training does, and that a killed run ends in the same bytes."""

import copy
import functools
import itertools
import os
import signal

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open

from kd import checkpoints, teachers
from kd.checkpoints import Checkpoint
from kd.errors import ConfigError
from kd.models import Supernet, build, evaluate
from kd.teachers import Route, SubNetworks, joint_loss, train_route, train_supernet
from kd.training import train

WIDTHS = (0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def data():
    return tiny.data(36, 12, 12)


@pytest.fixture(scope="module")
def route_file(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("route") / "route.safetensors"
    train_route("cnn3x4", data, tiny.LONGER, 4, path, seed=5)
    return path


@pytest.fixture(scope="module")
def supernet_file(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("supernet") / "supernet.safetensors"
    train_supernet("cnn3x4", data, tiny.LONGER, WIDTHS, path, seed=5)
    return path


def test_a_route_is_the_training_of_the_plain_network(route_file, data):
    route = Route(route_file)
    assert len(route) == 2 and route.epochs == [4, 6]  # every 4, and the converged one
    torch.manual_seed(5)
    network, states = build("cnn3x4", 3, 1), []
    result = train(network, data, tiny.LONGER, 5, after_epoch=lambda r, n: states.append(copy.deepcopy(n.state_dict())))
    for index, epoch in enumerate(route.epochs):
        mine = route[index].state_dict()
        assert all(torch.equal(mine[k], v) for k, v in states[epoch - 1].items())
        assert route.accuracy[index]["test"] == result.curve[epoch - 1]["test"] == evaluate(route[index], data)
    assert torch.equal(route[-1].head.weight, network.head.weight) and not route[0].training
    with pytest.raises(ConfigError, match=r"state 2 of the route: .* has 2"):
        route[2]


def test_every_state_is_a_network_of_its_own(route_file):
    route = Route(route_file)
    first = route[0]
    with torch.no_grad():
        first.head.weight.zero_()
    assert route[0].head.weight.abs().sum() > 0 and route[1].head.weight.abs().sum() > 0


def test_wrong_files(route_file, supernet_file, data, tmp_path):
    with pytest.raises(ConfigError, match="not 'supernet'"):
        SubNetworks(route_file)
    with pytest.raises(ConfigError, match="not 'route'"):
        Route(supernet_file)
    with pytest.raises(ConfigError, match="of network 'cnn3x4', not 'resnet8'"):
        Route(route_file, network="resnet8")
    with pytest.raises(ConfigError, match="missing"):
        Route(tmp_path / "none.safetensors")
    for every in (0, 7):
        with pytest.raises(ConfigError, match=r"teacher\.every"):
            train_route("cnn3x4", data, tiny.LONGER, every, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
    with safe_open(route_file, "pt") as file:
        assert file.metadata().keys() == {"kd", "md5"}


def test_joint_loss_against_numpy(data):
    torch.manual_seed(0)
    supernet = Supernet(build("cnn3x4", 3, 1), WIDTHS).double().eval()
    batch = next(iter(data.batches(0, 0, 12)))
    batch = batch._replace(images=batch.images.double())
    images, labels = batch.images, np.array(batch.labels)

    with torch.no_grad():
        logs = [np.array(supernet.select(i)(images).logits) for i in range(3)]
        plain = {k: float(v) for k, v in joint_loss(supernet)(batch).items()}
        place = {k: float(v) for k, v in joint_loss(supernet, True, temperature=2.0)(batch).items()}
    entropy = [-np.log(tiny.softmax(x))[np.arange(12), labels].mean() for x in logs]
    assert list(plain) == ["width 1", "width 0.5", "width 0.25"]
    np.testing.assert_allclose(list(plain.values()), entropy[::-1], atol=1e-9)
    soft = [np.log(tiny.softmax(x / 2.0)) for x in logs]
    kl = [4 * (np.exp(soft[2]) * (soft[2] - x)).sum(1).mean() for x in soft]
    np.testing.assert_allclose(list(place.values()), [entropy[2], kl[1], kl[0]], atol=1e-9)


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_of_the_widths_add_up(data, in_place):
    """One backward of the sum is the sum of a backward per width, as slimmable networks accumulate them."""
    torch.manual_seed(0)
    supernet = Supernet(build("cnn3x4", 3, 1), WIDTHS).double().eval()
    batch = next(iter(data.batches(0, 0, 12)))
    batch = batch._replace(images=batch.images.double())
    loss = joint_loss(supernet, in_place)
    sum(loss(batch).values()).backward()
    together = {k: p.grad.clone() for k, p in supernet.named_parameters()}
    supernet.zero_grad()
    for name in loss(batch):
        loss(batch)[name].backward()
    for name, parameter in supernet.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-10, atol=1e-12)
    if in_place:  # the whole network learns from the labels alone: what narrow widths learn does not pull at it
        supernet.zero_grad()
        loss(batch)["width 0.25"].backward()
        head, norms = supernet.head.weight.grad, supernet.network.stages[2][1]
        assert head[:, 4:].abs().sum() == 0 and norms[2].weight.grad is None and norms[0].weight.grad is not None


@pytest.mark.parametrize("in_place", [False, True])
def test_joint_training_lowers_the_loss_of_every_width(data, in_place, tmp_path):
    path = tmp_path / "supernet.safetensors"
    accuracy = train_supernet("cnn3x4", data, tiny.LONGER.replace(epochs=12), WIDTHS, path, 5, distil_in_place=in_place)
    widths = SubNetworks(path)
    torch.manual_seed(5)
    fresh = Supernet(build("cnn3x4", 3, 1), WIDTHS).eval()
    batch = next(iter(data.chunks("train", 99)))
    with torch.no_grad():
        before, after = (joint_loss(n)(batch) for n in (fresh, widths[-1]))
    assert all(after[width] < 0.8 * before[width] for width in before)
    assert checkpoints.load_state(path)["curve"][-1]["loss"].keys() == before.keys()
    assert len(widths) == 3 and widths.widths == list(WIDTHS)
    for index in range(3):
        assert widths[index].active == index
        assert evaluate(widths[index], data) == accuracy[index]["test"] == widths.accuracy[index]["test"]
    assert accuracy[-1]["test"] > 60  # a third by chance
    with pytest.raises(ConfigError, match=r"width 3: .* has 3 widths"):
        widths[3]
    assert checkpoints.about(path)["distil_in_place"] is in_place


def test_a_supernet_grows_from_the_converged_teacher(route_file, data, tmp_path):
    """At a rate that changes nothing to speak of, every width is the slice of the route's last state it began as."""
    path, recipe = tmp_path / "grown.safetensors", tiny.LONGER.replace(epochs=1, learning_rate=1e-12)
    train_supernet("cnn3x4", data, recipe, WIDTHS, path, seed=9, distil_in_place=True, start=route_file)
    grown, began = SubNetworks(path), Supernet(Route(route_file)[-1], WIDTHS)
    expected = dict(began.named_parameters())
    assert not torch.equal(Route(route_file)[0].head.weight, Route(route_file)[-1].head.weight)  # no other state will do
    for name, parameter in grown[-1].named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-9)
    assert checkpoints.about(path)["start"] == checkpoints.file_md5(route_file)


def test_a_supernet_from_scratch_says_so_and_grows_from_no_other_network(supernet_file, route_file, data, tmp_path):
    assert checkpoints.about(supernet_file)["start"] is None
    with pytest.raises(ConfigError, match="of network 'cnn3x4', not 'cnn3x2'"):
        train_supernet("cnn3x2", data, tiny.LONGER, WIDTHS, tmp_path / "x.safetensors", start=route_file)


def test_widths_are_networks_of_their_own(supernet_file):
    widths = SubNetworks(supernet_file)
    narrow, whole = widths[0], widths[-1]
    assert (narrow.active, whole.active, widths[-3].active) == (0, 2, 0)
    images = torch.randn(4, 1, 8, 8)
    assert [f.shape[1] for f in narrow(images).features] == [1, 2, 4]
    assert [f.shape[1] for f in whole(images).features] == [4, 8, 16]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["route", "supernet", "grown"])
def test_stopped_and_resumed_is_uninterrupted(kind, channels_last, data, route_file, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "Checkpoint", functools.partial(Checkpoint, every=0))
    recipe = tiny.LONGER.replace(channels_last=channels_last)

    def make(path, resume=None, stop=None):
        told = []

        def report(text):
            told.append(text)
            if stop and len(told) == stop:
                raise KeyboardInterrupt

        if kind == "route":
            train_route("cnn3x4", data, recipe, 2, path, 5, resume, report)
        else:
            start = route_file if kind == "grown" else None
            train_supernet("cnn3x4", data, recipe, WIDTHS, path, 5, resume=resume, report=report, start=start)
        return path.read_bytes()

    whole = make(tmp_path / "whole.safetensors")
    for stop in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "again.safetensors", tmp_path / "resume", stop)
        assert not (tmp_path / "again.safetensors").exists()
    assert make(tmp_path / "again.safetensors", tmp_path / "resume") == whole


@pytest.mark.parametrize("kind", ["route", "supernet"])
def test_another_seed_or_recipe_does_not_resume(kind, data, route_file, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "Checkpoint", functools.partial(Checkpoint, every=0))

    def make(recipe=tiny.LONGER, seed=5, **options):
        path, resume = tmp_path / "x.safetensors", tmp_path / "resume"
        if kind == "route":
            train_route("cnn3x4", data, recipe, 2, path, seed, resume)
        else:
            train_supernet("cnn3x4", data, recipe, WIDTHS, path, seed, resume=resume, **options)

    make()
    with pytest.raises(ConfigError, match=r"running.safetensors is of seed 5, not 6"):
        make(seed=6)
    with pytest.raises(ConfigError, match=r"running.safetensors is of recipe .*'learning_rate': 0.05.*, not .*'learning_rate': 0.1"):
        make(tiny.LONGER.replace(learning_rate=0.1))
    if kind == "supernet":
        with pytest.raises(ConfigError, match="of distil_in_place False, not True"):
            make(distil_in_place=True)
        with pytest.raises(ConfigError, match="of start None, not"):
            make(start=route_file)


@pytest.mark.parametrize("kill", [4, 8])
def test_killed_while_writing(kill, data, route_file, tmp_path):
    """kill -9 between a file's last byte and its name; the next run goes on, to the bytes of one never killed."""
    path, resume = tmp_path / "route.safetensors", tmp_path / "resume"

    def work(say):
        writes, real = itertools.count(1), os.replace

        def replace(*arguments):  # killed when a file is written but has not got its name yet: the worst instant
            if next(writes) == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*arguments)

        os.replace, teachers.Checkpoint = replace, functools.partial(Checkpoint, every=0)
        train_route("cnn3x4", data, tiny.LONGER, 4, path, 5, resume)

    with tiny.process(work) as (run, _):
        run.join()
    assert run.exitcode == -signal.SIGKILL
    assert not path.exists() and (resume / "running.safetensors").exists()
    epochs = []
    train_route("cnn3x4", data, tiny.LONGER, 4, path, 5, resume, report=epochs.append)
    assert len(epochs) < tiny.LONGER.epochs  # it went on, and did not begin again
    assert path.read_bytes() == route_file.read_bytes()
