"""ResNets for small images (He et al. 2016): three stages of basic blocks, or four of bottlenecks."""

import torch.nn.functional as F
from torch import nn

from kd.errors import ConfigError
from kd.models.base import Staged, initialise, layer


class Block(nn.Module):
    """y = relu(branch(x) + shortcut(x)).

    The branch is 3x3 (stride), 3x3; of a bottleneck 1x1, 3x3 (stride), 1x1 to 4 times the width; each with
    batch norm. The shortcut is x, or a 1x1 convolution with batch norm where the shape changes.
    """

    def __init__(self, inputs, width, stride, bottleneck=False):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = layer(inputs, width, 1) + layer(width, width, 3, stride) + layer(width, outputs, 1, activation=None)
        else:
            layers = layer(inputs, width, 3, stride) + layer(width, width, activation=None)
        self.branch = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*layer(inputs, outputs, 1, stride, activation=None))

    def forward(self, x):
        out = self.branch(x)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNet(Staged):
    """ResNet of depth 6n+2 with widths (stem, stage 1, stage 2, stage 3).

    Plain: 16-16-32-64; "x4": 32-64-128-256. Features: 3, after the final ReLU of each stage; for 32x32 images
    of the plain network 16x32x32, 32x16x16, 64x8x8. The head reads the mean of the last one.
    Raises ConfigError for a depth that is not 6n+2, n >= 1. Source: HobbitLong/RepDistiller models/resnet.py.
    """

    def __init__(self, depth, widths, classes, channels=3):
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            nearest = max(1, round((depth - 2) / 6)) * 6 + 2
            raise ConfigError(f"depth must be 6n+2 (8, 14, 20, ...), not {depth}; the nearest is {nearest}")
        stages = [
            nn.Sequential(Block(inputs, width, stride), *(Block(width, width, 1) for _ in range(blocks - 1)))
            for inputs, width, stride in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True)
        ]
        stem = nn.Sequential(*layer(channels, widths[0]))
        super().__init__(stem, stages, nn.Identity(), nn.Linear(widths[-1], classes))
        initialise(self)


class ResNet50(Staged):
    """Stages of 3, 4, 6, 3 bottlenecks, widths 64, 128, 256, 512, strides 1, 2, 2, 2; 3x3 stem, no pooling.

    Features: 4, after the final ReLU of each stage (for 32x32 images 32, 16, 8 and 4 wide).
    Source: HobbitLong/RepDistiller models/resnetv2.py.
    """

    def __init__(self, classes, channels=3):
        stages, inputs = [], 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            rest = (Block(4 * width, width, 1, bottleneck=True) for _ in range(blocks - 1))
            stages.append(nn.Sequential(Block(inputs, width, stride, bottleneck=True), *rest))
            inputs = 4 * width
        super().__init__(nn.Sequential(*layer(channels, 64)), stages, nn.Identity(), nn.Linear(inputs, classes))
        initialise(self)
