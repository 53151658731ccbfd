"""IE-KD: inheritance and exploration (Huang et al., CVPR 2021, arXiv 2107.00181), and IE-DML, its mutual form.

The student's last map is split by channel. One part must look like the teacher's map, the other must not:

    first    min mean | R(E_t(f_t)) - f_t |                          an auto-encoder on the frozen teacher's map
    then     L = L_goal + inherit_weight * d(E_i(f_inherit), E_t(f_t)) - explore_weight * d(E_e(f_explore), E_t(f_t))
             d(a, b) = mean | a / ||a|| - b / ||b|| |

E_i and E_e, one encoder a part, learn beside the student. Norms are L2, of an image's flattened factor; the mean runs
over all images and entries. Source of the formulas:
aliyun/Revisiting-Knowledge-Distillation-an-Inheritance-and-Exploration-Framework (processors/IE_KD.py,
model/auto_encoder.py, loss/factor_transfer.py, loss/reconstruction.py).

Readings and deviations, all of them:
* In that repository's IE_KD.py the frozen network is called student and the split, trained one teacher; here names are
  the paper's.
* weights 50 and 50: best in the paper's Table 6b, known from a reading note only; the repository's config sets 1 and 1.
  d is a mean (the code), so it shrinks with the factor's size D as 1 / sqrt(D): for the authors' D = 2048, unrelated
  factors have d = 0.025, and 50 d = 1.2, about the size of the cross-entropy. For a smaller D the same weight pulls
  harder: rescale=True multiplies the terms by sqrt(D / 2048) (features: 4096, attention maps: 64; all three are the
  authors' 8x8 maps), which changes nothing at their sizes. Default off. Cosine and CKA do not depend on D.
* Half of the channels inherit: the first half ("natural", the default there) or a fixed random one ("random").
* distance "cosine": 1 - cos to inherit, |cos| to explore (their CosLoss). "cka": theirs has no sign and is the
  similarity itself; ours is 1 - CKA to inherit and CKA to explore. "l2" is their p = 2: the root of the mean square.
* carry="features" is our IE-FitNet: a 1x1 convolution lifts either part to the teacher's channels. Maps are normalised
  first, for FitNet's own distance has no upper bound and the exploring part would run away. carry="attention" is our
  IE-AT: the attention map of either part against that of the teacher's whole map ("l2" is the root of AT's own
  distance). The paper applies IE to such methods, its code does not show how.
* Where maps differ in size what is compared is average-pooled to the smaller size. The repository's pairs have one
  size.
* Not offered: the repository's RBF kernel for CKA, its DDT loss, other powers p, and weights that fall from epoch to
  epoch (its configs keep them constant). A reading note prints the reconstruction as squared L2; the code, and we, have
  L1.
* The unused decoders of the student's parts, which the repository builds and never trains, are left out.
* The auto-encoder trains again before each lesson of a curriculum, from where it stood, at the recipe's initial rate.
* IE-DML is in no public code. Our reading: DML, and either network is split; its first part inherits from the peer's
  factor, its other part explores away from it. There is no converged peer to train an auto-encoder on, so each
  network's own learns to rebuild its map in every step, without pulling at the map. split_networks="student" splits the
  student alone.
"""

import copy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import nn

from kd import ranks
from kd.errors import ConfigError, NonNegative, Positive, checked
from kd.methods.attention import check_attention
from kd.methods.base import Knowledge, freeze
from kd.methods.dml import DML
from kd.methods.factor import (
    AutoEncoder,
    Coder,
    auto_encoder_phase,
    balance,
    count_factors,
    factor_distance,
    reconstruction_loss,
)
from kd.methods.features import Taps, features_at, same_size
from kd.models import evaluate, feature_shapes

Part = Annotated[float, Interval(gt=0, lt=1)]
Split = Literal["natural", "random"]
Distance = Literal["l1", "l2", "cosine", "cka"]
Carry = Literal["factors", "attention", "features"]
AUTHORS_SIZE = {"factors": 32 * 8 * 8, "features": 64 * 8 * 8, "attention": 8 * 8}  # entries an image
COMPARED = 1000  # test images that measurements of similarity look at


