"""How something is trained: optimizer, learning rate, length, precision. One flat dataclass."""

import math
from dataclasses import asdict, dataclass, fields, replace

import torch

from kd.errors import Problem, check_kind, nearest

SCHEDULES = ("step", "cosine", "triangular", "constant")


@dataclass(frozen=True)
class Recipe:
    """A training recipe; the defaults are RepDistiller's for CIFAR-100 (README.md, train_student.py).

    Lengths are epochs; everything that marks a place in the schedule is a share of the run, so that a recipe keeps its
    shape when it is shortened. A value of the wrong kind or range raises Problem.
    """

    epochs: int = 240  # passes over the training images
    batch_size: int = 64  # images a step; the last, partial batch of an epoch is kept
    optimizer: str = "sgd"  # sgd | adam
    learning_rate: float = 0.05  # at the start of each cycle
    momentum: float = 0.9  # SGD only
    nesterov: bool = False  # SGD only
    weight_decay: float = 5e-4  # L2, added to the gradient
    schedule: str = "step"  # step | cosine | triangular | constant
    milestones: tuple = (0.625, 0.75, 0.875)  # step: shares of the run (150, 180, 210 of 240) after which the rate falls
    gamma: float = 0.1  # step: the factor at each milestone
    cycles: int = 1  # how often the schedule starts anew within the run
    precision: str = "fp32"  # fp32 | bf16 (autocast of the networks; losses stay in fp32)
    channels_last: bool = True  # memory layout of images and weights; rounding differs, nothing else

    def __post_init__(self):
        for field in fields(self):
            check_kind(f"recipe.{field.name}", getattr(self, field.name), field.default)
        if not isinstance(self.milestones, (list, tuple)):
            raise Problem(f"recipe.milestones: {self.milestones!r} must be a list of shares of the run")
        for milestone in self.milestones:
            check_kind("recipe.milestones", milestone, 0.5)
        object.__setattr__(self, "milestones", tuple(map(float, self.milestones)))
        checks = {
            "epochs": self.epochs >= 0,
            "batch_size": self.batch_size >= 1,
            "optimizer": self.optimizer in ("sgd", "adam"),
            "learning_rate": self.learning_rate > 0,
            "momentum": 0 <= self.momentum < 1,
            "nesterov": self.momentum > 0 or not self.nesterov,
            "weight_decay": self.weight_decay >= 0,
            "schedule": self.schedule in SCHEDULES,
            "milestones": all(0 < m <= 1 for m in self.milestones),
            "gamma": self.gamma > 0,
            "cycles": self.cycles >= 1,
            "precision": self.precision in ("fp32", "bf16"),
        }
        for name, fine in checks.items():
            if not fine:
                raise Problem(f"recipe.{name}: {getattr(self, name)!r} is out of range; see Recipe in kd/recipe.py")

    @classmethod
    def of(cls, values):
        """A Recipe from a mapping; an unknown key raises Problem naming the nearest known one."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise Problem(f"recipe: unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")
        return cls(**values)

    def but(self, **changes):
        """The same recipe with some values changed."""
        return replace(self, **changes)

    def as_dict(self):
        return {**asdict(self), "milestones": list(self.milestones)}

    def rate(self, progress):
        """The learning rate at `progress`, the share of the run that is over, in [0, 1)."""
        place = (progress * self.cycles) % 1.0
        if self.schedule == "step":
            # a hair of tolerance, so that epoch 3 of 4 counts as having reached the milestone 0.75
            factor = self.gamma ** sum(place >= m - 1e-9 for m in self.milestones)
        elif self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * place))
        elif self.schedule == "triangular":
            # starts and ends at a hundredth of the peak: a rate of zero would waste the first step of a cycle
            factor = 0.01 + 0.99 * (1 - abs(2 * place - 1))
        else:
            factor = 1.0
        return self.learning_rate * factor

    def build_optimizer(self, parameters):
        """torch's own SGD or Adam, fused where every parameter allows it."""
        parameters = [p for p in parameters if p.requires_grad]
        options = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, **options)
        return torch.optim.SGD(parameters, momentum=self.momentum, nesterov=self.nesterov, **options)
