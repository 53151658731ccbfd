"""What a method is: a curriculum (which teacher, when?) times knowledge (what is passed on?).

    KD()                                        the converged teacher's softened logits
    RCO(strategy="greedy") * (KD() + SRM())     learn along the teacher's route, from logits and sparse labels
    PWKD() * FitNet()                           hints, from the narrowest sub-teacher to the whole

Knowledge adds (`+`), a curriculum multiplies it (`*`). The loop (kd/training.py) knows only what stands in this file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from kd.errors import ConfigError, Share, checked


@dataclass
class Learner:
    """Modules that learn together under one optimizer, and the loss they learn from.

    modules: put in train mode at the start of every epoch; everything else stays as it is.
    loss: (kd.data.Batch) -> {term name: scalar tensor, mean over the batch}; the terms are summed.
    parameters: what the optimizer updates; None means every parameter of `modules` that requires a gradient.
    """

    modules: list[nn.Module]
    loss: Callable
    parameters: list | None = None

    def learnable(self):
        chosen = self.parameters
        if chosen is None:
            chosen = [p for module in self.modules for p in module.parameters()]
        return [p for p in chosen if p.requires_grad]


@dataclass
class Phase:
    """Epochs under one recipe: learners, each with an optimizer of its own that steps in turn on every batch.

    span: the part of the learning rate's schedule this phase covers, (0, 1) for all of it.
    student_epochs: whether the student learns in it, so that it is evaluated after every epoch.
    select: (entry of the curve) -> how good the state is, lower is better; asked at the end of every learning-rate
        segment. The phase continues from the best of these states, the earliest where several are equally good. None:
        from its last state.
    select_later: this phase does not choose; the next one that does compares this phase's states as well.
    """

    name: str
    learners: list[Learner]
    recipe: "Recipe"  # noqa: F821 - kd.recipe.Recipe; its epochs are the length of the phase
    span: tuple[float, float] = (0.0, 1.0)
    student_epochs: bool = False
    select: Callable | None = None
    select_later: bool = False

    def learning_rate_at(self, done, total):
        """The learning rate when `done` of the phase's `total` steps (or epochs) are over."""
        start, stop = self.span
        return self.recipe.learning_rate_at(start + (stop - start) * done / total)

    def ends_segment(self, epoch):
        """Whether a segment of the learning rate ends in `epoch` (from 1): at a milestone, or with the phase."""
        phase = replace(self, recipe=self.recipe.replace(warm_up=0.0))  # while the rate still rises, no segment ends
        before, after = (phase.learning_rate_at(done, self.recipe.epochs) for done in (epoch - 1, epoch))
        return epoch == self.recipe.epochs or (self.recipe.schedule == "step" and before != after)


@dataclass
class Lesson:
    """A part of the student's training, under fixed teachers.

    source: which sequence of teachers, "route" or "supernet"; indices: which of them (several: their losses are
    averaged).
    epochs: student epochs. restart: the learning rate's schedule starts anew (and the optimizer with it); otherwise the
    lesson continues the schedule of the run. schedule: overrides the recipe's schedule for this lesson.
    info: whatever the curriculum wants to remember; JSON values only, it goes into the record.
    """

    source: str = "route"
    indices: tuple[int, ...] = (-1,)
    epochs: int = 0
    restart: bool = False
    schedule: str | None = None
    name: str = ""
    info: dict = field(default_factory=dict)


class Teachers:
    """All teachers of one student: `route` and `supernet`, each a sequence of networks (or absent).

        Teachers(route=Route("models/digits/cnn6x16.safetensors"))
        Teachers.of(network)            a single network becomes a route of one state, a list of networks a route
    """

    def __init__(self, route=None, supernet=None):
        given = {"route": route, "supernet": supernet}
        self.sources = {name: source for name, source in given.items() if source is not None and len(source)}

    @classmethod
    def of(cls, teacher):
        if isinstance(teacher, nn.Module):
            teacher = [teacher]
        if teacher is None or isinstance(teacher, cls):
            return teacher or cls()
        return cls(route=teacher)

    def __bool__(self):
        return bool(self.sources)

    def __getitem__(self, source):
        if source not in self.sources:
            have = ", ".join(self.sources) or "none"
            lacks = f"this method needs a {source} of the teacher, and there is none here (there: {have})"
            raise ConfigError(f"{lacks}; give kd.Teachers({source}=...)")
        return self.sources[source]


