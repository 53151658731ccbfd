"""MobileNetV2 (Sandler et al. 2018) with expansion T and width W, the students of RCO."""

from torch import nn

from kd.errors import ConfigError
from kd.models.base import Staged, initialise, layer


class InvertedResidual(nn.Sequential):
    """1x1 to T * inputs, ReLU, 3x3 depthwise, ReLU, 1x1; each with norm; plus x where the shape stays."""

    def __init__(self, inputs, outputs, stride, expansion):
        hidden = inputs * expansion
        super().__init__(
            *layer(inputs, hidden, 1),
            *layer(hidden, hidden, 3, stride, groups=hidden),
            *layer(hidden, outputs, 1, activation=None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        out = super().forward(x)
        if self.residual:
            out += x
        return out


class MobileNetV2(Staged):
    """Expansion T (integer >= 1) and width W (at least one channel a layer: W >= 1/16); no dropout.

    The first convolution has stride 2, so 32x32 images end 2x2. Features: 4, the outputs of the last block at
    each resolution (24W, 32W, 96W, 320W channels; 16, 8, 4 and 2 wide). These are linear bottlenecks: a stage
    here has no last activation. The head reads the mean of a 1x1 convolution to 1280 channels (1280W if W >
    1) after them. Raises ConfigError for T or W out of range. Source: HobbitLong/RepDistiller
    models/mobilenetv2.py.
    """

    def __init__(self, expansion, width, classes, channels=3):
        if expansion < 1 or int(16 * width) < 1:
            raise ConfigError(f"T must be at least 1, not {expansion}, and W at least 0.0625, not {width}")
        groups = (  # of (expansion, width, blocks, stride): one group a resolution
            ((1, 16, 1, 1), (expansion, 24, 2, 1)),
            ((expansion, 32, 3, 2),),
            ((expansion, 64, 4, 2), (expansion, 96, 3, 1)),
            ((expansion, 160, 3, 2), (expansion, 320, 1, 1)),
        )
        stages, inputs = [], int(32 * width)
        stem = nn.Sequential(*layer(channels, inputs, 3, 2))
        for group in groups:
            stage = []
            for factor, full, blocks, stride in group:
                outputs = int(full * width)
                for index in range(blocks):
                    stage.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, factor))
                    inputs = outputs
            stages.append(nn.Sequential(*stage))
        last = int(1280 * max(1, width))
        super().__init__(stem, stages, nn.Sequential(*layer(inputs, last, 1)), nn.Linear(last, classes))
        initialise(self, linear_std=0.01)
