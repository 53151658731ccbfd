"""VGG for small images: five blocks of 3x3 convolutions with batch norm, no hidden linear layer."""

import torch.nn.functional as F
from torch import nn

from kd.models.base import Staged, initialise, layer

BLOCKS = {  # depth: convolution widths of each block (Simonyan and Zisserman 2015; vgg8 from RepDistiller)
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class LastPool(nn.Module):
    """2x2 max pooling of maps 8 or more high, which block 4 gives for images 64 or more high."""

    def forward(self, x):
        return F.max_pool2d(x, 2) if x.shape[2] >= 8 else x


class VGG(Staged):
    """`blocks`: a tuple of convolution widths for each of the five blocks.

    2x2 max pooling opens blocks 2 to 4, and block 5 only for images 64 or more high: 32x32 images end 4x4.
    Features: 5, after each block's last ReLU and so before the next pooling (32, 16, 8, 4 and 4 wide). The
    head reads the mean of the last one. Source: HobbitLong/RepDistiller models/vgg.py.
    """

    def __init__(self, blocks, classes, channels=3):
        stages = []
        for index, widths in enumerate(blocks):
            layers = [] if index == 0 else [LastPool() if index == 4 else nn.MaxPool2d(2)]
            for width in widths:
                layers += layer(channels, width, bias=True)
                channels = width
            stages.append(nn.Sequential(*layers))
        super().__init__(nn.Identity(), stages, nn.Identity(), nn.Linear(channels, classes))
        initialise(self, linear_std=0.01)
