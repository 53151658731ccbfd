"""The one training loop, for teachers and students alike.

    train(network, data, recipe)                          labels only
    distill(student, KD(), teacher, data, recipe)         from one teacher
    distill(student, RCO() * KD(), teachers, data, ...)   from teachers along a route

A run is a list of lessons (which teacher, when?); a lesson is a list of phases (what must be trained first, then the lesson
itself); a phase is epochs over the training images. `run_phase` is the only place that steps an optimizer.
"""

import copy
import ctypes
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from kd import checkpoints, graphs
from kd.errors import Problem
from kd.methods import Labels, Learner, Lesson, Method, Phase, Teachers, freeze
from kd.models import evaluate, run_networks
from kd.models.folded import folded

# preparing phases draw their batches from here on, so that epoch e of the lessons sees the same batches in every method
PREPARATION = 1_000_000


@dataclass
class Result:
    """What a run leaves: the curve (one dict an epoch), the lessons, images that passed a teacher, numbers the method measured."""

    curve: list = field(default_factory=list)
    lessons: list = field(default_factory=list)
    teacher_images: int = 0
    extra_parameters: int = 0
    measured: dict = field(default_factory=dict)
    seconds: float = 0.0  # of training in this process; not part of any record that must not depend on the clock

    @property
    def last(self):
        return self.curve[-1]


class NeverSaved:
    """The checkpoint of a run that is not resumed."""

    def load(self):
        return None

    def due(self):
        return False


class Checkpoint:
    """Where a run saves itself, at the ends of epochs that lie `every` seconds or more apart.

    about: what the run is (network=, data=, method=, ...); a file of another run is refused by name.
    """

    def __init__(self, path, every=30.0, **about):
        self.path, self.every, self.about, self.saved = Path(path), every, about, time.monotonic()

    def load(self):
        if not self.path.exists():
            return None
        return checkpoints.load_state(self.path, **self.about)

    def due(self):
        return time.monotonic() - self.saved >= self.every

    def save(self, state):
        checkpoints.save_state(self.path, state, **self.about)
        self.saved = time.monotonic()

    def remove(self):
        self.path.unlink(missing_ok=True)


