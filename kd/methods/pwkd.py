"""PWKD: from partial to whole knowledge (Zhang, Zhang, Sun 2021, arXiv 2109.12507). OUR READING of its abstract.

No more than the abstract is public.

A curriculum. The teacher is rebuilt as sub-networks of the same depth that share their weights and grow in channel
width, the last one whole (kd.models.Supernet, trained jointly by kd.teachers.train_supernet). The student learns in
stages, from the narrowest sub-teacher to the whole one, with a cyclic learning rate, by any existing way of distilling:

    for i = 1..n:   start the learning rate's cycle anew; learn from sub-network w_i;  keep the weights
    PWKD() * KD(),  PWKD() * FitNet(),  PWKD() * (KD() + AT())

Only the paragraph above is established. What follows is our choice, because nothing more is public; some other choices
are options:
 * Widths: those of the supernet, 0.25, 0.5, 0.75, 1 by default (supernet.widths in params.yaml); `stages` takes
   fewer of them.
 * A batch norm a width, and leading slices of the weights, as in slimmable networks (kd/models/supernet.py).
 * Joint training (kd/teachers.py): all widths begin with the converged plain teacher's weights (supernet.start); the
   whole learns from the labels, the others from its outputs (supernet.distil_in_place; else from the labels too). The
   jointly trained whole network is another teacher than the plain one, so tables hold plain KD from both.
 * Budget: the student's epochs are those of plain KD, split among the stages. A full schedule for every stage is the
   same with n times the epochs (a row's `epochs: n`).
 * Cycle: one cosine cycle a stage; or `schedule` "step", "triangular", "constant", or "recipe", the recipe's own.
   recipe.cycles = 2 makes two cycles a stage. restart=False is the control: one schedule over all stages.
 * Knowledge with weights of its own (regressors, encoders) builds them anew at every stage, as the teacher's channels
   change; the optimizer then starts afresh, restart or not.
"""

from typing import Literal

from kd.errors import ConfigError, PositiveInt, checked
from kd.methods.base import Curriculum, Lesson, split_epochs
from kd.recipe import Schedule


def spread(widths, stages):
    """The numbers (from 0) of `stages` of `widths` widths, evenly spread and ending at the last: 2 of 4 are 1 and 3."""
    return [-(-k * widths // stages) - 1 for k in range(1, stages + 1)]


@checked("pwkd")
class PWKD(Curriculum):
    """Lessons over the sub-networks of a supernet.

    order: "narrow to wide" (the paper's), "wide to narrow" or "together" (controls; together: one lesson whose loss is
        the mean over all sub-teachers).
    schedule: of the learning rate within a stage, "cosine", "step", "triangular", "constant", or "recipe".
    restart: each stage begins the schedule anew (the cyclic learning rate); False: one schedule for all stages.
    stages: how many widths, evenly spread and ending at the whole network; None: all that the supernet has.
    split: how the epochs are shared among stages, "equal" or "width" (in proportion to the sub-teacher's width).
    """

    def __init__(
        self,
        order: Literal["narrow to wide", "wide to narrow", "together"] = "narrow to wide",  # the abstract
        schedule: Literal[Schedule, "recipe"] = "cosine",  # ours; the abstract says cyclic
        restart: bool = True,  # the abstract's cyclic learning rate
        stages: PositiveInt | None = None,  # ours: all
        split: Literal["equal", "width"] = "equal",  # ours
    ):
        self.order, self.schedule, self.restart, self.stages, self.split = order, schedule, restart, stages, split

    def next(self, done, epochs, teachers, student, data):
        supernet = teachers["supernet"]
        stages = self.stages or len(supernet)
        if stages > len(supernet):
            have = f"{stages} stages, but the supernet has {len(supernet)} widths"
            raise ConfigError(f"pwkd.stages: {have}; ask for fewer, or give it more")
        chosen = spread(len(supernet), stages)
        # a plain list of networks will do for a supernet; it does not say how wide they are
        widths = getattr(supernet, "widths", [(i + 1) / len(supernet) for i in range(len(supernet))])
        if self.order == "wide to narrow":
            chosen.reverse()
        groups = [tuple(chosen)] if self.order == "together" else [(index,) for index in chosen]
        if len(done) == len(groups):
            return None
        shares = [widths[group[-1]] if self.split == "width" else 1 for group in groups]
        group, length = groups[len(done)], split_epochs(epochs, shares, "pwkd.stages")[len(done)]
        info = {"widths": [widths[index] for index in group]}
        name = "width " + " + ".join(f"{width:g}" for width in info["widths"])
        schedule = None if self.schedule == "recipe" else self.schedule
        return Lesson("supernet", group, length, self.restart, schedule, name, info)
