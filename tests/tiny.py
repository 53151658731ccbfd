"""A data set, a teacher and runs that take a fraction of a second, and what tests of methods compare with."""

import contextlib
import copy
import multiprocessing

import numpy as np
import pytest
import torch

from kd.data import Data
from kd.methods import Curriculum, Lesson, Method, Teachers
from kd.models import build
from kd.recipe import Recipe
from kd.training import Checkpoint, distill, train

RECIPE = Recipe(epochs=4, batch_size=16, learning_rate=0.05)
LONGER = RECIPE.replace(epochs=6)  # for lessons and routes


def data(train=44, validation=12, test=24, classes=3, channels=1, padding=0, flip=False):
    """Images of 8x8 pixels: a bright row a class, in noise, so that something can be learnt."""
    generator, labels, images = torch.Generator().manual_seed(11), {}, {}
    for split, size in (("train", train), ("validation", validation), ("test", test)):
        labels[split] = torch.arange(size) % classes
        noise = torch.randint(0, 130, (size, channels, 8, 8), generator=generator)
        for image, label in zip(noise, labels[split], strict=True):
            image[:, (2 * int(label) + 1) % 8] += 120
        images[split] = noise.to(torch.uint8)
    mean, std = (0.3, 0.4, 0.5)[:channels], (0.2, 0.25, 0.3)[:channels]
    return Data("tiny", tuple("abcdefghij"[:classes]), images, labels, mean, std, padding, flip)


def network(name="cnn3x4", seed=0):
    torch.manual_seed(seed)
    return build(name, 3, 1)


def shaken(network):
    """The network with batch norms as after some training, so that a lost or swapped norm shows."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return network


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


def normal(*shape, seed=0):
    """Normal numbers, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(logits):
    """NumPy's, along the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def unit(array):
    """A NumPy array (N, ...) as rows of length 1, (N, everything else)."""
    rows = array.reshape(len(array), -1)
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    """The names of parameters and buffers that differ from a snapshot."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


class TwoLessons(Curriculum):
    """From the first two teachers of a route, half of the epochs each."""

    def __init__(self, restart=False):
        self.restart = restart

    def next(self, done, epochs, teachers, student, data):
        return Lesson("route", (len(done),), epochs // 2, self.restart) if len(done) < 2 else None


class Steps(list):
    """A route in memory: networks, and the epochs they were saved at."""

    def __init__(self, networks, epochs):
        super().__init__(networks)
        self.epochs = epochs


def lessons(curriculum, epochs, teachers, data, student=None):
    """The lessons a curriculum gives, without training anything between them."""
    done, student = [], student or network("cnn3x2", 1)
    while (lesson := curriculum.next(done, epochs, Teachers.of(teachers), student, data)) is not None:
        done.append(lesson)
    return done


def run(method, source, recipe=RECIPE, seed=3, student=network, of=data, **options):
    """Distil into a fresh student, student(), on data of(). Returns (Result, student, knowledge)."""
    student = student()
    method = Method.of(copy.deepcopy(method))
    result = distill(student, method, source, of(), recipe, seed, **options)
    return result, student, method.knowledge


class Stop(Exception):
    pass


def check_resume(method, source, folder, stops, recipe=RECIPE, **options):
    """A run broken off in each of the epochs `stops`, and every time resumed, ends in the bits of an uninterrupted one."""
    whole, expected, knowledge = run(method, source, recipe, **options)
    where, ran = Checkpoint(folder / "run.safetensors", every=0, run="tiny"), 0

    def until(stop):
        def halt(result, student):
            nonlocal ran
            ran += 1
            if len(result.curve) == stop:
                raise Stop

        return run(method, source, recipe, checkpoint=where, after_epoch=halt, **options)

    for stop in stops:
        with pytest.raises(Stop):
            until(stop)
    resumed, student, kept = until(None)
    assert ran == len(whole.curve) + len(stops)  # only the epochs broken off ran twice
    assert not changed(student, snapshot(expected)) and not changed(kept, snapshot(knowledge))
    for said in ("curve", "lessons", "measured", "teacher_images"):
        assert getattr(resumed, said) == getattr(whole, said)
    return whole


@contextlib.contextmanager
def process(work):
    """(a process that runs work(say), a function that waits for what it says next), for what must be killed."""
    context = multiprocessing.get_context("fork")  # knows everything that its parent knows, and starts at once
    hear, say = context.Pipe(duplex=False)
    run = context.Process(target=work, args=(say.send,))
    run.start()
    say.close()  # so that hearing ends, with EOFError, when the process does
    try:
        yield run, hear.recv
    finally:
        run.kill()
        run.join()
