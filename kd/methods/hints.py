"""FitNet: the teacher's feature maps as hints (Romero et al., ICLR 2015, arXiv 1412.6550).

    L_hint = weight * sum_taps mean( (r(f_s) - f_t)^2 )

f_s, f_t: feature maps of student and teacher at the same stage. r: a regressor that lifts the student's channels to the
teacher's; it learns beside the student and is thrown away afterwards.

Readings and deviations, all of them:
* stage="joint": the hint stands beside the other losses throughout, weight 100, at the middle stage; the regressor is a
  1x1 convolution, batch norm and ReLU. So HobbitLong/RepDistiller (train_student.py, models/util.py ConvReg).
* stage="initial": hints alone train the student first, then the lessons go on without them: the paper's two stages.
  viebboy/SRM (cifar100/code) does so with a plain 1x1 convolution at three taps, Adam, and 160 epochs before 200 of KD:
  FitNet(stage="initial", taps=(0, 1, -1), regressor="plain", weight=1.0, optimizer="adam"); that code's new Adam at each fall of
  the learning rate is not offered.
* Where maps differ in size the larger is average-pooled to the smaller. RepDistiller changes the regressor's kernel and
  stride instead; for maps of one size both are the same.
* The mean runs over every entry (torch's mse_loss), so the weight does not depend on the map's size. Taps are summed.
"""

import torch.nn.functional as F
from torch import nn

from kd.errors import Problem, nearest
from kd.methods import Knowledge, Learner, Phase, matched
from kd.models import run_networks

PLACES = ("last", "middle", "all")


