"""Nested sub-networks: the same depth, growing width, shared weights (PWKD; slimmable networks).

That PWKD's sub-networks are leading slices with a batch norm each is our reading; its abstract says that they
share weights, have the same depth and grow in channel width. The building blocks: Yu et al. 2019,
JiahuiYu/slimmable_networks models/slimmable_ops.py.
"""

import copy
from itertools import pairwise

import torch.nn.functional as F
from torch import nn

from kd.errors import ConfigError
from kd.models.allcnn import AllCNN
from kd.models.base import name_of
from kd.models.cnn import CNN
from kd.models.densenet import DenseNet
from kd.models.imagenet import TorchvisionResNet
from kd.models.resnet import ResNet, ResNet50
from kd.models.vgg import VGG
from kd.models.wrn import WideResNet


class SlicedConv(nn.Conv2d):
    """The leading outputs[active] x inputs[active] slice of the full weight."""

    def active_parameters(self):
        outputs, inputs = self.outputs[self.active], self.inputs[self.active]
        return self.weight[:outputs, :inputs], None if self.bias is None else self.bias[:outputs]

    def forward(self, x):
        return F.conv2d(x, *self.active_parameters(), self.stride, self.padding, self.dilation)


class SlicedLinear(nn.Linear):
    """Only the input features are sliced: every width knows all the classes."""

    def active_parameters(self):
        return self.weight[:, : self.inputs[self.active]], self.bias

    def forward(self, x):
        return F.linear(x, *self.active_parameters())


class NormPerWidth(nn.ModuleList):
    """One batch norm a width, since the statistics of a channel differ between widths."""

    def active_parameters(self):
        return self[self.active].weight, self[self.active].bias

    def forward(self, x):
        return self[self.active](x)


class Supernet(nn.Module):
    """A copy of `network` that runs at any of its widths: supernet.select(i); supernet(images) -> Output.

    A layer of C channels has max(1, round(C * width)) at a width, so layers that are summed agree. Widths are
    fractions in (0, 1], strictly increasing, ending at 1.0; the full width is active at first and equals the
    plain network to the bit. Weights outside the active slice get gradient 0, the batch norms of other widths
    none. A deep copy has its own active width. Raises ConfigError for wrong widths, and for a network whose
    channels have no nested leading slices.
    """

    def __init__(self, network, widths=(0.25, 0.5, 0.75, 1.0)):
        super().__init__()
        if not isinstance(network, (ResNet, WideResNet, VGG, CNN, AllCNN, ResNet50, TorchvisionResNet)):
            if any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules()):
                reason = "grouped convolutions tie input to output channels"
            elif isinstance(network, DenseNet):
                reason = "concatenated features are no leading slice of its channels"
            else:
                reason = "how its channels are wired is not known"
            raise ConfigError(f"no supernet for {name_of(network)}: {reason}; use a resnet, wrn, vgg, allcnn or cnn")
        widths = tuple(float(width) for width in widths)
        if not widths or widths[-1] != 1 or widths[0] <= 0 or any(a >= b for a, b in pairwise(widths)):
            raise ConfigError(f"widths {widths} must be increasing fractions in (0, 1] that end at 1.0: (0.25, 0.5, 1.0)")
        self.widths = widths
        self.network = copy.deepcopy(network)
        self.name = f"supernet of {name_of(network)}"
        self.sliced = []
        for name, module in list(self.network.named_modules()):
            if isinstance(module, nn.Conv2d):
                # only the class changes: weights, their names and order stay those of the plain network
                module.__class__ = SlicedConv
                module.inputs = self.channels(module.in_channels) if self.sliced else (module.in_channels,) * len(widths)
                module.outputs = self.channels(module.out_channels)
            elif isinstance(module, nn.Linear):
                module.__class__ = SlicedLinear
                module.inputs = self.channels(module.in_features)
            elif isinstance(module, nn.BatchNorm2d):
                module = self.norm_per_width(module)
                self.network.set_submodule(name, module)
            else:
                continue
            self.sliced.append(module)
        self.training = network.training
        self.select(len(widths) - 1)

    def channels(self, full):
        return tuple(max(1, round(full * width)) for width in self.widths)

    def norm_per_width(self, norm):
        """A batch norm a width, each starting from the leading slice of the given one."""
        norms = NormPerWidth()
        norms.training = norm.training
        for count in self.channels(norm.num_features):
            narrow = copy.deepcopy(norm)
            narrow.num_features = count
            for values in (narrow.weight, narrow.bias, narrow.running_mean, narrow.running_var):
                values.data = values.data[:count].clone()
            norms.append(narrow)
        return norms

    @property
    def head(self):
        return self.network.head

    def select(self, index):
        """Make widths[index] the active width; negative indices count from the widest. Returns self."""
        if not -len(self.widths) <= index < len(self.widths):
            raise ConfigError(f"{self.name} has no width {index}: it has {len(self.widths)}, {self.widths}")
        self.active = index % len(self.widths)
        for module in self.sliced:
            module.active = self.active
        return self

    def active_parameters(self):
        """The number of parameters that the active width uses."""
        return sum(values.numel() for module in self.sliced for values in module.active_parameters() if values is not None)

    def forward(self, images):
        return self.network(images)
