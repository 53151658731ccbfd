"""FT: factor transfer (Kim, Park, Kwak, NeurIPS 2018, arXiv 1802.04977).

    first    min over (E_t, R)   mean | R(E_t(f_t)) - f_t |                  an auto-encoder on the frozen teacher's map
    then     L_FT = weight * mean | E_s(f_s) / ||E_s(f_s)|| - E_t(f_t) / ||E_t(f_t)|| |

f_t, f_s: last feature maps. E_t(f_t) is the teacher's *factor*, a paraphrase of its map; E_s, the student's translator,
learns beside the student. Norms are L2, of an image's flattened factor; the mean runs over all images and entries.

Readings and deviations, all of them:
* Coders, their initialisation, mean normalisation, L1 reconstruction, weight 500, half of the teacher's channels, 30 of
  160 epochs for the auto-encoder at a constant learning rate: the FT baseline in IE-KD's repository
  (aliyun/Revisiting-Knowledge- Distillation-..., model/auto_encoder.py, loss/factor_transfer.py,
  loss/reconstruction.py, processors/FT.py, config/ft).
* collapse=True is HobbitLong/RepDistiller's distance (distiller_zoo/FT.py): the mean over channels of the squared
  factor, flattened and normalised, as in attention transfer; its weight is 200 (scripts/run_cifar_distill.sh). Its
  paraphraser (biases, no batch norm, transposed convolutions, mean squared reconstruction) is not offered.
* The mean absolute difference of normalised factors of D entries shrinks as 1 / sqrt(D), so a weight suits one D. The
  authors' is 2048 (32 channels, 8x8). rescale=True multiplies the term by sqrt(D / 2048), which keeps their balance for
  other sizes (1/4 for 32 channels, 2x2), and changes nothing at theirs. With collapse, D counts positions and the
  reference is 64. Default off.
* Where maps differ in size the larger *factor* is average-pooled to the smaller, so the teacher's auto-encoder always
  works on whole maps.
* Under a curriculum the auto-encoder trains again before every lesson, on the new teacher's maps, from where it stood.
* Translator and student take their steps from one optimizer, as in the authors' code. The auto-encoder's epochs do
  not count as the student's.
"""

import torch
import torch.nn.functional as F
from torch import nn

from kd import ranks
from kd.errors import NonNegative, Positive, checked
from kd.methods.attention import attention
from kd.methods.base import Knowledge, Learner, Phase, freeze
from kd.methods.features import same_size
from kd.models import run_networks


class Coder(nn.Sequential):
    """(N, inputs, H, W) -> (N, outputs, H, W): three 3x3 convolutions without bias, each with batch norm and leaky ReLU
    (0.1) behind it, and one more leaky ReLU in front. Source: model/auto_encoder.py of IE-KD's repository."""

    def __init__(self, inputs, outputs):
        layers = [nn.LeakyReLU(0.1)]
        for before, after in ((inputs, inputs), (inputs, outputs), (outputs, outputs)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]
            nn.init.normal_(layers[-3].weight, std=(2 / (9 * after)) ** 0.5)
        super().__init__(*layers)


class AutoEncoder(nn.Module):
    """channels -> factors -> channels; forward returns (factor, reconstruction). The encoder alone makes factors."""

    def __init__(self, channels, factors):
        super().__init__()
        self.encoder, self.decoder = Coder(channels, factors), Coder(factors, channels)

    def forward(self, feature):
        factor = self.encoder(feature)
        return factor, self.decoder(factor)


def normalised(feature):
    """(N, ...) -> (N, D): every image's entries flattened and divided by their L2 norm."""
    return F.normalize(feature.flatten(1), dim=1)