def linear_cka(first, second):
    """Linear centred kernel alignment (Kornblith et al. 2019) of two representations (N, ...) of the same N images.

    ||X^T Y||^2 / (||X^T X|| ||Y^T Y||), Frobenius norms of the centred, flattened representations. Scalar in [0, 1]; 1
    when equal up to rotation and scale. Computed from the N x N Gram matrices, which are small however many features
    there are.
    """
    x, y = (ranks.whole(m.flatten(1)) for m in (first, second))
    x, y = (m - m.mean(0) for m in (x, y))
    x, y = x @ x.T, y @ y.T
    return (x * y).sum() / (x.norm() * y.norm()).clamp_min(torch.finfo(x.dtype).tiny)


def inherit_distance(mine, theirs, kind="l1"):
    """How far a part's representation lies from the teacher's, maps (N, C, H, W) with as many channels. Scalar >= 0.

    l1: mean absolute difference of the normalised maps; l2: the root of their mean squared difference; cosine: 1 - cos,
    mean over images, at most 2; cka: 1 - linear CKA, at most 1. 0 for equal maps.
    """
    mine, theirs = same_size(mine, theirs)
    if kind == "cka":
        return 1 - linear_cka(mine, theirs)
    if kind == "cosine":
        return 1 - F.cosine_similarity(mine.flatten(1), theirs.flatten(1)).mean()
    return factor_distance(mine, theirs, power=2 if kind == "l2" else 1)


def explore_loss(mine, theirs, kind="l1"):
    """What the exploring part minimises: minus the distance, |cos|, or CKA. Bounded below. Shapes as above."""
    if kind == "cosine":
        mine, theirs = same_size(mine, theirs)
        return F.cosine_similarity(mine.flatten(1), theirs.flatten(1)).abs().mean()
    if kind == "cka":
        return 1 - inherit_distance(mine, theirs, kind)
    return -inherit_distance(mine, theirs, kind)


def both_terms(parts, target, kind, carry, rescale):
    """(inherit distance, explore loss) of the (inheriting, exploring) representations, before their weights."""
    factor = 1.0
    if rescale and kind in ("l1", "l2"):
        factor = balance(same_size(parts[0], target)[0][0].numel(), AUTHORS_SIZE[carry])
    return factor * inherit_distance(parts[0], target, kind), factor * explore_loss(parts[1], target, kind)


def split_channels(channels, share, split):
    """(inheriting, exploring) channel numbers, int64; random ones follow the seed. ConfigError if one is empty."""
    count = round(share * channels)
    if not 0 < count < channels:
        raise ConfigError(f"iekd.share: {share} of {channels} channels leaves a part empty; choose one nearer 0.5")
    # its own generator, so that every lesson draws alike, however many weights were drawn before
    seeded = torch.Generator().manual_seed(torch.initial_seed())
    order = torch.randperm(channels, generator=seeded) if split == "random" else torch.arange(channels)
    return order[:count].sort().values, order[count:].sort().values


def attention_map(feature):
    """(N, C, H, W) -> (N, 1, H, W): mean over channels of the square. The distances normalise it."""
    return feature.pow(2).mean(1, keepdim=True)


class Halves(nn.Module):
    """The two parts of a map and what is compared of them. Buffers `inherit` and `explore` hold the channel numbers.

    forward: (N, channels, H, W) -> (inheriting, exploring) representations: factors (N, factors, H, W), features lifted
    to (N, target_channels, H, W), or attention maps (N, 1, H, W).
    """

    def __init__(self, channels, target_channels, factors, share, split, carry):
        super().__init__()
        inherit, explore = split_channels(channels, share, split)
        self.register_buffer("inherit", inherit)
        self.register_buffer("explore", explore)
        if carry == "factors":
            self.encoders = nn.ModuleList(Coder(len(part), factors) for part in (inherit, explore))
        elif carry == "features":
            self.encoders = nn.ModuleList(nn.Conv2d(len(part), target_channels, 1) for part in (inherit, explore))
        else:
            self.encoders = [attention_map, attention_map]

    def forward(self, feature):
        parts = feature[:, self.inherit], feature[:, self.explore]
        return tuple(encode(part) for encode, part in zip(self.encoders, parts, strict=True))


