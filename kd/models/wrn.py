"""Wide residual networks (Zagoruyko and Komodakis 2016): pre-activation basic blocks in three stages."""

import torch.nn.functional as F
from torch import nn

from kd.errors import ConfigError
from kd.models.base import Output, initialise


class Block(nn.Module):
    """a = relu(norm1(x)); y = conv2(relu(norm2(conv1(a)))) + x, or + conv1x1(a) where the width changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        """The sum (before any activation), and the activation of the input that the block read."""
        activated = F.relu(self.norm1(x), inplace=True)
        out = self.conv2(F.relu(self.norm2(self.conv1(activated)), inplace=True))
        out += x if self.shortcut is None else self.shortcut(activated)
        return out, activated


class WideResNet(nn.Module):
    """WRN of depth 6n+4, widths (stem, three stages): 16, 16k, 32k, 64k for wrn-depth-k; no dropout.

    Features: 3, each the ReLU that first reads a stage's sum: the one that opens the next stage, and the
    network's final one, whose mean the head reads. (RepDistiller taps the sums themselves, before norm and
    ReLU.) Raises ConfigError for a depth that is not 6n+4, n >= 1. Source: HobbitLong/RepDistiller models/wrn.py.
    """

    def __init__(self, depth, widths, classes, channels=3):
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            nearest = max(1, round((depth - 4) / 6)) * 6 + 4
            raise ConfigError(f"depth must be 6n+4 (10, 16, 22, ...), not {depth}; the nearest is {nearest}")
        self.conv = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.stages = nn.ModuleList(
            nn.ModuleList([Block(inputs, width, stride), *(Block(width, width, 1) for _ in range(blocks - 1))])
            for inputs, width, stride in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        initialise(self)
        nn.init.zeros_(self.head.bias)

    def forward(self, images):
        x = self.conv(images)
        features = []
        for stage in self.stages:
            x, opening = stage[0](x)
            features.append(opening)
            for block in stage[1:]:
                x, _ = block(x)
        features.append(F.relu(self.norm(x), inplace=True))
        return Output(self.head(features[-1].mean((2, 3))), tuple(features[1:]))
