"""Runs side by side in one process: a batch is made once, and a teacher is asked about it once, for all of them.

Runs of one seed see the same batches, whatever their method, and most of them ask the same teacher about them. So they advance step
by step, the one that is furthest behind first, and whoever comes second to a batch finds it and the teacher's outputs there. What
does not coincide (a phase that prepares, another anchor, another length) costs what it costs alone. The bits are those of a run
trained alone: outputs are the same numbers, and torch's random state is each run's own.
"""

import time
from collections import defaultdict

from kd.checkpoints import random_state, restore_random_state
from kd.ranks import counted
from kd.training import PREPARATION, ask_teachers, steps


class Shared:
    """A data set whose last batch of every epoch under way is kept, with what teachers said of it; everything else is `data`'s own."""

    def __init__(self, data):
        self.data, self.iterators, self.kept, self.said = data, {}, {}, {}
        # by the run's id: a teacher's forward passes that it asked for, and those that were made for it first
        self.passes = defaultdict(lambda: {"asked": 0, "made": 0})

    def __getattr__(self, name):
        return getattr(self.data, name)

    def batches(self, seed, epoch, batch_size, part=None):
        """As Data.batches: those that another run takes as well are made once. part: the same in every call."""
        key, own = (seed, epoch, batch_size), None
        for number in range(self.data.steps(batch_size)):
            if own is None and self.kept.get(key, (None,))[0] != number and not self.make(key, number, part):
                own = self.data.batches(*key, part=part)  # out of step with the others: its batches are made for it alone
                for _ in range(number):
                    next(own)
            yield self.kept[key][1] if own is None else next(own)

    def make(self, key, number, part):
        """Make the batch after the one kept; False where that is not batch `number`."""
        if number == 0 and key not in self.kept:
            self.kept = {place: kept for place, kept in self.kept.items() if place in self.iterators}  # whoever goes on has the last ones
            self.iterators[key] = self.data.batches(*key, part=part)
        elif key not in self.kept or self.kept[key][0] != number - 1:
            return False
        self.kept[key] = number, next(self.iterators[key])
        if number == self.data.steps(key[2]) - 1:
            del self.iterators[key]
        return True

    def ask(self, run, lesson, teachers, batch):
        """What the lesson's teachers say of a batch: as kd.training.ask_teachers, but once for all runs that ask the same ones."""
        found = []
        for index, teacher in zip(lesson.indices, teachers, strict=False):  # no teachers where the knowledge learns from none now
            key = id(run.teachers[lesson.source]), index, run.recipe.precision
            images, output = self.said.get(key, (None, None))
            self.passes[id(run)]["asked"] += 1
            if images is batch.images:
                run.progress.teacher_images.add_(counted(len(images)))  # its own network, which counts, was not asked
            else:
                (output,) = ask_teachers(run, lesson, [teacher], batch)
                self.said[key] = batch.images, output
                self.passes[id(run)]["made"] += 1
            found.append(output)
        return found


class Track:
    """One run on its way: its generator, where it stands, its own random state and its own seconds."""

    def __init__(self, run):
        self.run, self.steps, self.place, self.random = run, steps(run), (True, -1, 0), random_state(run.device)
        self.seconds, self.began = 0.0, None

    def spent(self):
        """Seconds spent on this run so far, also from inside of it."""
        return self.seconds + (time.monotonic() - self.began if self.began is not None else 0.0)

    def advance(self):
        """Take the next step. Returns whether there was one. Raises what the run raises."""
        restore_random_state(self.random, self.run.device)
        self.began = time.monotonic()
        try:
            epoch, batch = next(self.steps)
            self.place = epoch < PREPARATION, epoch, batch  # phases that prepare first: then all begin their lessons together
            return True
        except StopIteration:
            return False
        finally:
            self.seconds, self.began = self.spent(), None
            self.random = random_state(self.run.device)


def side_by_side(tracks):
    """Advance all tracks to their ends. A generator of (track, None), or (track, exception) for one that failed, as each ends."""
    going = list(tracks)
    while going:
        track = min(going, key=lambda track: track.place)  # of equals the first: an order that nothing disturbs
        try:
            if track.advance():
                continue
            failure = None
        except Exception as error:  # the others go on
            failure = error
        going.remove(track)
        yield track, failure