class Knowledge(nn.Module):
    """What is passed on. A subclass overrides `loss`, and whatever else its paper needs.

    Being an nn.Module, whatever it trains or keeps (regressors, encoders, codebooks) is a submodule, and so part of the
    state that is saved and resumed.
    """

    label_weight: float | None = None  # of the cross-entropy with the labels; None: 1, unless another part sets it
    needs_teacher = True

    @property
    def teaches(self):
        """Whether the lessons' loss learns from the teacher; where it does not, the teacher is not asked."""
        return self.needs_teacher and type(self).loss is not Knowledge.loss

    def build(self, student, teacher, student_example, teacher_example):
        """Build the modules whose shapes depend on the networks. Called before the first lesson, and again when a
        lesson's teacher has features of other shapes. The examples are Outputs of both networks on the same images."""

    def warm_up(self, epochs):
        """(student epochs that `prepare` spends, how many of these are taken out of the `epochs` of the lessons)."""
        return 0, 0

    def prepare(self, student, teacher, data, recipe, lesson):
        """Yield the phases to train before lesson number `lesson` (from 0). Code between two yields must not change
        weights: it runs again when a run is resumed."""
        return iter(())

    def loss(self, student, teacher, batch):
        """{term name: weighted scalar tensor} from both networks' Outputs for a kd.data.Batch; the loop adds the
        labels' cross-entropy. In a lesson under several teachers it is called once for each of them."""
        return {}

    def trained(self):
        """The submodules that learn beside the student during the lessons."""
        return []

    def student_parameters(self, student):
        """The student's parameters that the lessons update."""
        return list(student.parameters())

    def amend(self, phase, student, teacher):
        """Change the lesson's own phase before it is trained, e.g. add a Learner with its own optimizer."""

    def measure(self, student, teacher, data):
        """{name: JSON value} for the run's record, measured once after the last lesson."""
        return {}

    def parts(self):
        return [self]

    def __add__(self, other):
        if not isinstance(other, Knowledge):
            wrong = f"{type(self).__name__}() + {type(other).__name__}"
            raise ConfigError(f"{wrong}: only knowledge adds; a curriculum multiplies it: RCO() * (KD() + SRM())")
        return Sum(self.parts() + other.parts())

    def __mul__(self, other):
        raise ConfigError(f"{type(self).__name__}() * {type(other).__name__}: the curriculum comes first, RCO() * KD()")


class Labels(Knowledge):
    """The labels alone, as for a student without a teacher, or for training a teacher."""

    needs_teacher = False


class Sum(Knowledge):
    """Several kinds of knowledge at once: every part does what it does alone, and the terms are added.

    The labels' weight is the smallest of those that the parts set.
    """

    def __init__(self, parts):
        super().__init__()
        self.members = nn.ModuleList(parts)
        weights = [p.label_weight for p in parts if p.label_weight is not None]
        self.label_weight = min(weights) if weights else None
        self.needs_teacher = any(p.needs_teacher for p in parts)

    @property
    def teaches(self):
        return any(part.teaches for part in self.members)

    def parts(self):
        return list(self.members)

    def build(self, *arguments):
        for part in self.members:
            part.build(*arguments)

    def warm_up(self, epochs):
        spent, taken = zip(*(part.warm_up(epochs) for part in self.members), strict=True)
        return sum(spent), sum(taken)

    def prepare(self, *arguments):
        for part in self.members:
            yield from part.prepare(*arguments)

    def loss(self, student, teacher, batch):
        terms = {}
        for part in self.members:
            for name, value in part.loss(student, teacher, batch).items():
                terms[name] = terms[name] + value if name in terms else value
        return terms

    def trained(self):
        return [module for part in self.members for module in part.trained()]

    def student_parameters(self, student):
        kept = [{id(p) for p in part.student_parameters(student)} for part in self.members]
        return [p for p in student.parameters() if all(id(p) in part for part in kept)]

    def amend(self, *arguments):
        for part in self.members:
            part.amend(*arguments)

    def measure(self, student, teacher, data):
        return {k: v for part in self.members for k, v in part.measure(student, teacher, data).items()}


