"""A plain convolutional network for tiny images such as 8x8 digits; ours, not a paper's."""

from torch import nn

from kd.errors import ConfigError
from kd.models.base import Staged, initialise, layer


class CNN(Staged):
    """Three stages of depth/3 layers (3x3 convolution without bias, norm, ReLU), widths w, 2w, 4w.

    Stages 2 and 3 open with stride 2. Features: 3, after the last ReLU of each stage; the head reads the mean
    of the last. Raises ConfigError for a depth that is not a positive multiple of 3 or a width under 1.
    """

    def __init__(self, depth, width, classes, channels=3):
        if depth < 3 or depth % 3 or width < 1:
            raise ConfigError(f"depth must be 3, 6, 9, ..., not {depth}, and width at least 1, not {width}")
        stages = []
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers = layer(channels, outputs, 3, stride)
            for _ in range(depth // 3 - 1):
                layers += layer(outputs, outputs)
            stages.append(nn.Sequential(*layers))
            channels = outputs
        super().__init__(nn.Identity(), stages, nn.Identity(), nn.Linear(channels, classes))
        initialise(self)
