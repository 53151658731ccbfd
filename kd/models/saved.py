"""A network as one file to hand on: safetensors with the plain keys of its state_dict, readable without this package.

    kd.save(student, "student.safetensors")
    student = kd.load("student.safetensors")                        a network of kd.build
    kd.load("student.safetensors", torchvision.models.resnet18())   any other: into one that fits

    safetensors.torch.load_file("student.safetensors")              elsewhere: {"stem.0.weight": tensor, ...}

The header's metadata says what it is: network (the name for kd.build, else the class), classes, channels. Of a Tapped
network the keys are those of the network inside, so that a ResNet of torchvision's goes back by `load_state_dict`.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from kd.checkpoints import load_weights, write_atomically
from kd.errors import ConfigError
from kd.models import Tapped, build, name_of


def save(network: nn.Module, path: str | Path) -> None:
    """Write the weights of `network` to `path`, whole or not at all; the network stays as it is."""
    plain = network.module if isinstance(network, Tapped) else network
    # a copy of each: safetensors takes neither what shares memory nor channels_last
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in plain.state_dict().items()}
    write_atomically(path, to_bytes(weights, metadata={"format": "pt", **described(plain)}))


def described(network):
    """What the metadata says of a network, texts: name, last nn.Linear's outputs, first convolution's channels."""
    about = {"network": str(name_of(network))}
    if linear := [module for module in network.modules() if isinstance(module, nn.Linear)]:
        about["classes"] = str(linear[-1].out_features)
    if convolution := next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None):
        about["channels"] = str(convolution.in_channels)
    return about


def load(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """The network in a file that `save` wrote, in eval mode, on the CPU.

    network: where the weights go, changed in place and returned; needed for one that kd.build does not make.
    ConfigError for a file that is missing, damaged or of another network.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            about, weights = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; give the path of a file that kd.save wrote") from None
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is no whole safetensors file ({error}); save it again") from None
    if network is None:
        try:
            network = build(about["network"], int(about["classes"]), int(about["channels"]))
        except (ConfigError, KeyError):
            held = about.get("network", "a network without a name")
            remedy = "give the network to load it into: kd.load(path, network)"
            raise ConfigError(f"{path} holds {held}, which kd.build does not make; {remedy}") from None
    load_weights(network.module if isinstance(network, Tapped) else network, weights, path)
    return network.eval()
