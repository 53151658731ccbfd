"""What a method is: a curriculum (which teacher, when?) times knowledge (what is passed on?).

    KD()                                        the converged teacher's softened logits
    RCO(strategy="greedy") * (KD() + SRM())     learn along the teacher's route, from logits and sparse labels
    PWKD() * FitNet()                           hints, from the narrowest sub-teacher to the whole

Knowledge adds (`+`), a curriculum multiplies it (`*`). The loop (kd/distill.py) knows only what stands in this file.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from torch import nn

from kd.errors import Problem, check_kind, nearest


@dataclass
class Learner:
    """Modules that learn together under one optimizer, and the loss they learn from.

    modules: put in train mode at the start of every epoch; everything else stays as it is.
    loss: (images (N, C, H, W), labels (N,)) -> {term name: scalar tensor}; the terms are summed.
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
    """One stretch of training: learners, each with an optimizer of its own that steps in turn on every batch.

    span: the part of the learning rate's schedule this phase covers, (0, 1) for all of it.
    student_epochs: whether the student learns in it, so that its epochs count in the student's budget.
    score: (entry of the curve) -> how good the state is, lower is better, or None; asked wherever `ends_stretch`.
    choose: the phase ends with the best state scored since the last choice, the first of equals; with its last where none was.
    """

    name: str
    learners: list[Learner]
    recipe: "Recipe"  # noqa: F821 - kd.recipe.Recipe; its epochs are the length of the phase
    span: tuple[float, float] = (0.0, 1.0)
    student_epochs: bool = False
    score: Callable | None = None
    choose: bool = False

    def ends_stretch(self, epoch):
        """Whether a stretch of learning rate ends in `epoch` (from 1): the rate falls at a milestone, or the phase is over."""
        start, stop = self.span
        before, after = (start + (stop - start) * past / self.recipe.epochs for past in (epoch - 1, epoch))
        falls = self.recipe.schedule == "step" and self.recipe.rate(before) != self.recipe.rate(after)
        return falls or epoch == self.recipe.epochs


@dataclass
class Lesson:
    """A stretch of the student's training under fixed teachers.

    source: which sequence of teachers, "route" or "supernet"; indices: which of them (several: their losses are averaged).
    epochs: student epochs. restart: the learning rate's schedule starts anew (and the optimizer with it); otherwise the lesson
    continues the schedule of the run. schedule: overrides the recipe's schedule for this lesson.
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
        Teachers.of(network)            a single network of one's own is a route of one state, a list of them a route
    """

    def __init__(self, route=None, supernet=None):
        self.sources = {name: source for name, source in (("route", route), ("supernet", supernet)) if source is not None and len(source)}

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
            raise Problem(f"this method needs a {source} of the teacher, and there is none here (there: {have}); give kd.Teachers({source}=...)")
        return self.sources[source]


class Knowledge(nn.Module):
    """What is passed on. A subclass overrides `loss`, and whatever else its paper needs.

    Being an nn.Module, whatever it trains or keeps (regressors, encoders, codebooks) is a submodule, and so part of the state
    that is saved and resumed.
    """

    label_weight: float | None = None  # weight of the cross-entropy with the labels; None: no opinion, which makes it 1
    needs_teacher = True

    @property
    def teaches(self):
        """Whether the lessons' loss learns from the teacher; where it does not, the teacher is not asked."""
        return self.needs_teacher and type(self).loss is not Knowledge.loss

    def start(self, student, teacher, student_example, teacher_example):
        """Build the modules whose shapes depend on the networks. Called before the first lesson, and again when a lesson's
        teacher has features of other shapes. The examples are Outputs of both networks on the same few images."""

    def warm_up(self, epochs):
        """(student epochs that `prepare` spends, how many of these are taken out of the `epochs` of the lessons)."""
        return 0, 0

    def prepare(self, student, teacher, data, recipe, lesson):
        """Yield the phases to train before lesson number `lesson` (from 0). Code between two yields must not change weights:
        it runs again when a run is resumed."""
        return iter(())

    def see(self, images):
        """Look at the batch before `loss`: for what runs networks of its own on it (mutual learning)."""

    def loss(self, student, teacher, labels):
        """Named, weighted terms from both networks' Outputs; the loop adds the labels' cross-entropy."""
        return {}

    def trained(self):
        """The submodules that learn beside the student during the lessons."""
        return []

    def student_parameters(self, student):
        """The student's parameters that the lessons update."""
        return list(student.parameters())

    def peers(self, student, teacher):
        """Learners beside the student with an optimizer of their own (mutual learning)."""
        return []

    def score(self, entry):
        """The `score` of the lesson's own phase: a number to choose among its states by, or None to go on with the last."""
        return None

    def measure(self, student, teacher, data):
        """Numbers worth a place in the record, taken once after the last lesson; JSON values only."""
        return {}

    def parts(self):
        return [self]

    def __add__(self, other):
        if not isinstance(other, Knowledge):
            raise Problem(f"{type(self).__name__}() + {type(other).__name__}: only knowledge adds; a curriculum multiplies it: RCO() * (KD() + SRM())")
        return Sum(self.parts() + other.parts())

    def __mul__(self, other):
        raise Problem(f"{type(self).__name__}() * {type(other).__name__}: the curriculum comes first, RCO() * KD()")