def represented(feature, auto_encoder, carry):
    """What the other network's map (N, C, H, W) is compared as: its factor, its attention map, or the map itself."""
    if carry == "factors":
        return auto_encoder.encoder(feature)
    return attention_map(feature) if carry == "attention" else feature


def silenced(network, channels):
    """A copy of the network that ignores these channels of its last feature map: their weights in the head are zero.

    Exact where the head reads the mean of that map, channel by channel; ConfigError for a channel the head lacks.
    """
    if int(channels.max()) >= network.head.in_features:
        raise ConfigError(
            f"channel {int(channels.max())}: the head reads {network.head.in_features}, not the last map's channels"
        )
    network = copy.deepcopy(network)
    with torch.no_grad():
        network.head.weight[:, channels] = 0
    return network


@checked("iekd")
class IEKD(Knowledge):
    """inherit_weight, explore_weight: >= 0. share: of the channels that inherit, in (0, 1). split, distance, carry:
    explained above.

    taps: "last", "middle", "all", or stage numbers; terms are summed over them. factor_channels: share > 0 of the
    teacher's channels. auto_encoder_epochs: share > 0 of the run's epochs (carry="factors" only). rescale: adapt the
    weights to the map's size.
    """

    def __init__(
        self,
        inherit_weight: NonNegative = 50.0,  # best in the paper's Table 6b (reading note); the repository's config: 1
        explore_weight: NonNegative = 50.0,  # as above
        share: Part = 0.5,  # processors/IE_KD.py; best in the paper's Table 5 (reading note)
        split: Split = "natural",  # the repository's default
        distance: Distance = "l1",  # loss/factor_transfer.py NormLoss; best in the paper's Table 6a (reading note)
        carry: Carry = "factors",  # the repository
        taps: Taps = "last",  # model/resnet.py: the last map before pooling
        factor_channels: Positive = 0.5,  # config/ie_kd.yaml: 64 -> 32
        auto_encoder_epochs: Positive = 0.1875,  # config/ie_kd.yaml: 30 of 160
        rescale: bool = False,  # the repository: no
    ):
        super().__init__()
        self.inherit_weight, self.explore_weight, self.share, self.split = inherit_weight, explore_weight, share, split
        self.distance, self.carry, self.taps, self.rescale = distance, carry, taps, rescale
        self.factor_channels, self.encoder_share = factor_channels, auto_encoder_epochs

    def build(self, student, teacher, student_example, teacher_example):
        pairs = features_at(self.taps, teacher_example.features, student_example.features)
        if self.carry == "attention":
            check_attention("iekd", pairs)
        shapes = [(s.shape[1], t.shape[1], count_factors(self.factor_channels, t.shape[1])) for t, s in pairs]
        self.halves = nn.ModuleList(Halves(*shape, self.share, self.split, self.carry) for shape in shapes)
        wanted = shapes if self.carry == "factors" else []
        self.auto_encoders = nn.ModuleList(AutoEncoder(theirs, factors) for _, theirs, factors in wanted)

    def teacher_maps(self, output):
        return [t for t, _ in features_at(self.taps, output.features, output.features)]

    def prepare(self, student, teacher, data, recipe, lesson):
        if self.carry == "factors":
            self.auto_encoders.requires_grad_(True)
            yield auto_encoder_phase(self.auto_encoders, self.teacher_maps, teacher, recipe, self.encoder_share)
            freeze(self.auto_encoders)

    def loss(self, student, teacher, batch):
        inherit = explore = 0.0
        for number, (t, s) in enumerate(features_at(self.taps, teacher.features, student.features)):
            target = represented(t, self.auto_encoders[number] if self.carry == "factors" else None, self.carry)
            like, unlike = both_terms(self.halves[number](s), target, self.distance, self.carry, self.rescale)
            inherit, explore = inherit + like, explore + unlike
        return {"inherit": self.inherit_weight * inherit, "explore": self.explore_weight * explore}

    def trained(self):
        return [self.halves]

    def measure(self, student, teacher, data):
        return compare_halves(self.halves[-1], student, teacher, data, self.taps)


