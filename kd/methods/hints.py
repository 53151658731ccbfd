"""FitNet: the teacher's feature maps as hints (Romero et al., ICLR 2015, arXiv 1412.6550).

    L_hint = weight * sum_taps mean( (r(f_s) - f_t)^2 )

f_s, f_t: feature maps of student and teacher at the same stage. r: a regressor that lifts the student's channels to the
teacher's; it learns beside the student and is dropped after training.

Readings and deviations, all of them:
* stage="joint": the hint stands beside the other losses throughout, weight 100, at the middle stage; the regressor is a
  1x1 convolution, batch norm and ReLU. So HobbitLong/RepDistiller (train_student.py, models/util.py ConvReg).
* stage="initial": hints alone train the student first, then the lessons go on without them: the paper's two stages.
  viebboy/SRM (cifar100/code) does so with a plain 1x1 convolution at three taps, Adam, and 160 epochs before 200 of KD:
  FitNet(stage="initial", taps=(0, 1, -1), regressor="plain", weight=1.0, optimizer="adam"); that code's new Adam at
  each fall of the learning rate is not offered.
* Where maps differ in size the larger is average-pooled to the smaller. RepDistiller changes the regressor's kernel and
  stride instead; for maps of one size both are the same.
* "middle" is RepDistiller's hint_layer 2: the second stage of its resnets, MobileNetV2 and WRN, and block 2 of VGG,
  there as here the third of five. For WRN its map is the sum that ends the stage, before norm and ReLU
  (models/wrn.py), of either sign; ours is the ReLU that first reads that sum (kd/models/wrn.py), for student and
  teacher alike. No option gives the sums. The same holds for FT, which compares the last maps.
* The mean runs over every entry (torch's mse_loss), so the weight does not depend on the map's size. Taps are summed.
"""

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Predicate
from torch import nn

from kd.errors import ConfigError, NonNegative, Positive, Worded, checked
from kd.methods.base import Knowledge, Learner, Phase
from kd.methods.features import Taps, check_head, features_at, same_size
from kd.models import run_networks

Kernel = Annotated[int, Predicate((1, 3).__contains__), Worded("1 or 3")]  # a Literal would take True for 1


def hint_distance(lifted, target):
    """Mean squared difference over all entries of two maps with as many channels; >= 0, 0 when equal. Scalar."""
    return F.mse_loss(*same_size(lifted, target))


def build_regressor(channels, target_channels, kernel, kind):
    """A convolution channels -> target_channels that keeps the size; "normed" puts batch norm and ReLU behind it."""
    convolution = nn.Conv2d(channels, target_channels, kernel, padding=kernel // 2)
    if kind == "plain":
        return convolution
    return nn.Sequential(convolution, nn.BatchNorm2d(target_channels), nn.ReLU())


@checked("fitnet")
class FitNet(Knowledge):
    """weight: >= 0, of the hints. taps: "middle", "last", "all", or stage numbers. kernel: 1 or 3, the regressor's.

    regressor: "normed" (batch norm and ReLU behind the convolution) or "plain". stage: "joint" or "initial".
    For stage="initial" only: warm_up, the hint stage as a share > 0 of the lessons' epochs; within_budget takes it out
    of the run's; optimizer "recipe" (the run's own) or "adam" (rate 1e-3, falling tenfold at 30/160 and 130/160, weight
    decay 1e-4);
    probe: afterwards only student.head learns.
    """

    def __init__(
        self,
        weight: NonNegative = 100.0,  # RepDistiller scripts/run_cifar_distill.sh: -b 100
        taps: Taps = "middle",  # RepDistiller hint_layer 2: the second of three stages
        kernel: Kernel = 1,  # RepDistiller ConvReg at equal sizes, and viebboy/SRM
        regressor: Literal["normed", "plain"] = "normed",  # RepDistiller ConvReg; viebboy/SRM is plain
        stage: Literal["joint", "initial"] = "joint",  # RepDistiller; the paper and viebboy/SRM: initial
        warm_up: Positive = 0.8,  # viebboy/SRM: 160 hint epochs before 200
        within_budget: bool = False,  # viebboy/SRM: the hint epochs come on top
        optimizer: Literal["recipe", "adam"] = "recipe",  # viebboy/SRM: adam
        probe: bool = False,  # viebboy/SRM, the linear-probe experiment
    ):
        super().__init__()
        if probe and stage == "joint":
            raise ConfigError("fitnet.probe: only the head learns after a hint stage; give stage: initial as well")
        self.weight, self.taps, self.kernel, self.kind, self.stage = weight, taps, kernel, regressor, stage
        self.share, self.within_budget, self.optimizer, self.probe = warm_up, within_budget, optimizer, probe
        self.regressors = nn.ModuleList()

    @property
    def teaches(self):
        return self.stage == "joint"

    def build(self, student, teacher, student_example, teacher_example):
        if self.probe:
            check_head(student, "fitnet.probe")
        pairs = features_at(self.taps, teacher_example.features, student_example.features)
        self.regressors = nn.ModuleList(
            build_regressor(s.shape[1], t.shape[1], self.kernel, self.kind) for t, s in pairs
        )

    def warm_up(self, epochs):
        if self.stage == "joint":
            return 0, 0
        lessons = epochs / (1 + self.share) if self.within_budget else epochs
        spent = max(1, round(self.share * lessons))
        return spent, spent if self.within_budget else 0

    def hints(self, student, teacher):
        """The weighted sum over taps, from both networks' Outputs."""
        pairs = features_at(self.taps, teacher.features, student.features)
        losses = [hint_distance(r(s), t) for r, (t, s) in zip(self.regressors, pairs, strict=True)]
        return self.weight * sum(losses)

    def prepare(self, student, teacher, data, recipe, lesson):
        if self.stage == "joint" or lesson > 0:
            return
        recipe = recipe.replace(epochs=self.warm_up(recipe.epochs)[0])
        if self.optimizer == "adam":
            recipe = recipe.replace(optimizer="adam", learning_rate=1e-3, weight_decay=1e-4, schedule="step")
            recipe = recipe.replace(milestones=(30 / 160, 130 / 160), gamma=0.1, cycles=1)

        def loss(batch):
            outputs = [run_networks(network, batch.images, recipe.precision) for network in (student, teacher)]
            return {"hints": self.hints(*outputs)}

        yield Phase("hints", [Learner([student, self.regressors], loss)], recipe, student_epochs=True)

    def loss(self, student, teacher, batch):
        return {"hints": self.hints(student, teacher)} if self.stage == "joint" else {}

    def trained(self):
        return [self.regressors] if self.stage == "joint" else []

    def student_parameters(self, student):
        return list(student.head.parameters()) if self.probe else super().student_parameters(student)
