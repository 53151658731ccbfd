"""AllCNN (Springenberg et al. 2015) as SRM's student: four blocks of three convolutions with LeakyReLU."""

from functools import partial

from torch import nn

from kd.errors import ConfigError
from kd.models.base import Staged, initialise_with_noisy_biases, layer


class AllCNN(Staged):
    """Widths int(96s), int(192s), int(256s), int(384s); s = 0.66 on CIFAR-100: 63, 126, 168, 253.

    Each convolution (3x3, the very last 1x1) has a bias, norm and LeakyReLU(0.1); the third of blocks 1 to 3
    has stride 2. Features: 4, after each block's last LeakyReLU (for 32x32 images 16, 8, 4 and 4 wide). The
    official SRM code taps the first, second and last. Raises ConfigError for a scale under 1/96. Source:
    viebboy/SRM cifar100/code/AllCNN.py.
    """

    def __init__(self, scale, classes, channels=3):
        if int(96 * scale) < 1:
            raise ConfigError(f"the scale must be at least 0.0105 (the paper's is 0.66), not {scale}")
        stages, leaky = [], partial(nn.LeakyReLU, 0.1)
        for index, full in enumerate((96, 192, 256, 384)):
            width, layers = int(full * scale), []
            for kernel, stride in ((3, 1), (3, 1), (3, 2) if index < 3 else (1, 1)):
                layers += layer(channels, width, kernel, stride, bias=True, activation=leaky)
                channels = width
            stages.append(nn.Sequential(*layers))
        super().__init__(nn.Identity(), stages, nn.Identity(), nn.Linear(channels, classes))
        initialise_with_noisy_biases(self)