class Labels(Knowledge):
    """The labels alone: a student without a teacher, or a teacher in the making."""

    needs_teacher = False


class Sum(Knowledge):
    """Several kinds of knowledge at once: every part does what it does alone, and the terms are added.

    The labels' weight is the smallest that a part asks for.
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

    def start(self, *arguments):
        for part in self.members:
            part.start(*arguments)

    def warm_up(self, epochs):
        spent, taken = zip(*(part.warm_up(epochs) for part in self.members), strict=True)
        return sum(spent), sum(taken)

    def prepare(self, *arguments):
        for part in self.members:
            yield from part.prepare(*arguments)

    def see(self, images):
        for part in self.members:
            part.see(images)

    def loss(self, student, teacher, labels):
        terms = {}
        for part in self.members:
            for name, value in part.loss(student, teacher, labels).items():
                terms[name] = terms[name] + value if name in terms else value
        return terms

    def trained(self):
        return [module for part in self.members for module in part.trained()]

    def student_parameters(self, student):
        kept = [{id(p) for p in part.student_parameters(student)} for part in self.members]
        return [p for p in student.parameters() if all(id(p) in part for part in kept)]

    def peers(self, student, teacher):
        return [learner for part in self.members for learner in part.peers(student, teacher)]

    def score(self, entry):
        return next((score for part in self.members if (score := part.score(entry)) is not None), None)

    def measure(self, student, teacher, data):
        return {k: v for part in self.members for k, v in part.measure(student, teacher, data).items()}


class Curriculum:
    """Which teacher, when? A subclass overrides `next`."""

    def next(self, done, epochs, teachers, student, data):
        """The lesson after those in `done` (a list of Lesson), or None at the end.

        epochs: the student's epochs for all lessons; teachers: Teachers; student: as it stands after the last
        lesson. May add to `done[-1].info`. Must depend on nothing else, so that a resumed run decides alike.
        """
        raise NotImplementedError

    def __add__(self, other):
        raise Problem(f"{type(self).__name__}() + {type(other).__name__}: a curriculum multiplies knowledge, such as RCO() * KD()")

    def __mul__(self, knowledge):
        if not isinstance(knowledge, Knowledge):
            raise Problem(f"{type(self).__name__}() * {type(knowledge).__name__}: a curriculum multiplies knowledge, such as KD()")
        return Method(self, knowledge)


class Fixed(Curriculum):
    """Plain distillation: one lesson from one teacher, by default the converged one.

    source: "route" or "supernet"; index: which of its teachers, -1 being the converged or the whole one.
    share: instead of index, the state saved nearest to this share of the teacher's training, in (0, 1].
    """

    def __init__(self, source="route", index=-1, share=None):
        if share is not None and not 0 < share <= 1:
            raise Problem(f"fixed.share: {share!r} must lie in (0, 1], a share of the teacher's training")
        self.source, self.index, self.share = source, index, share

    def next(self, done, epochs, teachers, student, data):
        if done:
            return None
        index = self.index if self.share is None else state_at(teachers[self.source], self.share)
        info = {} if self.share is None else {"teacher_epoch": teacher_epochs(teachers[self.source])[index]}
        name = "converged" if index == -1 else str(index)
        return Lesson(self.source, (index,), epochs, restart=True, name=name, info=info)


def teacher_epochs(route):
    """The epoch of each state of a route; for a plain list of networks their number, from 1."""
    return list(getattr(route, "epochs", range(1, len(route) + 1)))


def state_at(route, share):
    """The number of the state saved nearest to `share` of the teacher's training, the earlier one on a tie."""
    epochs = teacher_epochs(route)
    return state_at_epoch(epochs, share * epochs[-1])


