"""KR: knowledge representing (Liu, Wen, Gao, Tao, Chen, Osa, Kato, CVPR workshops 2019, arXiv 1911.05329). OUR READING.

The paper's formulas are not public, and no code of its authors is. Known are the abstract and a survey's line (Gou et
al., arXiv 2006.05525, Table 1): the teacher's "parameters distribution" of multi-layer groups, aggregated to a more
abstract level, is matched by cross-entropy, with a sparse recoding that makes the student learn with penalised
gradients. One reading of that:

    z = map(mean over positions of the feature maps)        one code an image and group (a stage of the network)
    q = softmax(z_teacher / T), p = softmax(z_student / T)  over the coordinates kept: the teacher's strongest
    L = weight * sum over groups of T^2 * mean over images of -sum_kept q log p

dL/dz_student = weight T (p - q) / N on kept coordinates and exactly 0 on the others: penalised gradients. The least
value of -sum q log p is the entropy of the recoded q, reached when the student's code equals the teacher's.

Readings; the first of each list is the default, and none is the paper's text:
  statistic    activations: an image's mean activation of each channel.
               weights: literal parameters, the sizes of the norms' scales, sorted and averaged over the layers of a
               group; no image enters.
  aggregation  group: as above, one code a group.
               cells: averaged over each of cells x cells equal cells of the map (adaptive average pooling, where a side
               is no multiple of the number), a code a cell; cells = 1 is group.
               none: every position keeps a code of its own (weights: the last norm of the group only).
               gram: the rows of the channels' Gram matrix. KR is compared on FSP's benchmark, which used such matrices.
  mapping      how two channel counts meet.
               learned: a 1x1 convolution takes the student's channels to the teacher's, so that a coordinate is one
               teacher channel and recoding selects among these. It is dropped after training.
               pooled: neighbouring channels are averaged, down to the smaller count. No parameters, but the teacher's
               neighbours have nothing in common, so their mean is a weaker coordinate.
               sorted: the same after sorting by size: only the shape of the distribution counts. Weights are always
               sorted: a learned map of a vector that no image enters could fit anything without the student.
  recoding     top-k: keep the share `keep` of the coordinates, the largest.
               threshold: keep the fewest coordinates that hold the share `keep` of the probability.
               mask gradient: cross-entropy of all coordinates, but only the top k pass its gradient. Beware: this does
               not sum to zero over coordinates as a softmax's gradient does, so codes can grow without limit.
               l1: all coordinates, plus `penalty` times the mean size of the student's code.
               none: all coordinates.

Why cells: group was chosen on digits, whose last maps are 2x2. On CIFAR's photographs (resnet20 -> resnet8, 8 epochs,
one seed) averaging over a whole map left codes with 96 to 98 % of the largest entropy, nearly uniform, so that p - q
and with it the gradient was small: 61.9 % on test, where the student alone had 59.8. A code at every position had
68.8, but then nothing is aggregated. Cells keep the paper's aggregation and average over less.

The factor T^2 is ours, as in plain KD. With aggregation none, maps of different sizes are average-pooled to the
smaller; so they are with cells, and a map smaller than the grid keeps its own size. With statistic weights and several
teachers at once, the scales are those of the last one.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from kd.errors import ConfigError, NonNegative, Positive, PositiveInt, Share, checked
from kd.methods.base import Knowledge
from kd.methods.features import Taps, features_at
from kd.models import Supernet, Tapped
from kd.models.supernet import NormPerWidth


def fewer(values, count, order):
    """(..., C) -> (..., count): means of neighbouring coordinates; with order="sorted" after sorting, largest first."""
    if order == "sorted":
        values = values.sort(dim=-1, descending=True).values
    if values.shape[-1] == count:
        return values
    return F.adaptive_avg_pool1d(values.reshape(1, -1, values.shape[-1]), count).reshape(*values.shape[:-1], count)


def code(features, aggregation):
    """Codes of feature maps (N, C, H, W), one a row: group (N, C), none and cells (N H W, C), gram (N C, C).

    For cells the maps are pooled already: a position is a cell. A gram entry is the mean over positions of the product
    of two channels.
    """
    if aggregation == "group":
        return features.mean((2, 3))
    if aggregation in ("none", "cells"):
        return features.permute(0, 2, 3, 1).flatten(0, 2)
    flat = features.flatten(2)
    return (flat @ flat.transpose(1, 2) / flat.shape[2]).flatten(0, 1)


def strongest(teacher_code, keep, recoding="top-k", temperature=1.0):
    """The coordinates that carry the recoded code: a bool tensor like teacher_code (M, G).

    keep in (0, 1]: top-k and mask gradient keep the ceil(keep G) largest of each row, threshold the fewest whose
    softmax sums to `keep` or more; l1 and none keep all. Two are kept at least: a distribution over one says nothing.
    """
    if keep == 1 or recoding in ("l1", "none"):
        return torch.ones_like(teacher_code, dtype=torch.bool)
    if recoding == "threshold":
        probability, order = torch.softmax(teacher_code / temperature, dim=1).sort(dim=1, descending=True, stable=True)
        kept = probability.cumsum(1) - probability < keep  # a coordinate is needed while those before it fall short
        kept[:, :2].fill_(True)
        return torch.zeros_like(kept).scatter(1, order, kept)
    size = teacher_code.shape[1]
    chosen = teacher_code.topk(min(size, max(2, math.ceil(keep * size))), dim=1, sorted=False).indices
    return torch.zeros_like(teacher_code, dtype=torch.bool).scatter(1, chosen, True)


def recoded_cross_entropy(student_code, teacher_code, temperature=1.0, keep=0.5, recoding="top-k", penalty=1e-3):
    """T^2 times the mean over rows of -sum q log p, in nats, with the sparse recoding; see the head of this file.

    student_code, teacher_code: (M, G). Returns a scalar >= 0. penalty is used by recoding="l1" alone.
    """
    kept, teacher_code = strongest(teacher_code, keep, recoding, temperature), teacher_code.detach()
    student_logits, teacher_logits = student_code / temperature, teacher_code / temperature
    if recoding == "mask gradient":
        student_logits = torch.where(kept, student_logits, student_logits.detach())
        kept = torch.ones_like(kept)
    q = torch.softmax(teacher_logits.masked_fill(~kept, -math.inf), dim=1)
    log_p = F.log_softmax(student_logits.masked_fill(~kept, -math.inf), dim=1)
    # 0 log 0 = 0: a coordinate that is not kept has q = 0 and log p = -inf
    loss = -(temperature**2) * (q * log_p.masked_fill(~kept, 0.0)).sum(1).mean()
    return loss + penalty * student_code.abs().mean() if recoding == "l1" else loss


def norm_scales(network):
    """The sizes |scale| of the norms in each group: a list of (C,) tensors a group, still attached to the graph.

    Groups are a network's stages, or a Tapped network's tapped layers; of a Supernet's norms the active width's count.
    Raises ConfigError where there are none.
    """
    if isinstance(network, Tapped):
        groups = [network.module.get_submodule(tap.layer) for tap in network.taps]
    else:
        inner = network.network if isinstance(network, Supernet) else network
        groups = getattr(inner, "stages", None)
        if groups is None:
            name = type(network).__name__
            raise ConfigError(f"kr.statistic weights: {name} has no stages; wrap it in kd.Tapped or take activations")
    found = []
    for number, group in enumerate(groups):
        norms, inside = [], set()
        for module in group.modules():
            if isinstance(module, NormPerWidth):
                inside |= {id(norm) for norm in module}
                norms.append(module.active_parameters()[0])
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.affine and id(module) not in inside:
                norms.append(module.weight)
        if not norms:
            raise ConfigError(f"kr.statistic weights: stage {number} has no norm with a scale; take activations")
        found.append([norm.abs() for norm in norms])
    return found


@checked("kr")
class KR(Knowledge):
    """Knowledge representing, our reading. `KR() + KD()` adds posterior to prior knowledge, as the abstract suggests.

    weight: > 0, of this loss beside the labels' 1. temperature: T > 0. keep: in (0, 1], see recoding. cells: along a
    map's height and along its width, used by aggregation cells alone. penalty: >= 0, used by recoding l1 alone. taps:
    "last", "middle", "all", stage numbers, or None. The choices are explained above.
    """

    def __init__(
        self,
        weight: Positive = 3.0,  # not public; ours: of 1, 3, 10 the best on digits' validation images
        aggregation: Literal["group", "cells", "none", "gram"] = "group",  # the survey's "multi-layer group"
        statistic: Literal["activations", "weights"] = "activations",  # fits distribution and cross-entropy best
        keep: Share = 0.5,  # not public; ours: of 0.25, 0.5 the best there; tables/kr_ablation.yaml tries three
        temperature: Positive = 1.0,  # not public; a plain softmax
        # the simplest that gives penalised gradients to the letter
        recoding: Literal["top-k", "threshold", "mask gradient", "l1", "none"] = "top-k",
        mapping: Literal["learned", "pooled", "sorted"] | None = None,  # learned for activations, sorted for weights
        penalty: NonNegative = 1e-3,  # not public; ours
        taps: Taps | None = None,  # as many of the deepest stages as both networks have
        cells: PositiveInt = 2,  # ours: the coarsest grid that is not the whole map
    ):
        super().__init__()
        if mapping is None:
            mapping = "learned" if statistic == "activations" else "sorted"
        self.aggregation, self.statistic, self.recoding, self.mapping = aggregation, statistic, recoding, mapping
        if statistic == "weights" and aggregation in ("gram", "cells"):
            remedy = "take statistic activations, or none or group"
            raise ConfigError(f"kr.aggregation: {aggregation} needs feature maps; {remedy}")
        if statistic == "weights" and mapping != "sorted":
            raise ConfigError(f"kr.mapping: {mapping} needs feature maps; with statistic weights take sorted")
        if aggregation == "gram" and mapping == "sorted":
            raise ConfigError("kr.mapping: sorted loses the channels' order, and gram needs it; take learned or pooled")
        self.weight, self.keep, self.temperature, self.penalty, self.taps = weight, keep, temperature, penalty, taps
        self.cells = cells
        self.regressors, self.networks = nn.ModuleList(), ()

    def build(self, student, teacher, student_example, teacher_example):
        pairs = self.pairs(student_example, teacher_example)
        least = [min(t.shape[1], s.shape[1]) if self.mapping != "learned" else t.shape[1] for t, s in pairs]
        if min(least) < 2:
            raise ConfigError("kr.taps: a stage leaves a single coordinate, no distribution; take other stages")
        self.networks = (student, teacher)  # in a tuple, so that they do not become submodules
        if self.statistic == "activations" and self.mapping == "learned":
            self.regressors = nn.ModuleList(nn.Conv2d(s.shape[1], t.shape[1], 1) for t, s in pairs)

    def prepare(self, student, teacher, data, recipe, lesson):
        self.networks = (student, teacher)  # again, as build is not called for a later teacher with the same shapes
        return iter(())

    def pairs(self, student, teacher):
        return self.chosen(teacher.features, student.features)

    def chosen(self, theirs, mine):
        """[(teacher's, student's), ...] of the taps; without any of as many of the deepest stages as both have."""
        return features_at(self.taps or range(-min(len(theirs), len(mine)), 0), theirs, mine)

    def codes(self, student, teacher):
        """[(student code, teacher code)] of each group, both (M, G): what the cross-entropy compares."""
        if self.statistic == "weights":
            return self.weight_codes(student, teacher)
        found = []
        for place, (theirs, mine) in enumerate(self.pairs(student, teacher)):
            if self.aggregation == "group":  # averaging commutes with the learned map, and makes it cheap
                mine, theirs = (features.mean((2, 3), keepdim=True) for features in (mine, theirs))
            elif self.aggregation in ("none", "cells"):
                most = self.cells if self.aggregation == "cells" else math.inf
                size = tuple(min(a, b, most) for a, b in zip(mine.shape[2:], theirs.shape[2:], strict=True))
                mine, theirs = (F.adaptive_avg_pool2d(features, size) for features in (mine, theirs))
            if self.mapping == "learned":
                mine = self.regressors[place](mine)
            else:
                count = min(mine.shape[1], theirs.shape[1])
                mine, theirs = (fewer(f.movedim(1, -1), count, self.mapping).movedim(-1, 1) for f in (mine, theirs))
            found.append((code(mine, self.aggregation), code(theirs, self.aggregation)))
        return found

    def weight_codes(self, student, teacher):
        mine, theirs = (norm_scales(network) for network in self.networks)
        found = []
        for pair in self.chosen(theirs, mine):
            chosen = [scales if self.aggregation == "group" else scales[-1:] for scales in pair]
            size = min(len(scale) for scales in chosen for scale in scales)
            codes = [torch.stack([fewer(s, size, "sorted") for s in scales]).mean(0)[None] for scales in chosen]
            found.append((codes[1], codes[0]))
        return found

    def loss(self, student, teacher, batch):
        settings = (self.temperature, self.keep, self.recoding, self.penalty)
        total = sum(recoded_cross_entropy(mine, theirs, *settings) for mine, theirs in self.codes(student, teacher))
        return {"representation": self.weight * total}

    def trained(self):
        return [self.regressors] if len(self.regressors) else []

    @torch.no_grad()
    def measure(self, student, teacher, data):
        """kr_gap: nats by which each group's cross-entropy exceeds its least value, on the first 500 train images with
        both networks in eval mode; kr_kept: the share of the coordinates that recoding keeps there."""
        images = next(iter(data.chunks("train", 500))).images
        gaps, kept = [], []
        for mine, theirs in self.codes(student(images), teacher(images)):
            settings = (self.temperature, self.keep, self.recoding, 0.0)
            gap = recoded_cross_entropy(mine, theirs, *settings) - recoded_cross_entropy(theirs, theirs, *settings)
            gaps.append(float(gap) / self.temperature**2)
            kept.append(float(strongest(theirs, self.keep, self.recoding, self.temperature).float().mean()))
        return {"kr_gap": gaps, "kr_kept": kept}
