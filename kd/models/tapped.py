"""Any torch network as a teacher or student: feature maps are taken from named layers with forward hooks."""

import torch
from torch import nn

from kd.errors import ConfigError, nearest
from kd.models.base import Output, name_of


class Tap:
    """A forward hook that keeps a layer's output for the one forward that asked for it.

    An object and not a closure: a deep copy of the network then carries its own tap instead of feeding the
    old one.
    """

    def __init__(self, layer):
        self.layer, self.waiting, self.output, self.version = layer, False, None, 0

    def __call__(self, module, inputs, output):
        if self.waiting:
            if not isinstance(output, torch.Tensor) or output.ndim != 4:
                got = f"a tensor {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
                raise ConfigError(f"layer {self.layer} gives {got}, not a feature map (N, C, H, W); tap a layer that does")
            self.output = output
            if countable(output):
                self.version = output._version

    def take(self):
        output, self.output, self.waiting = self.output, None, False
        if output is None:
            raise ConfigError(f"layer {self.layer} took no part in the forward pass; tap a layer that does")
        if countable(output) and output._version != self.version:
            raise ConfigError(f"the layer after {self.layer} overwrites its output in place; tap that next layer instead")
        return output


def countable(tensor):
    """Whether torch counts in-place changes here (not while compiling, nor for inference tensors)."""
    return not torch.compiler.is_compiling() and not tensor.is_inference()


class Tapped(nn.Module):
    """`module` with Output(logits, features), features the outputs of the named `layers`, in the order given.

    module: any nn.Module whose forward(images) gives logits (N, classes) or an Output. layers: names as in
    `module.named_modules()`, e.g. ["layer1", "layer2"] for a torchvision ResNet; each must give a tensor (N,
    C, H, W). Of a layer used several times in one forward pass the last output counts. The weights'
    state_dict keys start with "module."; `head` is the last nn.Linear, where there is one. A deep copy is independent.
    Raises ConfigError for an unknown layer at once, and on first use for an output that is no feature map, is
    overwritten in place, or never appears, or for a module that gives no logits.
    """

    def __init__(self, module, layers):
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
        self.taps = [Tap(layer) for layer in layers]
        for tap in self.taps:
            module.get_submodule(tap.layer).register_forward_hook(tap)

    @property
    def head(self):
        linears = [module for module in self.module.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise AttributeError("head")  # as of any network that has none, so that hasattr says so
        return linears[-1]

    def forward(self, images):
        for tap in self.taps:
            tap.waiting = True
        try:
            logits = self.module(images)
            features = tuple(tap.take() for tap in self.taps)
        finally:  # a tap that keeps a tensor after a failure would hold its graph and break deep copies
            for tap in self.taps:
                tap.waiting, tap.output = False, None
        logits = logits.logits if isinstance(logits, Output) else logits
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
            raise ConfigError(f"{self.name} does not give logits (N, classes): wrap it in a module whose forward does")
        return Output(logits, features)