class Curriculum:
    """Which teacher, when? A subclass overrides `next`."""

    def next(self, done, epochs, teachers, student, data):
        """The lesson after those in `done` (a list of Lesson), or None at the end.

        epochs: the student's epochs for all lessons; teachers: Teachers; student: as it stands after the last
        lesson. May add to `done[-1].info`. Must depend on nothing else, so that a resumed run takes the same decisions.
        """
        raise NotImplementedError

    def __add__(self, other):
        wrong = f"{type(self).__name__}() + {type(other).__name__}"
        raise ConfigError(f"{wrong}: a curriculum multiplies knowledge, such as RCO() * KD()")

    def __mul__(self, knowledge):
        if not isinstance(knowledge, Knowledge):
            wrong = f"{type(self).__name__}() * {type(knowledge).__name__}"
            raise ConfigError(f"{wrong}: a curriculum multiplies knowledge, such as KD()")
        return Method(self, knowledge)


@checked("fixed")
class Fixed(Curriculum):
    """Plain distillation: one lesson from one teacher, by default the converged one.

    source: "route" or "supernet"; index: which of its teachers, -1 being the converged or the whole one.
    share: instead of index, the state saved nearest to this share of the teacher's training, in (0, 1].
    """

    def __init__(self, source: Literal["route", "supernet"] = "route", index: int = -1, share: Share | None = None):
        self.source, self.index, self.share = source, index, share

    def next(self, done, epochs, teachers, student, data):
        if done:
            return None
        index = self.index if self.share is None else state_at(teachers[self.source], self.share)
        info = {} if self.share is None else {"teacher_epoch": teacher_epochs(teachers[self.source])[index]}
        name = "converged" if index == -1 else str(index)
        return Lesson(self.source, (index,), epochs, restart=True, name=name, info=info)


def teacher_epochs(route):
    """The epoch of each state of a route; for a plain list of networks 1, 2, ..."""
    return list(getattr(route, "epochs", range(1, len(route) + 1)))


def state_at(route, share):
    """The number of the state saved nearest to `share` of the teacher's training, the earlier one on a tie."""
    epochs = teacher_epochs(route)
    return state_at_epoch(epochs, share * epochs[-1])


def state_at_epoch(epochs, wanted):
    """The number of the state saved nearest to epoch `wanted`, the earlier on a tie. epochs: of each saved state."""
    return min(range(len(epochs)), key=lambda i: (abs(epochs[i] - wanted), i))


def split_epochs(epochs, shares, name):
    """Whole epochs in proportion to `shares`, `epochs` in total. ConfigError, beginning with `name`, where one is 0."""
    ends = [epochs * sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]
    ends = [0, *(int(end + 0.5) for end in ends)]
    parts = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    if min(parts) < 1:
        have = f"{epochs} epochs do not suffice for {len(shares)} lessons"
        raise ConfigError(f"{name}: {have}; raise epochs or ask for fewer")
    return parts


@dataclass
class Method:
    """A curriculum times knowledge."""

    curriculum: Curriculum
    knowledge: Knowledge

    @classmethod
    def of(cls, method):
        """A Method as it is; knowledge alone as one lesson from the converged teacher."""
        return method if isinstance(method, cls) else Fixed() * method

    def lesson_epochs(self, epochs):
        """How many of a student's `epochs` are left for the lessons; ConfigError where warm-up takes all of them."""
        _, taken = self.knowledge.warm_up(epochs)
        if taken and taken >= epochs:
            reason = f"{taken} of {epochs} epochs go into warm-up and none is left"
            raise ConfigError(f"{reason}; raise epochs or lower the warm-up's share")
        return epochs - taken

    def __add__(self, other):
        raise ConfigError("a method is complete; put brackets around the sum: RCO() * (KD() + SRM())")

    __mul__ = __add__


def freeze(module):
    """Set eval mode and turn gradients off. Returns the module."""
    return module.eval().requires_grad_(False)