@torch.no_grad()
def compare_halves(halves, student, other, data, taps="last"):
    """Measurements of the two parts of the student's (deepest tapped) map, on test images.

    cka_inherit, cka_explore: linear CKA with the other network's map, in [0, 1], on the first COMPARED images.
    without_inherit, without_explore: test accuracy in percent with that part silenced,
    only where the head reads that map's channels.
    """
    images = next(iter(data.chunks("test", COMPARED))).images
    output = student.eval()(images)
    theirs, mine = features_at(taps, other.eval()(images).features, output.features)[-1]
    found, head = {}, getattr(student, "head", None)
    reads_it = mine is output.features[-1] and isinstance(head, nn.Linear) and head.in_features == mine.shape[1]
    for name in ("inherit", "explore"):
        channels = getattr(halves, name)
        found[f"cka_{name}"] = float(linear_cka(mine[:, channels], theirs))
        if reads_it:
            found[f"without_{name}"] = evaluate(silenced(student, channels), data)
    return found


@checked("iedml")
class IEDML(DML):
    """DML's parameters (weight, update, peer), and IEKD's. split_networks: "both" or "student". weight=0: without DML's
    divergence.

    factor_channels: share > 0 of the channels of the narrower network's last map.
    """

    def __init__(
        self,
        weight: NonNegative = 1.0,  # as DML
        update: Literal["alternating", "simultaneous"] = "alternating",  # as DML
        peer: str | None = None,  # as DML
        inherit_weight: NonNegative = 50.0,  # as IEKD
        explore_weight: NonNegative = 50.0,  # as IEKD
        share: Part = 0.5,  # as IEKD
        split: Split = "natural",  # as IEKD
        distance: Distance = "l1",  # as IEKD
        carry: Carry = "factors",  # as IEKD
        factor_channels: Positive = 0.5,  # as IEKD
        rescale: bool = False,  # as IEKD
        split_networks: Literal["both", "student"] = "both",  # our reading
    ):
        super().__init__(weight, update, peer)
        self.inherit_weight, self.explore_weight, self.share, self.split = inherit_weight, explore_weight, share, split
        self.distance, self.carry, self.factor_channels = distance, carry, factor_channels
        self.rescale, self.split_networks = rescale, split_networks

    def build(self, student, teacher, student_example, teacher_example):
        if self.knows(student):
            return
        if self.carry == "attention":
            check_attention("iedml", [(student_example.features[-1],) * 2])
        super().build(student, teacher, student_example, teacher_example)
        mine = theirs = student_example.features[-1].shape[1]
        if self.peer_name:
            images = next(m.in_channels for m in self.peer.modules() if isinstance(m, nn.Conv2d))
            theirs = feature_shapes(self.peer, (images, 64, 64))[-1][0]  # channels do not depend on the images' size
        factors = count_factors(self.factor_channels, min(mine, theirs))
        both, rest = self.split_networks == "both", (factors, self.share, self.split, self.carry)
        # what learns beside each network: the encoders of its parts, and the auto-encoder by which the other sees it
        self.student_halves, self.peer_halves = (
            Halves(mine, theirs, *rest),
            Halves(theirs, mine, *rest) if both else None,
        )
        self.peer_coder = AutoEncoder(theirs, factors) if self.carry == "factors" else None
        self.student_coder = AutoEncoder(mine, factors) if self.carry == "factors" and both else None

    def mutual(self, mine, other, peer_learns):
        terms = super().mutual(mine, other, peer_learns)
        halves, coder, other_coder = self.student_halves, self.student_coder, self.peer_coder
        if peer_learns:
            halves, coder, other_coder = self.peer_halves, self.peer_coder, self.student_coder
        if halves is not None:
            with torch.no_grad():
                target = represented(other.features[-1], other_coder, self.carry)
            like, unlike = both_terms(halves(mine.features[-1]), target, self.distance, self.carry, self.rescale)
            terms |= {"inherit": self.inherit_weight * like, "explore": self.explore_weight * unlike}
        if coder is not None:
            terms["reconstruction"] = reconstruction_loss(coder, mine.features[-1])
        return terms

    def trained(self):
        return [module for module in (self.student_halves, self.student_coder) if module is not None]

    def peer_trained(self):
        return [module for module in (self.peer_halves, self.peer_coder) if module is not None]

    def measure(self, student, teacher, data):
        found = super().measure(student, teacher, data)
        return found | compare_halves(self.student_halves, student, self.peer, data)
