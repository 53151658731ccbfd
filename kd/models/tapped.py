"""Any torch network as a teacher or student: feature maps are taken from named layers with forward hooks."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kd.errors import ConfigError, nearest
from kd.models.base import Output, name_of

LAYOUTS = ("NCHW", "NHWC", "NTC")
Layout = Literal["NCHW", "NHWC", "NTC"]


class Tap:
    """A forward hook that keeps a layer's output for the one forward that asked for it.

    An object and not a closure: a deep copy of the network then carries its own tap instead of feeding the
    old one.
    """

    def __init__(self, layer, layout=None, convolutional=False):
        self.layer, self.layout, self.convolutional = layer, layout, convolutional
        self.waiting, self.output, self.version = False, None, 0

    def __call__(self, module, inputs, output):
        if self.waiting:
            output = getattr(output, "last_hidden_state", output)  # of Hugging Face's encoders
            if isinstance(output, tuple) and output:
                output = output[0]  # of their layers: the features, then what else was asked for
            if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
                got = f"a tensor {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
                reason = "not a feature map (N, C, H, W) or (N, H, W, C) nor tokens (N, T, C)"
                raise ConfigError(f"layer {self.layer} gives {got}, {reason}; tap a layer that does")
            self.output = output
            if countable(output):
                self.version = output._version

    def take(self, images):
        """What the layer gave for `images`, as a map (N, C, H, W)."""
        output, self.output, self.waiting = self.output, None, False
        if output is None:
            raise ConfigError(f"layer {self.layer} took no part in the forward pass; tap a layer that does")
        if countable(output) and output._version != self.version:
            raise ConfigError(
                f"the layer after {self.layer} overwrites its output in place; tap that next layer instead"
            )
        return as_map(output, images, self.layout, self.layer, self.convolutional)


def as_map(output, images, layout, layer, convolutional):
    """A layer's output as a map (N, C, H, W). ConfigError, naming the layer, where its layout cannot be told.

    output: (N, C, H, W), (N, H, W, C) or tokens (N, T, C). images: (N, C, H, W), what it was computed from. layout:
    which of these it is; None: found. Of a map the two axes that are shaped as the image are height and width; where
    all three axes are alike, it is (N, C, H, W) if `convolutional`. Tokens are folded, row by row, where they are as
    many as a square has, or one more: the first, the class token, is then left out. Layout "NTC" takes all tokens as
    they are, as a map (N, C, T, 1).
    """
    shape, (height, width) = tuple(output.shape), images.shape[-2:]
    if shape[0] != len(images):
        reason = f"gives {shape} for {len(images)} images, which are parts of images, such as windows"
        raise ConfigError(f"layer {layer} {reason}; tap the layer around it")
    if layout and len(layout) != len(shape):
        raise ConfigError(f"layer {layer} gives {shape}, which is not {layout}; leave its layout out, and it is found")
    if len(shape) == 3:
        tokens = output.transpose(1, 2)
        side, first = math.isqrt(shape[1]), 0
        if side > 1 and side * side != shape[1]:
            side, first = math.isqrt(shape[1] - 1), 1
        if layout:
            return tokens[..., None]
        if side * side != shape[1] - first:
            reason = f"and {shape[1]} are no square, with or without a class token"
            raise ConfigError(f'layer {layer} gives tokens {shape}, {reason}; layout="NTC" takes them as they are')
        return tokens[..., first:].unflatten(-1, (side, side))
    if layout is None:
        # rounded up or down from the image's, by less than a pixel each
        fits = [abs(h * width - w * height) < max(height, width) for h, w in (shape[2:], shape[1:3])]
        if fits[0] == fits[1] and not (fits[0] and convolutional):
            which = "either" if fits[0] else "neither"
            reason = f"of images {height}x{width}, which may be {which} of (N, C, H, W) and (N, H, W, C)"
            raise ConfigError(f'layer {layer} gives {shape} {reason}; say which: layout="NCHW" or "NHWC"')
        layout = "NCHW" if fits[0] else "NHWC"
    return output.permute(0, 3, 1, 2) if layout == "NHWC" else output


def is_convolutional(module):
    """Whether a module computes on maps (N, C, H, W) alone, by its parts: nn.LayerNorm has channels last."""

    def has(*kinds):
        return any(isinstance(part, kinds) for part in module.modules())

    return has(nn.Conv2d, nn.BatchNorm2d) and not has(nn.LayerNorm)


def countable(tensor):
    """Whether torch counts in-place changes here (not while compiling, nor for inference tensors)."""
    return not torch.compiler.is_compiling() and not tensor.is_inference()


class Tapped(nn.Module):
    """`module` with Output(logits, features), features the outputs of the named `layers`, in the order given.

    module: any nn.Module whose forward(images) gives logits (N, classes), or something whose `.logits` are (an
    Output, or what Hugging Face's models give). layers: names as in `module.named_modules()`, e.g. ["layer1",
    "layer2"] for a torchvision ResNet; each must give a map (N, C, H, W) or (N, H, W, C), as Swin's, or tokens (N, T,
    C), as ViT's, or a tuple that begins with one. layout: "NCHW", "NHWC" or "NTC", of all layers or a list, one a
    layer; None: found, as `as_map` says. Features are maps (N, C, H, W), whatever the layer gives. Of a layer used
    several times in one forward pass the last output counts. The weights' state_dict keys start with "module.";
    `head` is the last nn.Linear, where there is one. A deep copy is independent.
    Raises ConfigError for an unknown layer or layout at once, and on first use for an output that is no feature map,
    may be read in two ways, is overwritten in place, or never appears, or for a module that gives no logits.
    """

    def __init__(
        self, module: nn.Module, layers: str | Sequence[str], layout: Layout | Sequence[Layout | None] | None = None
    ):
        super().__init__()
        self.module = module
        self.name, self.training = name_of(module), module.training
        names = [name for name, _ in module.named_modules() if name]
        few = ", ".join([name for name, _ in module.named_children()][:8])
        layers = [layers] if isinstance(layers, str) else list(layers)
        if not layers:
            raise ConfigError(f"no layer of {self.name} to tap: name at least one, such as {few}")
        for layer in layers:
            if layer not in names:
                raise ConfigError(f"{self.name} has no layer {layer!r}{nearest(layer, names)}; it has {few}")
        layouts = [layout] * len(layers) if layout is None or isinstance(layout, str) else list(layout)
        if len(layouts) != len(layers):
            raise ConfigError(f"layout: {len(layouts)} for {len(layers)} layers; give one, or one for each layer")
        for given in layouts:
            if given not in (None, *LAYOUTS):
                raise ConfigError(f"layout: {given!r} must be {', '.join(LAYOUTS)} or None{nearest(given, LAYOUTS)}")
        self.taps = []
        for layer, given in zip(layers, layouts, strict=True):
            tapped = module.get_submodule(layer)
            self.taps.append(Tap(layer, given, is_convolutional(tapped)))
            tapped.register_forward_hook(self.taps[-1])

    @property
    def head(self) -> nn.Linear:
        linears = [module for module in self.module.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise AttributeError("head")  # as of any network that has none, so that hasattr says so
        return linears[-1]

    def forward(self, images: Tensor) -> Output:
        for tap in self.taps:
            tap.waiting = True
        try:
            logits = self.module(images)
            features = tuple(tap.take(images) for tap in self.taps)
        finally:  # a tap that keeps a tensor after a failure would hold its graph and break deep copies
            for tap in self.taps:
                tap.waiting, tap.output = False, None
        logits = getattr(logits, "logits", logits)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ConfigError(f"{self.name} does not give logits (N, classes): wrap it in a module whose forward does")
        return Output(logits, features)
