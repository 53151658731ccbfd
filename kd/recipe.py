"""How something is trained: optimizer, learning rate, length, precision. One flat dataclass."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from kd.errors import ConfigError, NonNegative, Positive, PositiveInt, Share, arguments, checked, several, validated

ADAMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
Schedule = Literal["step", "cosine", "triangular", "constant"]


@checked("recipe", noun="key")
@dataclass(frozen=True)
class Recipe:
    """A training recipe; the defaults are RepDistiller's for CIFAR-100 (README.md, train_student.py).

    Lengths are epochs; everything that marks a place in the schedule is a share of the run, so that a recipe keeps its
    shape when it is shortened. A value of the wrong kind or range, and an unknown key, raises ConfigError.
    """

    epochs: PositiveInt = 240  # passes over the training images
    batch_size: PositiveInt = 64  # images a step; the last, partial batch of an epoch is kept
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive = 0.05  # at the start of each cycle
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9  # SGD only
    nesterov: bool = False  # SGD only
    weight_decay: NonNegative = 5e-4  # L2, added to the gradient; adamw: taken off the weights, times the learning rate
    schedule: Schedule = "step"
    milestones: several(Share) = (0.625, 0.75, 0.875)  # step: shares of the run after which the rate falls
    gamma: Positive = 0.1  # step: the factor at each milestone
    cycles: PositiveInt = 1  # how often the schedule starts anew within the run
    warm_up: Annotated[float, Interval(ge=0, lt=1)] = 0.0  # share of the run in which the rate rises, linearly
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast of the networks; losses stay in fp32
    channels_last: bool = True  # memory layout of images and weights; rounding differs, nothing else

    def __post_init__(self):
        if self.nesterov and not self.momentum:
            raise ConfigError("recipe.nesterov: needs momentum; raise recipe.momentum above 0, or take nesterov: false")
        object.__setattr__(self, "milestones", tuple(map(float, self.milestones)))

    @classmethod
    def of(cls, values: dict) -> "Recipe":
        """A Recipe from a mapping, such as the `recipe` of a parameters file."""
        validated(arguments(cls), values, "recipe")
        return cls(**values)

    def replace(self, **changes) -> "Recipe":
        """The same recipe with some values changed."""
        return replace(self, **changes)

    def as_dict(self) -> dict:
        """Every key and its value, in the order above; milestones as a list; warm_up only where there is one.

        So runs without warm-up keep the names that they had in a store before it could be asked for.
        """
        values = {**asdict(self), "milestones": list(self.milestones)}
        return values if self.warm_up else {key: value for key, value in values.items() if key != "warm_up"}

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at `progress`, the share of the run that is over, in [0, 1)."""
        place = (progress * self.cycles) % 1.0
        if self.schedule == "step":
            # tolerates rounding, so that epoch 3 of 4 counts as having reached the milestone 0.75
            factor = self.gamma ** sum(place >= m - 1e-9 for m in self.milestones)
        elif self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * place))
        elif self.schedule == "triangular":
            # starts and ends at a hundredth of the peak: a rate of zero would waste the first step of a cycle
            factor = 0.01 + 0.99 * (1 - abs(2 * place - 1))
        else:
            factor = 1.0
        if progress < self.warm_up:  # from a hundredth on: a rate of zero would waste the first step
            factor *= 0.01 + 0.99 * progress / self.warm_up
        return self.learning_rate * factor

    def build_optimizer(self, parameters):
        """torch's own SGD, Adam or AdamW, in its fused form."""
        parameters = [p for p in parameters if p.requires_grad]
        options = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer in ADAMS:
            return ADAMS[self.optimizer](parameters, **options)
        return torch.optim.SGD(parameters, momentum=self.momentum, nesterov=self.nesterov, **options)