def factor_distance(first, second, power=1):
    """Mean absolute difference (power 1; 2: root of the mean square) of the normalised maps (N, C, H, W). Scalar >= 0.

    At most 2 / sqrt(D) for D = C * H * W; unrelated maps of zero mean come to about 1.13 / sqrt(D).
    """
    first, second = same_size(first, second)
    difference = normalised(first) - normalised(second)
    if power != 1:
        difference = ranks.whole(difference)  # a root of a mean is no mean over images
    return torch.linalg.vector_norm(difference, power) / difference.numel() ** (1 / power)


def balance(entries, reference=2048):
    """sqrt(entries / reference): adapts a weight from normalised maps of `reference` entries to maps of `entries`."""
    return (entries / reference) ** 0.5


def collapsed_distance(first, second):
    """RepDistiller's: mean absolute difference of the squares, averaged over channels and normalised. Scalar >= 0."""
    first, second = same_size(first, second)
    return (attention(first) - attention(second)).abs().mean()


def reconstruction_loss(auto_encoder, feature):
    """Mean absolute error of rebuilding the map (N, C, H, W), in its units, >= 0; no gradient goes into the map."""
    return F.l1_loss(auto_encoder(feature.detach())[1], feature.detach())


def count_factors(share, channels):
    """How many channels a factor has: the share of the teacher's channels, at least 1."""
    return max(1, round(share * channels))


def auto_encoder_phase(auto_encoders, maps_of, teacher, recipe, share):
    """The phase that trains the teacher's auto-encoders at a constant rate, for a share of the recipe's epochs, 1 or
    more.

    auto_encoders: nn.ModuleList, one a map; maps_of: (teacher's Output) -> the maps, in the same order.
    """

    def loss(batch):
        maps = maps_of(run_networks(teacher, batch.images, recipe.precision))
        losses = [reconstruction_loss(coder, m) for coder, m in zip(auto_encoders, maps, strict=True)]
        return {"reconstruction": sum(losses)}

    recipe = recipe.replace(epochs=max(1, round(share * recipe.epochs)), schedule="constant")
    return Phase("auto-encoder", [Learner([auto_encoders], loss)], recipe)


@checked("ft")
class FT(Knowledge):
    """weight: >= 0. factor_channels: share > 0 of the teacher's last channels. rescale: adapt the weight to the
    factor's size.

    auto_encoder_epochs: share > 0 of the run's epochs. collapse: average the factor's channels first, as RepDistiller.
    """

    def __init__(
        self,
        weight: NonNegative = 500.0,  # IE-KD's repository, config/ft; RepDistiller: 200, with collapse
        factor_channels: Positive = 0.5,  # config/ft: 64 -> 32
        auto_encoder_epochs: Positive = 0.1875,  # config/ft: 30 of 160
        collapse: bool = False,  # RepDistiller: True
        rescale: bool = False,  # the authors: no
    ):
        super().__init__()
        self.weight, self.factor_channels, self.share = weight, factor_channels, auto_encoder_epochs
        self.collapse, self.rescale = collapse, rescale

    def build(self, student, teacher, student_example, teacher_example):
        mine, theirs = student_example.features[-1].shape[1], teacher_example.features[-1].shape[1]
        factors = count_factors(self.factor_channels, theirs)
        self.auto_encoders = nn.ModuleList([AutoEncoder(theirs, factors)])
        self.translator = Coder(mine, factors)

    def prepare(self, student, teacher, data, recipe, lesson):
        self.auto_encoders.requires_grad_(True)
        yield auto_encoder_phase(self.auto_encoders, lambda output: output.features[-1:], teacher, recipe, self.share)
        freeze(self.auto_encoders)

    def loss(self, student, teacher, batch):
        factor = self.auto_encoders[0].encoder(teacher.features[-1])
        mine, factor = same_size(self.translator(student.features[-1]), factor)
        weight, distance = self.weight, collapsed_distance if self.collapse else factor_distance
        if self.rescale:
            weight *= balance(mine[0, 0].numel(), 64) if self.collapse else balance(mine[0].numel())
        return {"factors": weight * distance(mine, factor)}

    def trained(self):
        return [self.translator]
