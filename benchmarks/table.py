"""How fast a whole table trains: its rows side by side in our loop, beside RepDistiller's loop run once a row.

A table as a study has it: a group of students of one seed in every worker process, a worker a core, a thread each. The
peer has all cores for each of its rows in turn. Timed are the lessons' steps, data included; what FT and IE-KD prepare
first is left out on both sides. Rows that RepDistiller does not have (KR, IE-KD) cost it what its KD costs.
"""

import contextlib
import os
from multiprocessing import get_context
from statistics import median

import torch

from benchmarks import peer
from benchmarks.peer import BATCH, CLASSES
from benchmarks.turns import Turns, clock
from kd.methods import Method, Teachers, freeze, make
from kd.models import build
from kd.side_by_side import Shared, Track, side_by_side
from kd.study.settings import use_device
from kd.training import PREPARATION, Run

ROWS = ("labels", "kd", "fitnet", "at", "ft", "kr", "iekd", "kd + at")
WORKERS = os.cpu_count()
WARM = 2  # batches before the clock starts


class Marked:
    """`data`, which starts a clock where batch WARM of a lesson is made and stops it `steps` batches later.

    Of runs side by side the one furthest behind goes first: when a batch is made, all have done the ones before.
    start: called before the clock starts. seconds: what the last epoch took.
    """

    def __init__(self, data, steps, start):
        self.data, self.count, self.start, self.seconds = data, steps, start, None

    def __getattr__(self, name):
        return getattr(self.data, name)

    def batches(self, seed, epoch, batch_size, part=None):
        for number, batch in enumerate(self.data.batches(seed, epoch, batch_size, part=part)):
            if epoch < PREPARATION and number == WARM:
                self.start()
                began = clock()
            if epoch < PREPARATION and number == WARM + self.count:
                self.seconds = clock() - began
            yield batch


def train_rows(images, pair, rows, steps, recipe, start):
    """Seconds that `steps` steps of all rows take, side by side. images: kd.data.Data of WARM + steps + 1 batches."""
    device = images.labels["train"].device
    teachers, data = Teachers.of(freeze(build(pair[0], CLASSES).to(device))), Marked(images, steps, start)
    shared, tracks = Shared(data), []
    for row in rows:
        student = build(pair[1], CLASSES).to(device)
        tracks.append(Track(Run(student, Method.of(make(row.split(" + "))), teachers, shared, recipe, ask=shared.ask)))
    for _, failure in side_by_side(tracks):
        if failure:
            raise failure
    return data.seconds


def ours(barrier, data, pair, rows, steps, recipe, together, answer):
    """A worker: answer(seconds that `steps` steps of all rows take) again and again, all workers at the same time."""
    device = use_device()
    torch.set_num_threads(1)
    images, groups = data(BATCH * (WARM + steps + 1), test=8).to(device), [rows] if together else [[row] for row in rows]
    while True:
        answer(sum(train_rows(images, pair, group, steps, recipe, barrier.wait) for group in groups))


def theirs(checkout, pair, rows, steps, answer):
    peer.run(checkout, pair, steps, use_device(), clock, answer, rows)


def time_table(steps, repeats, data, variants, checkout=None, pairs=(), rows=ROWS, workers=WORKERS):
    """Rows of {pair, variant, n, steps, students, images_per_second, low, high, ratio_to_peer}.

    images_per_second: images times students that learn from them. data: (number of images, test=) -> kd.data.Data, at the top
    of a module. variants: {name: (recipe, whether rows go side by side)}.
    """
    found = []
    for pair in pairs:
        title, racers = " -> ".join(pair), {}
        with contextlib.ExitStack() as stack:
            for name, (recipe, together) in variants.items():
                arguments = get_context("spawn").Barrier(workers), data, pair, rows, steps, recipe, together
                racers[name] = [Turns(name, ours, *arguments) for _ in range(workers)]
                finish(racers[name], stack)
            if checkout:
                racers[peer.NAME] = [Turns(peer.NAME, theirs, checkout, pair, rows, steps, variables={})]
                finish(racers[peer.NAME], stack)
            turns = [{name: speed(group, steps, len(rows)) for name, group in racers.items()} for _ in range(repeats)]
        for name in racers:
            speeds = [turn[name] for turn in turns]
            row = {"pair": title, "variant": name, "n": repeats, "steps": steps, "students": len(rows)}
            row |= {"images_per_second": median(speeds), "low": min(speeds), "high": max(speeds)}
            if checkout:
                row["ratio_to_peer"] = median(turn[name] / turn[peer.NAME] for turn in turns)
            found.append(row)
            print("{pair}  {variant:28s} {images_per_second:8.0f} images a second ({low:.0f} to {high:.0f})".format(**row))
    return found


def finish(racers, stack):
    """Let all of a variant's processes end their warm-up, and close them when `stack` is left."""
    for racer in racers:
        stack.callback(racer.close)
    for racer in racers:
        racer.answer()


def speed(racers, steps, students):
    """Images times students a second of a turn that all of a variant's processes take at once."""
    for racer in racers:
        racer.go()
    return sum(BATCH * steps * students / racer.answer() for racer in racers)