def features_at(taps, teacher_features, student_features):
    """Pairs (teacher map, student map) at "last", "middle", "all", or a list of stage numbers.

    "middle" is stage (n - 1) // 2 of each network's own n stages, "last" its own last. "all" needs as many stages in both, and
    numbers must exist in both; else Problem.
    """
    if not teacher_features or not student_features:
        who = "student" if teacher_features else "teacher"
        raise Problem(f"the {who} gives no feature maps; name layers to take them from: kd.Tapped(network, layers)")
    if taps == "last":
        return [(teacher_features[-1], student_features[-1])]
    if taps == "middle":
        return [tuple(features[(len(features) - 1) // 2] for features in (teacher_features, student_features))]
    if taps != "all":
        return matched(teacher_features, student_features, taps)
    if len(teacher_features) != len(student_features):
        stages = f"{len(teacher_features)} and {len(student_features)}"
        raise Problem(f"taps: teacher and student have {stages} stages; give numbers, such as taps: [0, -1]")
    return list(zip(teacher_features, student_features, strict=True))


def check_taps(taps, name):
    """Problem unless taps is "last", "middle", "all" or a list of whole numbers."""
    words = isinstance(taps, str) and taps in PLACES
    numbers = isinstance(taps, (list, tuple)) and taps and all(type(tap) is int for tap in taps)
    if not words and not numbers:
        hint = nearest(taps, PLACES) if isinstance(taps, str) else ""
        raise Problem(f"{name}.taps: {taps!r} must be last, middle, all, or a list of stage numbers{hint}")


def check_head(student, name):
    """Problem unless the student has a `.head`, which alone learns in a linear probe."""
    if not hasattr(student, "head"):
        raise Problem(f"{name}: {type(student).__name__} has no .head to train; give it one, or wrap it in kd.Tapped")


def same_size(first, second):
    """Both maps (N, C, H, W), average-pooled to the smaller height and the smaller width of the two."""
    size = tuple(min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    return tuple(m if m.shape[2:] == size else F.adaptive_avg_pool2d(m, size) for m in (first, second))


def hint_distance(lifted, target):
    """Mean squared difference over all entries of two maps with as many channels; >= 0, 0 when equal. Scalar."""
    return F.mse_loss(*same_size(lifted, target))


def build_regressor(channels, target_channels, kernel, kind):
    """A convolution channels -> target_channels that keeps the size; "normed" puts batch norm and ReLU behind it."""
    convolution = nn.Conv2d(channels, target_channels, kernel, padding=kernel // 2)
    if kind == "plain":
        return convolution
    return nn.Sequential(convolution, nn.BatchNorm2d(target_channels), nn.ReLU())


class FitNet(Knowledge):
    """weight: >= 0, of the hints. taps: "middle", "last", "all", or stage numbers. kernel: 1 or 3, the regressor's.

    regressor: "normed" (batch norm and ReLU behind the convolution) or "plain". stage: "joint" or "initial".
    For stage="initial" only: warm_up, the hint stage as a share > 0 of the lessons' epochs; within_budget takes it out of the run's;
    optimizer "recipe" (the run's own) or "adam" (rate 1e-3, falling tenfold at 30/160 and 130/160, weight decay 1e-4);
    probe: afterwards only student.head learns.
    """

    def __init__(
        self,
        weight=100.0,  # RepDistiller scripts/run_cifar_distill.sh: -b 100
        taps="middle",  # RepDistiller hint_layer 2: the second of three stages
        kernel=1,  # RepDistiller ConvReg at equal sizes, and viebboy/SRM
        regressor="normed",  # RepDistiller ConvReg; viebboy/SRM is plain
        stage="joint",  # RepDistiller; the paper and viebboy/SRM: initial
        warm_up=0.8,  # viebboy/SRM: 160 hint epochs before 200
        within_budget=False,  # viebboy/SRM: the hint epochs come on top
        optimizer="recipe",  # viebboy/SRM: adam
        probe=False,  # viebboy/SRM, the linear-probe experiment
    ):
        super().__init__()
        check_taps(taps, "fitnet")
        if weight < 0:
            raise Problem(f"fitnet.weight: {weight} must not be negative")
        if kernel not in (1, 3):
            raise Problem(f"fitnet.kernel: {kernel} must be 1 or 3")
        choices = {"regressor": ("normed", "plain"), "stage": ("joint", "initial"), "optimizer": ("recipe", "adam")}
        for name, value in (("regressor", regressor), ("stage", stage), ("optimizer", optimizer)):
            if value not in choices[name]:
                raise Problem(
                    f"fitnet.{name}: {value!r} must be {' or '.join(choices[name])}{nearest(value, choices[name])}"
                )
        if warm_up <= 0:
            raise Problem(f"fitnet.warm_up: {warm_up} must be a share of the epochs above 0")
        if probe and stage == "joint":
            raise Problem("fitnet.probe: only the head learns after a hint stage; give stage: initial as well")
        self.weight, self.taps, self.kernel, self.kind, self.stage = weight, taps, kernel, regressor, stage
        self.share, self.within_budget, self.optimizer, self.probe = warm_up, within_budget, optimizer, probe
        self.regressors = nn.ModuleList()

    @property
    def teaches(self):
        return self.stage == "joint"

    def start(self, student, teacher, student_example, teacher_example):
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
        recipe = recipe.but(epochs=self.warm_up(recipe.epochs)[0])
        if self.optimizer == "adam":
            recipe = recipe.but(optimizer="adam", learning_rate=1e-3, weight_decay=1e-4, schedule="step")
            recipe = recipe.but(milestones=(30 / 160, 130 / 160), gamma=0.1, cycles=1)

        def loss(images, labels):
            outputs = [run_networks(network, images, recipe.precision) for network in (student, teacher)]
            return {"hints": self.hints(*outputs)}

        yield Phase("hints", [Learner([student, self.regressors], loss)], recipe, student_epochs=True)

    def loss(self, student, teacher, labels):
        return {"hints": self.hints(student, teacher)} if self.stage == "joint" else {}

    def trained(self):
        return [self.regressors] if self.stage == "joint" else []

    def student_parameters(self, student):
        return list(student.head.parameters()) if self.probe else super().student_parameters(student)
