"""AT: attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928), activation-based.

    a(f) = vec( mean_channels |f|^p ) / || vec( mean_channels |f|^p ) ||_2
    L_AT = weight * sum_taps mean( (a(f_s) - a(f_t))^2 )

The maps say at which positions a network responds. Channels are averaged, so that their numbers may differ.

Readings and deviations, all of them:
* Mean over channels, mean over positions and images, sum over taps, weight 1000, p = 2: HobbitLong/RepDistiller
  (distiller_zoo/AT.py, scripts/run_cifar_distill.sh). |f|^p rather than RepDistiller's f^p: the same for an even p.
* Where maps differ in size, the larger *feature map* is average-pooled to the smaller before the power, as there.
* The mean of squares of a normalised map of H x W positions shrinks as 1 / (H W), so weight 1000 suits CIFAR's
  networks, whose last maps are 8x8. rescale=True multiplies the term by H W / 64 of the teacher's last map, which keeps
  that balance for other sizes (1/16 for 2x2 maps; 1, that is nothing, for 8x8). Default off, as RepDistiller.
* Taps are all stages; RepDistiller's (helper/loops.py, feat[1:-1]) are all but the first map and the pooled feature.
  For its resnets and MobileNetV2 the first map is the stem, which is no stage here either: the same maps. Two families
  differ:
  - VGG: there the first map is block 0's, so that its AT sums over blocks 1 to 4 and ours over five maps, the first of
    32x32 for images of that size. AT(taps=[1, 2, 3, 4]) is RepDistiller's.
  - WRN: there a map is the sum that ends a stage, before norm and ReLU (models/wrn.py); ours is the ReLU that first
    reads that sum (kd/models/wrn.py). As many maps, of the same sizes; no option gives the sums.
"""

import torch.nn.functional as F

from kd.errors import ConfigError, NonNegative, Positive, checked
from kd.methods.base import Knowledge
from kd.methods.features import Taps, features_at, same_size


def attention(feature, power=2.0):
    """(N, C, H, W) -> (N, H * W), each row of L2 norm 1 (or 0 for a blank map), entries >= 0."""
    return F.normalize(feature.abs().pow(power).mean(1).flatten(1), dim=1)


def attention_distance(student_feature, teacher_feature, power=2.0):
    """Mean squared difference of the two attention maps. Scalar in [0, 2 / (H * W)]; 0 when the maps are equal."""
    student, teacher = same_size(student_feature, teacher_feature)
    return (attention(student, power) - attention(teacher, power)).pow(2).mean()


def check_attention(name, pairs):
    """ConfigError when every pair of maps is compared at a single position, where a normalised map is constant."""
    if all(min(a, b) == 1 for first, second in pairs for a, b in zip(first.shape[2:], second.shape[2:], strict=True)):
        raise ConfigError(f"{name}: a map of one position has no attention to pass on; tap an earlier layer")


@checked("at")
class AT(Knowledge):
    """weight: >= 0, of the sum over taps. power: p > 0. taps: "all", "last", "middle", or stage numbers.

    rescale: adapt the weight, meant for 8x8 maps, to the size of the maps.
    """

    def __init__(
        self,
        weight: NonNegative = 1000.0,  # RepDistiller scripts/run_cifar_distill.sh: -b 1000
        power: Positive = 2.0,  # RepDistiller distiller_zoo/AT.py: p=2
        taps: Taps = "all",  # RepDistiller helper/loops.py: feat[1:-1]
        rescale: bool = False,  # RepDistiller: no
    ):
        super().__init__()
        self.weight, self.power, self.taps, self.rescale = weight, power, taps, rescale

    def build(self, student, teacher, student_example, teacher_example):
        check_attention("at", features_at(self.taps, teacher_example.features, student_example.features))

    def loss(self, student, teacher, batch):
        pairs = features_at(self.taps, teacher.features, student.features)
        weight = self.weight * (teacher.features[-1][0, 0].numel() / 64 if self.rescale else 1)
        return {"attention": weight * sum(attention_distance(s, t, self.power) for t, s in pairs)}
