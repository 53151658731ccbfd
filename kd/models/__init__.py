"""The papers' networks, a family a file. Every one gives Output(logits, features): one feature map a stage.

Each family's file says where its features are taken. Widths, layouts and initialisation follow the repository
named there; networks end in a global average, so they take any image large enough for their strides.
"""

import re

from torch import nn

from kd.errors import ConfigError, nearest
from kd.models.allcnn import AllCNN
from kd.models.base import Output, evaluate, name_of, probe, run_networks
from kd.models.cnn import CNN
from kd.models.densenet import DenseNet
from kd.models.imagenet import TorchvisionResNet
from kd.models.mobilenet import MobileNetV2
from kd.models.resnet import ResNet, ResNet50
from kd.models.supernet import Supernet
from kd.models.tapped import Tapped
from kd.models.vgg import BLOCKS, VGG
from kd.models.wrn import WideResNet

__all__ = ["KNOWN", "Output", "Supernet", "Tapped", "build", "complexity", "evaluate", "feature_shapes", "name_of", "run_networks"]

KNOWN = (  # what a misspelt name is compared with; the patterns below take other depths and widths too
    *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)), "resnet8x4", "resnet32x4", "resnet50",
    "wrn-16-1", "wrn-16-2", "wrn-28-10", "wrn-40-1", "wrn-40-2", *(f"vgg{depth}" for depth in BLOCKS),
    "mobilenetv2", "mobilenetv2-6-0.5", "densenet121", "allcnn-0.66", "cnn3x4", "cnn3x8", "cnn6x16",
    "torchvision-resnet18", "torchvision-resnet34", "torchvision-resnet50",
)  # fmt: skip


def build(name: str, classes: int, channels: int = 3) -> nn.Module:
    """A fresh network by name, for `classes` >= 2 classes and images of `channels` >= 1 channels.

    resnetD (D = 6n+2; but resnet50 is the bottleneck one), resnetDx4, wrn-D-K (D = 6n+4), vgg8/11/13/16/19,
    mobilenetv2-T-W (mobilenetv2 is T = 6, W = 0.5), resnet50, densenet121, allcnn-SCALE, cnnDxW (D = 3n);
    torchvision-resnetD, for photographs (D = 18, 34, 50, 101, 152).
    Weights come from torch's global generator. The network has `.name` and `.head`, its final nn.Linear.
    Raises ConfigError for an unknown name or a wrong number.
    """
    if not isinstance(classes, int) or classes < 2 or not isinstance(channels, int) or channels < 1:
        raise ConfigError(f"{name}: classes must be 2 or more and channels 1 or more, not {classes!r} and {channels!r}")

    try:
        network = make(str(name), {"classes": classes, "channels": channels})
    except ConfigError as problem:
        raise ConfigError(f"{name}: {problem}") from None
    network.name = name
    return network


def make(name, size):
    def numbers(pattern):
        match = re.fullmatch(pattern, name)
        return match and [float(text) if "." in text else int(text) for text in match.groups()]

    if name.startswith("torchvision-"):
        return TorchvisionResNet(name.removeprefix("torchvision-"), **size)
    if name == "resnet50":
        return ResNet50(**size)
    if name == "densenet121":
        return DenseNet(**size)
    if name == "mobilenetv2":
        return MobileNetV2(6, 0.5, **size)
    if found := numbers(r"resnet(\d+)"):
        return ResNet(*found, (16, 16, 32, 64), **size)
    if found := numbers(r"resnet(\d+)x4"):
        return ResNet(*found, (32, 64, 128, 256), **size)
    if (found := numbers(r"wrn-(\d+)-(\d+)")) and found[1] > 0:
        return WideResNet(found[0], (16, 16 * found[1], 32 * found[1], 64 * found[1]), **size)
    if (found := numbers(r"vgg(\d+)")) and found[0] in BLOCKS:
        return VGG(BLOCKS[found[0]], **size)
    if found := numbers(r"mobilenetv2-(\d+)-(\d+(?:\.\d+)?)"):
        return MobileNetV2(*found, **size)
    if found := numbers(r"allcnn-(\d+(?:\.\d+)?)"):
        return AllCNN(*found, **size)
    if found := numbers(r"cnn(\d+)x(\d+)"):
        return CNN(*found, **size)
    raise ConfigError(f"no such network{nearest(name, KNOWN)}; known are such as {', '.join(KNOWN[::4])}")


def feature_shapes(network: nn.Module, image_shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """[(C, H, W), ...] of the features, for images of shape (C, H, W); a Supernet's at its active width."""
    return [tuple(feature.shape[1:]) for feature in probe(network, image_shape).features]


def complexity(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """(parameters, multiply-adds of one image's forward pass), whole numbers, for images of shape (C, H, W).

    Parameters are the learnable ones, whether frozen or not; of a Supernet those that its active width uses.
    Multiply-adds are those of convolutions and linear layers, torch's count of floating-point operations
    halved; norms, activations and pooling are left out.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, seldom needed

    with FlopCounterMode(display=False) as counter:
        probe(network, image_shape)
    if isinstance(network, Supernet):
        return network.active_parameters(), counter.get_total_flops() // 2
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2
