"""How a phase is trained: epochs, batches and steps, and what is saved after every epoch.

All that training changes is the weights of student and knowledge, and Progress. They are saved together, and a run that
goes on from there ends in the same bits as one never interrupted. Optimizers are stepped in `train_step` alone, and
batches come from `batches` alone: there a run on several ranks is sliced and added up (kd/ranks.py). Which phases a run is made
of: kd/training.py.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from kd import graphs, ranks
from kd.checkpoints import Checkpoint, load_weights, random_state
from kd.data import Data
from kd.errors import ConfigError
from kd.methods import Lesson, Method, Teachers
from kd.models import evaluate
from kd.models.synchronised import synchronised
from kd.recipe import Recipe


@dataclass
class Result:
    """What a run leaves: a curve (a dict an epoch), lessons, images that passed a teacher, what the method measured."""

    curve: list = field(default_factory=list)
    lessons: list = field(default_factory=list)
    teacher_images: int = 0
    extra_parameters: int = 0
    measured: dict = field(default_factory=dict)
    seconds: float = 0.0  # of training in this process; not part of any record that must not depend on the clock

    @property
    def last(self):
        return self.curve[-1]


@dataclass
class Progress:
    """All that training changes beside the weights.

    teacher_images: images that passed a teacher, an int64 scalar on the device, so that a recorded step counts as well. Of several
        ranks each has its own; their sum counts, and is saved.
    curve: an entry an epoch. lessons: those begun, the last one under way.
    phase, epoch: how many phases of that lesson are over, and how many epochs of the phase under way.
    optimizers: the states of that phase's optimizers after its last epoch; None where they begin afresh.
    lesson_optimizers: the same at the end of the last lesson, for one that goes on without a restart.
    best: {"score", "entry": its number in the curve, "weights"} of the best state, until it is selected (Phase.select).
    random: the state of torch's generators when the run was saved, for networks with dropout.
    """

    teacher_images: torch.Tensor
    curve: list = field(default_factory=list)
    lessons: list = field(default_factory=list)
    phase: int = 0
    epoch: int = 0
    optimizers: list | None = None
    lesson_optimizers: list | None = None
    best: dict | None = None
    random: dict | None = None

    def state(self):
        """Tensors and JSON values alone, for a file."""
        return vars(self) | {"lessons": [vars(lesson) for lesson in self.lessons]}

    @classmethod
    def restored(cls, state, device):
        """The inverse of `state`."""
        progress = cls(**state)
        progress.lessons = [Lesson(**lesson) for lesson in progress.lessons]
        progress.teacher_images = progress.teacher_images.to(device)
        return progress


@dataclass
class Run:
    """The arguments of `distill`, how far they have come, and what came of them once `steps` is over."""

    student: nn.Module
    method: Method
    teachers: Teachers
    data: Data
    recipe: Recipe
    seed: int = 0
    checkpoint: Checkpoint | None = None
    report: Callable | None = None
    after_epoch: Callable | None = None
    after_lesson: Callable | None = None
    ask: Callable | None = None  # (run, lesson, teachers, batch) -> their Outputs; None: kd.training.ask_teachers
    result: Result | None = None

    def __post_init__(self):
        self.knowledge, self.device = self.method.knowledge, next(self.student.parameters()).device
        if self.knowledge.needs_teacher and not self.teachers:
            raise ConfigError(f"{type(self.knowledge).__name__} needs a teacher; give a network or kd.Teachers")
        self.budget = self.method.lesson_epochs(self.recipe.epochs)
        self.layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        self.progress = Progress(torch.zeros((), dtype=torch.int64, device=self.device))

    def weights(self):
        return {"student": self.student.state_dict(), "knowledge": self.knowledge.state_dict()}

    def load_weights(self, weights, source):
        load_weights(self.student, weights["student"], source)
        load_weights(self.knowledge, weights["knowledge"], source)

    def accuracies(self):
        return {s: evaluate(self.student, self.data, s, self.recipe.precision, together=True) for s in ("validation", "test")}


def batches(data, seed, epoch, recipe):
    """The batches of an epoch, or this rank's slices of them. They come in channels_last; what a layer computes in follows its input."""
    left = len(data.labels["train"])
    for batch in data.batches(seed, epoch, recipe.batch_size, part=ranks.part):
        with ranks.batch_of(min(recipe.batch_size, left)):
            yield batch if recipe.channels_last else batch._replace(images=batch.images.contiguous())
        left -= recipe.batch_size