def state_at_epoch(epochs, wanted):
    """The number of the state saved nearest to epoch `wanted`, the earlier one on a tie. epochs: of each saved state."""
    return min(range(len(epochs)), key=lambda i: (abs(epochs[i] - wanted), i))


def split_epochs(epochs, shares, name):
    """Whole epochs in proportion to `shares`, `epochs` in total. Problem, naming the parameter, when one would get none."""
    ends = [epochs * sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]
    ends = [0, *(int(end + 0.5) for end in ends)]
    parts = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    if min(parts) < 1:
        raise Problem(f"{name}: {epochs} epochs do not suffice for {len(shares)} lessons; raise epochs or ask for fewer")
    return parts


@dataclass
class Method:
    """A curriculum times knowledge."""

    curriculum: Curriculum
    knowledge: Knowledge

    @classmethod
    def of(cls, method):
        """Knowledge alone is taught by the converged teacher."""
        return method if isinstance(method, cls) else Fixed() * method

    def __add__(self, other):
        raise Problem("a method is complete; put brackets around the sum: RCO() * (KD() + SRM())")

    __mul__ = __add__


# The names that tables and parameters use, and where each class stands in this package.
KNOWLEDGE = {
    "labels": "Labels",
    "kd": "kd.KD",
    "fitnet": "hints.FitNet",
    "at": "attention.AT",
    "ft": "factor.FT",
    "kr": "kr.KR",
    "srm": "srm.SRM",
    "iekd": "iekd.IEKD",
    "dml": "dml.DML",
    "iedml": "iekd.IEDML",
}
CURRICULA = {"fixed": "Fixed", "rco": "rco.RCO", "pwkd": "pwkd.PWKD"}


def find(name):
    """The class called `name`; an unknown name raises Problem naming the nearest one."""
    known = {**KNOWLEDGE, **CURRICULA}
    if name not in known:
        raise Problem(f"unknown method {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    module, _, attribute = known[name].rpartition(".")
    return getattr(import_module(f"kd.methods.{module}" if module else "kd.methods"), attribute)


def resolved(names, parameters):
    """Every parameter of the named methods, defaults included: {name: {parameter: value}}.

    An unknown method or parameter raises Problem naming the nearest known one, and so does a value of another kind.
    """
    found = {}
    for name in names:
        arguments = list(inspect.signature(find(name).__init__).parameters.values())[1:]
        defaults = {p.name: p.default for p in arguments if p.kind is p.POSITIONAL_OR_KEYWORD}
        for key, value in (parameters.get(name) or {}).items():
            if key not in defaults:
                raise Problem(f"{name}: unknown parameter {key!r}{nearest(key, defaults)}; known: {', '.join(defaults)}")
            if type(defaults[key]) in (bool, float):  # whole numbers have other meanings beside them, which the method knows
                check_kind(f"{name}.{key}", value, defaults[key])
        found[name] = {**defaults, **(parameters.get(name) or {})}
    return found


def make(knowledge, curriculum="fixed", parameters=None):
    """A Method from names: `make(["kd", "srm"], "rco", {"rco": {"strategy": "greedy"}})`. Raises Problem as `resolved` does."""
    if not knowledge:
        raise Problem("a method needs at least one kind of knowledge, e.g. knowledge: [kd]")
    options = resolved([*knowledge, curriculum], parameters or {})
    members = [find(name)(**options[name]) for name in knowledge]
    return Method(find(curriculum)(**options[curriculum]), members[0] if len(members) == 1 else Sum(members))


def matched(teacher_features, student_features, taps):
    """Pairs (teacher map, student map) at the given stage numbers; a tap that does not exist raises Problem."""
    pairs = []
    for tap in taps:
        for who, features in (("teacher", teacher_features), ("student", student_features)):
            if not -len(features) <= tap < len(features):
                raise Problem(f"tap {tap}: the {who} has {len(features)} stages; choose from 0 to {len(features) - 1}")
        pairs.append((teacher_features[tap], student_features[tap]))
    return pairs


def freeze(module):
    """Eval mode and no gradients, for whatever must stay as it is. Returns the module."""
    return module.eval().requires_grad_(False)
