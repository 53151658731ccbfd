"""DenseNet-121 for small images (Huang et al. 2017), the teacher of SRM."""

import torch
from torch import nn

from kd.models.base import Staged, initialise_with_noisy_biases


def norm_relu_conv(inputs, outputs, kernel):
    return [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2)]


class Dense(nn.Sequential):
    """norm-relu-1x1 (4 growth), norm-relu-3x3 (growth); the new features go in front of the old ones."""

    def __init__(self, inputs, growth):
        super().__init__(*norm_relu_conv(inputs, 4 * growth, 1), *norm_relu_conv(4 * growth, growth, 3))

    def forward(self, x):
        return torch.cat((super().forward(x), x), 1)


class DenseNet(Staged):
    """Dense blocks of 6, 12, 24, 16 layers, growth 32, 3x3 stem to 64 channels; all convolutions have a bias.

    A transition (norm-relu-1x1 to half the channels, 2x2 average pooling) closes the first three stages.
    Features: 4, after transitions 1, 2, 3 and after dense block 4, before the final norm and ReLU: for 32x32
    images 128x16x16, 256x8x8, 512x4x4, 1024x4x4. The official SRM code taps the first, second and last of
    them. Source: viebboy/SRM cifar100/code/DenseNet.py.
    """

    def __init__(self, classes, channels=3, blocks=(6, 12, 24, 16), growth=32):
        stem, stages, width = nn.Conv2d(channels, 2 * growth, 3, 1, 1), [], 2 * growth
        for index, layers in enumerate(blocks):
            stage = [Dense(width + growth * i, growth) for i in range(layers)]
            width += growth * layers
            if index < len(blocks) - 1:
                stage += [*norm_relu_conv(width, width // 2, 1), nn.AvgPool2d(2)]
                width //= 2
            stages.append(nn.Sequential(*stage))
        top = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        super().__init__(stem, stages, top, nn.Linear(width, classes))
        initialise_with_noisy_biases(self)
