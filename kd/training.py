"""The one way of training, for teachers and students alike.

    train(network, data, recipe)                          labels only
    distill(student, KD(), teacher, data, recipe)         from one teacher
    distill(student, RCO() * KD(), teachers, data, ...)   from teachers along a route

A run is lessons (which teacher, when?); a lesson is phases: what its knowledge prepares first, then the lesson itself.
How a phase is trained, saved and resumed: kd/loop.py.

`steps` is a generator that pauses before every batch, so that several runs can advance side by side; `distill` runs
through it. Several processes can share one run: kd/ranks.py. What a lesson's teachers say of a batch comes from
`ask_teachers`, or what Run.ask puts in its place.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from kd import ranks
from kd.checkpoints import Checkpoint, restore_random_state
from kd.data import Data
from kd.errors import ConfigError
from kd.loop import Progress, Result, Run, train_phase
from kd.methods import Knowledge, Labels, Learner, Method, Phase, Teachers, freeze
from kd.models import run_networks
from kd.models.fused import fuse_batchnorm
from kd.recipe import Recipe

__all__ = ["Checkpoint", "Progress", "Result", "Run", "distill", "steps", "train"]

# preparing phases draw their batches from here on, so that epoch e of the lessons sees the same batches in every method
PREPARATION = 1_000_000


def distill(
    student: nn.Module,
    method: Method | Knowledge,
    teacher: Teachers | nn.Module | Sequence[nn.Module] | None,
    data: Data,
    recipe: Recipe,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    report: Callable[[str], object] | None = None,
    after_epoch: Callable[[Result, nn.Module], object] | None = None,
    after_lesson: Callable[[Result, nn.Module], object] | None = None,
) -> Result:
    """Train `student` in place, by `method`, from `teacher`. Returns a Result.

    student: an nn.Module giving kd.models.Output (kd.Tapped makes one of any network). method: a Method or Knowledge.
    teacher: kd.Teachers, an nn.Module, or None where the method needs none. It is left in eval mode, without gradients.
    data: kd.data.Data, on the student's device.
    recipe: its epochs are the student's whole budget, warm-up phases included where the method says so.
    seed: fixes the order of images, augmentation and what the method initialises; the student comes initialised.
    checkpoint: a Checkpoint to save to and to resume from, to the same bits as an uninterrupted run.
    report: (text) -> None, told where the run is after every epoch of every phase.
    after_epoch, after_lesson: (Result with the curve and the lessons so far, student) -> None.
    On several ranks (kd.join_ranks) every one makes this call, with the same arguments; rank 0 alone reports, saves and calls
    after_epoch and after_lesson.

    Test accuracy is recorded every epoch and decides nothing. Where a method chooses among states (Phase.select), the
    curve's entry at that end says so: "chosen" is the number in the curve, from 0, of the entry whose state the run
    goes on with, and the entry's accuracies are that state's.
    Raises ConfigError where the arguments do not fit together, and for a loss that is not finite.
    """
    method, teachers = Method.of(method), Teachers.of(teacher)
    run = Run(student, method, teachers, data, recipe, seed, checkpoint, report, after_epoch, after_lesson)
    for _ in steps(run):
        pass
    return run.result


def train(network: nn.Module, data: Data, recipe: Recipe, seed: int = 0, **options) -> Result:
    """Train a network on the labels alone; the options are those of `distill`."""
    return distill(network, Labels(), None, data, recipe, seed, **options)


def steps(run):
    """Train a Run to its end. A generator of (epoch, batch), what the next step will be on, in the numbers of Data.batches.

    Runs that advance side by side share torch's random generators: kd/side_by_side.py gives each its own state.
    """
    ranks.check_joined()
    began, shapes, networks = time.monotonic(), None, []
    run.student.to(memory_format=run.layout)
    torch.manual_seed(run.seed)
    saved = run.checkpoint.load() if run.checkpoint else None
    if saved:
        run.progress = Progress.restored(saved["progress"], run.device)
    progress = run.progress
    check_ranks(run)
    if not ranks.is_first():
        progress.teacher_images.zero_()  # rank 0 goes on from the sum
    for lesson in lessons(run):
        networks = frozen(run, lesson)
        shapes = build_knowledge(run, networks, shapes)
        if saved:
            run.load_weights(saved["weights"], run.checkpoint.path)
            restore_random_state(progress.random, run.device)
            saved = None
        ranks.check_alike(teacher=nn.ModuleList(networks), weights_of_the_method=run.knowledge)
        with counted(networks, progress.teacher_images):
            yield from train_lesson(run, lesson, networks)
        if run.after_lesson and ranks.is_first():
            run.after_lesson(Result(progress.curve, progress.lessons), run.student)
    run.student.eval()
    images, extra = int(ranks.total(progress.teacher_images)), sum(p.numel() for p in run.knowledge.parameters())
    measured = run.knowledge.measure(run.student, networks[-1] if networks else None, run.data)
    run.result = Result(progress.curve, progress.lessons, images, extra, measured, time.monotonic() - began)


def check_ranks(run):
    """ConfigError, on several ranks, unless all of them begin alike."""
    if ranks.count() > 1:
        reached = len(run.progress.lessons), run.progress.phase, run.progress.epoch, len(run.progress.curve)
        given = {"seed": run.seed, "recipe": run.recipe, "data": run.data.md5, "student": run.student}
        ranks.check_alike(**given, checkpoint=reached)


def lessons(run):
    """The lesson under way where a run goes on from a checkpoint, then those that the curriculum asks for."""
    curriculum, done = run.method.curriculum, run.progress.lessons
    if done:
        yield done[-1]
    while (lesson := ranks.agreed(curriculum.next(done, run.budget, run.teachers, run.student, run.data))) is not None:
        done.append(lesson)
        run.progress.phase = 0
        yield lesson


def frozen(run, lesson):
    """The lesson's teachers: in eval mode, without gradients, on the student's device."""
    networks = [run.teachers[lesson.source][index] for index in lesson.indices] if run.teachers else []
    return [freeze(network).to(run.device, memory_format=run.layout) for network in networks]


def build_knowledge(run, networks, shapes):
    """Have the knowledge build its modules, unless it has done so for a teacher whose features have the same shapes.

    networks: the lesson's teachers. shapes: what the last call returned, None at first. Returns the last teacher's.
    """
    knowledge, example = run.knowledge, next(iter(run.data.chunks("train", 8))).images
    with torch.no_grad():
        mine, *outputs = (run_networks(network, example, "fp32") for network in (run.student.eval(), *networks))
    logits, classes = mine.logits.shape[1], len(run.data.classes)
    if logits < classes:
        raise ConfigError(f"the student gives {logits} logits, and the data have {classes} classes")
    found = [[tuple(f.shape[1:]) for f in output.features] for output in outputs] or [[]]
    if found[-1] == shapes:
        return shapes
    # the method's own weights get their own seed: what a method initialises must not shift anything else
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed + 7919)
        knowledge.build(run.student, networks[-1] if networks else None, mine, outputs[-1] if outputs else None)
    knowledge.to(run.device)
    if any(True for _ in knowledge.parameters()):
        if shapes is not None:  # other weights learn from now on: what the optimizer remembers is of the old ones
            run.progress.lesson_optimizers = None
        if any(other != found[-1] for other in found):
            name = " + ".join(type(part).__name__ for part in knowledge.parts())
            raise ConfigError(
                f"{name} learns weights for one teacher's features, and these teachers' differ; "
                "teach them one after another"
            )
    return found[-1]


def train_lesson(run, lesson, networks):
    """Train what is left of a lesson: what its knowledge prepares, then the lesson itself. A generator as `steps`."""
    progress, number, teacher = run.progress, len(run.progress.lessons) - 1, networks[-1] if networks else None
    prepared = enumerate(run.knowledge.prepare(run.student, teacher, run.data, run.recipe, number))
    for index, phase in islice(prepared, progress.phase, None):
        yield from train_phase(run, phase, PREPARATION * (1 + index + 10 * number))
    past = sum(done.epochs for done in progress.lessons[:number])
    if progress.optimizers is None and not lesson.restart:
        progress.optimizers = progress.lesson_optimizers
    progress.lesson_optimizers = yield from train_phase(run, lesson_phase(run, lesson, networks, past), past)


def lesson_phase(run, lesson, networks, past):
    """The phase of the lesson itself. networks: its teachers. past: epochs of the lessons before it."""
    student, knowledge, recipe = run.student, run.knowledge, run.recipe
    teachers = networks if knowledge.teaches else []  # where nothing is learnt from a teacher, none need be asked
    if recipe.precision == "bf16":
        teachers = [fuse_batchnorm(network, torch.bfloat16) for network in teachers]
    label_weight = 1.0 if knowledge.label_weight is None else knowledge.label_weight
    ask = run.ask or ask_teachers

    def loss(batch):
        outputs = ask(run, lesson, teachers, batch) or [None]
        mine = run_networks(student, batch.images, recipe.precision)
        terms = {}
        for theirs in outputs:
            for name, value in knowledge.loss(mine, theirs, batch).items():
                terms[name] = terms.get(name, 0.0) + value / len(outputs)
        if label_weight:
            terms["labels"] = label_weight * F.cross_entropy(mine.logits, batch.labels)
        return terms

    trained = knowledge.trained()
    parameters = knowledge.student_parameters(student) + [p for module in trained for p in module.parameters()]
    span = (0.0, 1.0) if lesson.restart else (past / run.budget, (past + lesson.epochs) / run.budget)
    plan = recipe.replace(epochs=lesson.epochs, schedule=lesson.schedule or recipe.schedule)
    phase = Phase("lesson", [Learner([student, *trained], loss, parameters)], plan, span, student_epochs=True)
    knowledge.amend(phase, student, networks[-1] if networks else None)
    return phase


@torch.no_grad()
def ask_teachers(run, lesson, teachers, batch):
    """The Output of each of a lesson's teachers for a batch."""
    return [run_networks(network, batch.images, run.recipe.precision) for network in teachers]


@contextlib.contextmanager
def counted(networks, images):
    """Count every image that passes one of the networks while the context lasts in `images`, an int64 scalar."""

    def count(module, inputs):
        images.add_(ranks.counted(len(inputs[0])))

    hooks = [network.register_forward_pre_hook(count) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