def train_phase(run, phase, first):
    """Train what is left of a phase, whose epoch e has the batches of epoch first + e. A generator as `steps`.

    Returns the states of its optimizers, one a learner, so that another phase may go on with them.
    """
    progress, optimizers = run.progress, build_optimizers(phase, run.progress.optimizers)
    step = partial(train_step, phase.learners, optimizers)
    if graphs.wanted(run.device) and ranks.count() == 1:
        step = graphs.Recorded(step, [group for optimizer in optimizers for group in optimizer.param_groups])
    while progress.epoch < phase.recipe.epochs:
        with synchronised(run.student, run.knowledge), ranks.own_random_numbers(run.device, run.seed, first + progress.epoch):
            means = yield from train_epoch(run, phase, step, first + progress.epoch)
        ranks.first_ones_buffers(run.student, run.knowledge)
        progress.epoch += 1
        if not all(math.isfinite(value) for value in means.values()):
            reason = f"the loss is not finite after epoch {progress.epoch} ({means})"
            raise ConfigError(f"{phase.name}: {reason}; lower recipe.learning_rate")
        end_epoch(run, phase, optimizers, means)
    progress.phase, progress.epoch, progress.optimizers = progress.phase + 1, 0, None
    return [optimizer.state_dict() for optimizer in optimizers]


def build_optimizers(phase, states=None):
    """An optimizer a learner, which goes on from `states` where given. ConfigError for a learner that cannot learn."""
    if not all(learner.learnable() for learner in phase.learners):
        remedy = "a network that has taught is frozen, call network.requires_grad_(True) on it"
        raise ConfigError(f"{phase.name}: nothing here can learn; {remedy}")
    optimizers = [phase.recipe.build_optimizer(learner.learnable()) for learner in phase.learners]
    for optimizer, state in zip(optimizers, states or [], strict=False):
        optimizer.load_state_dict(state)
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    # a fused optimizer walks the memory of both side by side: a state read from a file, beside a weight
                    # in channels_last, would be applied to the wrong entries, and nothing would say so
                    values[name] = torch.empty_like(parameter).copy_(value)
    return optimizers


def train_epoch(run, phase, step, epoch):
    """Train the next epoch of a phase, on the batches of `epoch`. A generator as `steps`.

    Returns {term: mean over the images}: at the end alone does the host wait for the device.
    """
    for learner in phase.learners:
        for module in learner.modules:
            module.train()
    sums, count = {}, run.data.steps(phase.recipe.batch_size)
    for number, batch in enumerate(batches(run.data, run.seed, epoch, phase.recipe), run.progress.epoch * count):
        yield epoch, number - run.progress.epoch * count
        found = step(batch, phase.learning_rate_at(number, phase.recipe.epochs * count))
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: float(ranks.total(value)) / len(run.data.labels["train"]) for name, value in sums.items()}


def train_step(learners, optimizers, batch, learning_rate):
    """One step of every learner in turn, at a rate: float or scalar tensor. Returns {term: sum over the (rank's) images}."""
    sums = {}
    for learner, optimizer in zip(learners, optimizers, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            terms = learner.loss(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            reason = "the last batch has a single image, too few for batch norm on 1x1 maps"
            raise ConfigError(f"{reason}; change recipe.batch_size by one") from None
        ranks.weighted(sum(terms.values())).backward()
        ranks.add_gradients(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.detach() * ranks.counted(len(batch.labels))
    return sums


def end_epoch(run, phase, optimizers, means):
    """Enter an epoch into the curve, select a state where the phase does, report, and save."""
    progress, lesson = run.progress, run.progress.lessons[-1]
    entry = {"lesson": len(progress.lessons) - 1, "phase": phase.name, "epoch": progress.epoch, "loss": means}
    if phase.student_epochs:
        entry |= run.accuracies()
    if phase.select:
        select_state(run, phase, optimizers, entry)
    progress.curve.append(entry)
    if run.report and ranks.is_first():
        which = f"{lesson.name} " if lesson.name and len(progress.lessons) > 1 else ""
        run.report(f"{which}{phase.name} {progress.epoch}/{phase.recipe.epochs}")
    if run.after_epoch and ranks.is_first():
        run.after_epoch(Result(progress.curve, progress.lessons), run.student)
    progress.optimizers = [optimizer.state_dict() for optimizer in optimizers]
    if run.checkpoint and ranks.agreed(run.checkpoint.due()):
        progress.random = random_state(run.device)
        saved = progress.state() | {"teacher_images": ranks.total(progress.teacher_images)}
        if ranks.is_first():
            run.checkpoint.save({"weights": run.weights(), "progress": saved})


def select_state(run, phase, optimizers, entry):
    """Remember a state that scores best; at the end of a phase that selects, go on with the one remembered."""
    progress, number = run.progress, len(run.progress.curve)
    if phase.ends_segment(progress.epoch):
        entry["score"] = ranks.agreed(phase.select(entry))
        if progress.best is None or entry["score"] < progress.best["score"]:
            progress.best = {"score": entry["score"], "entry": number, "weights": copy.deepcopy(run.weights())}
    if progress.epoch < phase.recipe.epochs or phase.select_later:
        return
    best, progress.best = progress.best, None
    entry["chosen"] = best["entry"]
    if best["entry"] < number:
        run.load_weights(best["weights"], "the best state")
        for optimizer in optimizers:
            optimizer.state.clear()  # what it remembers is of other weights
        if phase.student_epochs:
            entry |= run.accuracies()
