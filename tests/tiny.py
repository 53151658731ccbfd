"""A data set, a teacher and runs that take a fraction of a second, for the tests of methods."""

import copy

import pytest
import torch

from kd.data import Data
from kd.distill import Checkpoint, distill, train
from kd.methods import Method
from kd.models import build
from kd.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=16, learning_rate=0.05)


def data():
    generator = torch.Generator().manual_seed(11)
    labels = {split: torch.arange(size) % 3 for split, size in (("train", 44), ("validation", 12), ("test", 24))}
    images = {}
    for split, y in labels.items():  # a bright row a class, in noise: something that can be learnt
        noise = torch.randint(0, 130, (len(y), 1, 8, 8), generator=generator)
        for image, label in zip(noise, y, strict=True):
            image[0, 2 * int(label) + 1] += 120
        images[split] = noise.to(torch.uint8)
    return Data("tiny", ("a", "b", "c"), images, labels, (0.3,), (0.2,))


def network(name="cnn3x4", seed=0):
    torch.manual_seed(seed)
    return build(name, 3, 1)


class Headless(torch.nn.Module):
    """The same network inside a module that has no `.head`."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, images):
        return self.network(images)


def teacher(seed=5, name="cnn3x8"):
    trained = network(name, seed)
    train(trained, data(), RECIPE)
    return trained


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    """The names of parameters and buffers that differ from a snapshot."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def run(method, source, recipe=RECIPE, seed=3, **options):
    """Distil into a fresh student. Returns (Result, student, knowledge)."""
    student = network()
    method = Method.of(copy.deepcopy(method))
    result = distill(student, method, source, data(), recipe, seed, **options)
    return result, student, method.knowledge


def check_resume(method, source, folder, stops, recipe=RECIPE):
    """A run stopped after each of `stops` epochs and resumed ends in the very bits of an uninterrupted one."""
    whole, expected, knowledge = run(method, source, recipe)

    class Stop(Exception):
        pass

    for stop in stops:
        where = Checkpoint(folder / f"{stop}.safetensors", every=0, run="tiny")

        def halt(result, student, stop=stop):
            if len(result.curve) == stop:
                raise Stop

        with pytest.raises(Stop):
            run(method, source, recipe, checkpoint=where, after_epoch=halt)
        assert where.path.exists()
        resumed, student, kept = run(method, source, recipe, checkpoint=where)
        assert not changed(student, snapshot(expected)), f"stopped after {stop}"
        assert not changed(kept, snapshot(knowledge)), f"stopped after {stop}"
        assert resumed.curve == whole.curve and resumed.measured == whole.measured
        assert resumed.teacher_images == whole.teacher_images
