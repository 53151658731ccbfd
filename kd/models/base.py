"""What the families share: output, staged forward pass, initialisation, and a look with a blank image."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd import ranks
from kd.errors import ConfigError


class Output(NamedTuple):
    """Logits (N, classes) and the feature map of each stage (N, C_i, H_i, W_i), shallow to deep."""

    logits: Tensor
    features: tuple[Tensor, ...]


class Staged(nn.Module):
    """images -> stem -> stages, each giving a feature -> top -> mean over positions -> head -> logits.

    All are modules; `stages` is a list of them, and `head` the final nn.Linear.
    """

    def __init__(self, stem, stages, top, head):
        super().__init__()
        self.stem, self.stages, self.top, self.head = stem, nn.ModuleList(stages), top, head

    def forward(self, images):
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return Output(self.head(self.top(x).mean((2, 3))), tuple(features))


def layer(inputs, outputs, kernel=3, stride=1, *, groups=1, bias=False, activation=nn.ReLU):
    """[convolution that keeps the size at stride 1, batch norm, activation]; no activation if None."""
    modules = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(outputs),
    ]
    return modules if activation is None else [*modules, activation(inplace=True)]


def initialise(network, linear_std=None):
    """Kaiming normal (fan out, ReLU) convolutions with bias 0; linear layers N(0, linear_std) with bias 0.

    Without linear_std, linear layers keep torch's own. Draws from torch's global generator only, so
    `torch.manual_seed` decides. Source: the two usual forms in HobbitLong/RepDistiller models/ (normal with
    std sqrt(2 / (k k C_out)) is the same distribution).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)


def initialise_with_noisy_biases(network):
    """Kaiming normal (fan in) weights and N(0, 1) biases, for convolutions and the head.

    Source: viebboy/SRM cifar100/code/DenseNet.py and AllCNN.py.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias)


def name_of(network: nn.Module) -> str:
    """The name that `build` gave, else the class name."""
    return getattr(network, "name", type(network).__name__)


@torch.no_grad()
def probe(network, image_shape):
    """The Output for one blank image (C, H, W), in evaluation mode; modes and statistics stay as they were.

    Raises ConfigError where the network cannot take images of that shape.
    """
    weight = next(network.parameters(), torch.zeros(()))
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        return network(torch.zeros(1, *image_shape, device=weight.device, dtype=weight.dtype))
    except (RuntimeError, ValueError, AssertionError) as error:  # other people's networks check sizes in their own ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name_of(network)} does not take images of shape {tuple(image_shape)}: {reason}") from error
    finally:
        for module, training in modes:
            module.training = training


def run_networks(network, images, precision):
    """Forward in the recipe's precision; logits and features come back in fp32, so that every loss is computed in fp32.

    Raises ConfigError for a network that gives anything but an Output.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = network(images)
    if not isinstance(output, Output):
        gives = f"{name_of(network)} gives {type(output).__name__}"
        raise ConfigError(f"{gives}, not logits with feature maps; wrap it: kd.Tapped(network, layers)")
    if precision == "fp32":
        return output
    return Output(output.logits.float(), tuple(f.float() for f in output.features))


EVALUATION_CHUNK = 128  # images a forward pass without gradients: their maps fit a CPU's cache, where 2000 took twice as long; changes no result


@torch.no_grad()
def evaluate(network: nn.Module, data, split: str = "test", precision: str = "fp32", together: bool = False) -> float:
    """Top-1 accuracy in percent on a split, in eval mode; the network's mode is as before afterwards. nan for an empty split.

    together: of a run on several ranks (kd/ranks.py) each looks at its share of the images; then every rank must call.
    """
    if len(data.labels[split]) == 0:
        return float("nan")
    was_training = network.training
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=data.labels[split].device)
    mine = {"first": ranks.rank(), "every": ranks.count()} if together else {}
    for batch in data.chunks(split, EVALUATION_CHUNK, **mine):
        correct += (run_networks(network, batch.images, precision).logits.argmax(1) == batch.labels).sum()
    correct = ranks.total(correct) if together else correct
    network.train(was_training)
    return 100.0 * float(correct) / len(data.labels[split])