def run_phase(phase, data, seed, states=None, first_epoch=0, stream=0, after_epoch=None):
    """Train `phase` from `first_epoch` to its end. Returns the states of its optimizers, so that another phase may go on with them.

    states: the optimizers' states to begin with, one a learner; None starts afresh.
    stream: where its epochs begin in the order of batches: epoch e sees data.batches(seed, stream + e).
    after_epoch: (epoch, optimizers, {term: mean over the epoch}) -> None, called when an epoch is over.
    """
    keep_memory()
    recipe, steps = phase.recipe, data.steps(phase.recipe.batch_size)
    for learner in phase.learners:
        if not learner.learnable():
            raise Problem(f"{phase.name}: nothing here can learn; a network that has taught is frozen, call network.requires_grad_(True) on it")
    optimizers = [recipe.build_optimizer(learner.learnable()) for learner in phase.learners]
    for optimizer, state in zip(optimizers, states or [], strict=False):
        optimizer.load_state_dict(state)
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    # fused optimizers walk both memories side by side: a file's layout beside a channels_last weight goes wrong unsaid
                    values[name] = torch.empty_like(parameter).copy_(value)

    def update(images, labels):
        """One step of every learner in turn: {term: its mean times the number of images}."""
        found = {}
        for learner, optimizer in zip(phase.learners, optimizers, strict=True):
            terms = learner.loss(images, labels)
            sum(terms.values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for name, value in terms.items():
                found[name] = found.get(name, 0.0) + value.detach() * len(labels)
        return found

    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rate, device = None, data.labels["train"].device
    if graphs.wanted(device):
        rate, update = torch.zeros((), device=device), graphs.Recorded(update, groups)
    start, stop = phase.span
    for epoch in range(first_epoch, recipe.epochs):
        for learner in phase.learners:
            for module in learner.modules:
                module.train()
        sums = {}
        for step, batch in enumerate(data.batches(seed, stream + epoch, recipe.batch_size)):
            progress = start + (stop - start) * (epoch * steps + step) / (recipe.epochs * steps)
            # batches come in channels_last; what a layer computes in follows its input
            images = batch.images if recipe.channels_last else batch.images.contiguous()
            for group in groups:
                group["lr"] = recipe.rate(progress) if rate is None else rate.fill_(recipe.rate(progress))
            try:
                found = update(images, batch.labels)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise Problem("the last batch has a single image, too few for batch norm on 1x1 maps; change recipe.batch_size by one") from None
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: float(total) / len(data.labels["train"]) for name, total in sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            raise Problem(f"{phase.name}: the loss is not finite after epoch {epoch + 1} ({means}); lower recipe.learning_rate")
        if after_epoch:
            after_epoch(epoch, optimizers, means)
    return [optimizer.state_dict() for optimizer in optimizers]


def keep_memory():
    """Have the C library keep up to a gigabyte that is free, where it is glibc: handing feature maps back to the system after every
    step and having them cleared again takes some 4 % of a resnet8x4's step on a CPU."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt:
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its maximum: larger blocks alone are the system's own
            mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def distill(student, method, teacher, data, recipe, seed=0, checkpoint=None, report=None, after_epoch=None, after_lesson=None):
    """Train `student` in place, by `method`, from `teacher`. Returns a Result.

    student: an nn.Module giving kd.models.Output (kd.Tapped makes one of any network). method: a Method or Knowledge.
    teacher: kd.Teachers, an nn.Module, or None where the method needs none. data: kd.data.Data, on the student's device.
    The teacher is left frozen: in eval mode, without gradients.
    recipe: its epochs are the student's whole budget, warm-up phases included where the method says so.
    seed: fixes the order of images, augmentation and what the method initialises; the student comes initialised.
    checkpoint: a Checkpoint to save to and to resume from, to the same bits as an uninterrupted run.
    report: (text) -> None, told where the run is once an epoch. after_epoch, after_lesson: (result, student) -> None.

    Test accuracy is recorded every epoch and decides nothing. Where a method chooses among states (Phase.choose), the curve's
    entry at that end says so: "chosen" is the number in the curve, from 0, of the entry whose state the run goes on with, and
    the entry's accuracies are that state's.
    """
    method = Method.of(method)
    knowledge, curriculum = method.knowledge, method.curriculum
    teachers = Teachers.of(teacher)
    if knowledge.needs_teacher and not teachers:
        raise Problem(f"{type(knowledge).__name__} needs a teacher; give a network or kd.Teachers")
    device = next(student.parameters()).device
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    student.to(memory_format=layout)
    checkpoint = checkpoint or NeverSaved()
    _, taken = knowledge.warm_up(recipe.epochs)
    budget = recipe.epochs - taken
    if taken and budget <= 0:
        raise Problem(f"{taken} of {recipe.epochs} epochs go into warm-up and none is left; raise epochs or lower the warm-up's share")
    example = next(iter(data.chunks("train", 8))).images
    result, shapes, hooks, began = Result(), None, [], time.monotonic()
    seen = torch.zeros((), dtype=torch.int64, device=device)  # by teachers; a tensor, so that a recorded step counts as well
    kept = None  # the states of the last lesson's optimizers, for a lesson that goes on without a restart
    best = None  # the best state scored since the last choice; in the checkpoint, because a phase that is over never runs again

    def begin(lesson):
        """The lesson's teachers, frozen, and the method's modules built for their shapes."""
        nonlocal shapes, kept
        while hooks:
            hooks.pop().remove()
        networks = []
        for index in lesson.indices if teachers else ():
            networks.append(freeze(teachers[lesson.source][index]).to(device, memory_format=layout))
        with torch.no_grad():
            mine, *outputs = (run_networks(network, example, "fp32") for network in (student.eval(), *networks))
        if mine.logits.shape[1] < len(data.classes):
            raise Problem(f"the student gives {mine.logits.shape[1]} logits, and the data have {len(data.classes)} classes")
        theirs = outputs[-1] if outputs else None
        every = [[tuple(f.shape[1:]) for f in output.features] for output in outputs] or [[]]
        now = every[-1]
        if now != shapes:
            # the method's own weights get their own seed: what a method initialises must not shift anything else
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 7919)
                knowledge.start(student, networks[-1] if networks else None, mine, theirs)
            knowledge.to(device)
            shapes = now
            if any(True for _ in knowledge.parameters()):  # other weights to learn: what the optimizer remembers is of the old ones
                kept = None
                if any(other != now for other in every):
                    name = " + ".join(type(part).__name__ for part in knowledge.parts())
                    raise Problem(f"{name} learns weights for one teacher's features, and these teachers' differ; teach them one after another")
        hooks.extend(network.register_forward_pre_hook(count_images) for network in networks)
        return networks

    def count_images(module, inputs):
        seen.add_(len(inputs[0]))

    def lesson_loss(networks):
        if not knowledge.teaches:
            networks = []  # nothing is learnt from a teacher now, so none need be asked
        if recipe.precision == "bf16":
            networks = [folded(network, torch.bfloat16) for network in networks]

        def loss(images, labels):
            with torch.no_grad():
                outputs = [run_networks(network, images, recipe.precision) for network in networks] or [None]
            mine = run_networks(student, images, recipe.precision)
            knowledge.see(images)
            terms = {}
            for theirs in outputs:
                for name, value in knowledge.loss(mine, theirs, labels).items():
                    terms[name] = terms.get(name, 0.0) + value / len(outputs)
            weight = 1.0 if knowledge.label_weight is None else knowledge.label_weight
            if weight:
                terms["labels"] = weight * F.cross_entropy(mine.logits, labels)
            return terms

        return loss

    def phases(lesson, networks, number):
        """What the lesson trains, in order: the method's preparations, then the lesson itself."""
        teacher_network = networks[-1] if networks else None
        yield from knowledge.prepare(student, teacher_network, data, recipe, number)
        main = Learner([student, *knowledge.trained()], lesson_loss(networks))
        main.parameters = knowledge.student_parameters(student) + [p for m in knowledge.trained() for p in m.parameters()]
        past = sum(lesson.epochs for lesson in result.lessons[:number])
        span = (0.0, 1.0) if lesson.restart else (past / budget, (past + lesson.epochs) / budget)
        lesson_recipe = recipe.but(epochs=lesson.epochs, schedule=lesson.schedule or recipe.schedule)
        learners = [main, *knowledge.peers(student, teacher_network)]
        yield Phase("lesson", learners, lesson_recipe, span, student_epochs=True, score=knowledge.score, choose=True)

    def weights():
        return {"student": student.state_dict(), "knowledge": knowledge.state_dict()}

    def accuracies():
        return {split: evaluate(student, data, split, recipe.precision) for split in ("validation", "test")}

    def choose(phase, entry, optimizers):
        """Remember a state that scores best, and at the end of a phase that chooses, go on with the one remembered."""
        nonlocal best
        score = phase.score(entry) if phase.score and phase.ends_stretch(entry["epoch"]) else None
        if score is not None:
            entry["score"] = score
            if best is None or score < best["score"]:
                best = {"score": score, "entry": len(result.curve), "weights": copy.deepcopy(weights())}
        if best and phase.choose and entry["epoch"] == phase.recipe.epochs:
            entry["chosen"] = best["entry"]
            if best["entry"] < len(result.curve):
                student.load_state_dict(best["weights"]["student"])
                knowledge.load_state_dict(best["weights"]["knowledge"])
                for optimizer in optimizers:
                    optimizer.state.clear()  # what it remembers is of other weights
                entry |= accuracies() if phase.student_epochs else {}
            best = None

    def epoch_is_over(phase, place, optimizers, means):
        entry = {"lesson": len(result.lessons) - 1, "phase": phase.name, "epoch": place["epoch"], "loss": means}
        entry |= accuracies() if phase.student_epochs else {}
        choose(phase, entry, optimizers)
        result.curve.append(entry)
        if report:
            which = f"{result.lessons[-1].name} " if result.lessons[-1].name and len(result.lessons) > 1 else ""
            report(f"{which}{phase.name} {place['epoch']}/{phase.recipe.epochs}")
        if after_epoch:
            after_epoch(result, student)
        if checkpoint.due():
            state = {"curve": result.curve, "lessons": [vars(lesson) for lesson in result.lessons], "place": place}
            state |= weights() | {"kept": kept, "best": best}
            state |= {"optimizers": [o.state_dict() for o in optimizers], "random": random_state(device)}
            checkpoint.save(state | {"teacher_images": int(seen)})

    def next_lesson():
        lesson = curriculum.next(result.lessons, budget, teachers, student, data)
        if lesson is not None:
            result.lessons.append(lesson)
        return lesson

    torch.manual_seed(seed)
    place, resumed = {"phase": 0, "epoch": 0}, None
    saved = checkpoint.load()
    if saved:
        checkpoints.load_weights(student, saved["student"], checkpoint.path)
        result.lessons = [Lesson(**lesson) for lesson in saved["lessons"]]
        lesson = result.lessons[-1]
        networks = begin(lesson)
        checkpoints.load_weights(knowledge, saved["knowledge"], checkpoint.path)
        result.curve = saved["curve"]
        seen.fill_(saved["teacher_images"])
        place, resumed, kept, best = saved["place"], saved["optimizers"], saved["kept"], saved["best"]
        restore_random_state(saved["random"], device)
    else:
        lesson = next_lesson()
        networks = begin(lesson)
    while lesson is not None:
        number = len(result.lessons) - 1
        for index, phase in enumerate(phases(lesson, networks, number)):
            if index < place["phase"]:
                continue
            main = phase.name == "lesson"
            states = resumed or (kept if main and not lesson.restart else None)
            past = sum(done.epochs for done in result.lessons[:number])
            stream = past if main else PREPARATION * (1 + index + 10 * number)

            def over(epoch, optimizers, means, phase=phase, index=index):
                epoch_is_over(phase, {"phase": index, "epoch": epoch + 1}, optimizers, means)

            states = run_phase(phase, data, seed, states, place["epoch"], stream, over)
            kept = states if main else kept
            place, resumed = {"phase": 0, "epoch": 0}, None
        if after_lesson:
            after_lesson(result, student)
        lesson = next_lesson()
        networks = begin(lesson) if lesson is not None else networks
    while hooks:
        hooks.pop().remove()
    student.eval()
    result.teacher_images = int(seen)
    result.extra_parameters = sum(p.numel() for p in knowledge.parameters())
    result.measured = knowledge.measure(student, networks[-1] if networks else None, data)
    result.seconds = time.monotonic() - began
    return result


def random_state(device):
    """The state of torch's generators, for networks with dropout."""
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "device": on_device}


def restore_random_state(state, device):
    torch.set_rng_state(state["cpu"])
    if state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)


def train(network, data, recipe, seed=0, **options):
    """Train a network on the labels alone; the options are those of `distill`."""
    return distill(network, Labels(), None, data, recipe, seed, **options)
