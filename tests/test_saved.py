"""Networks saved to be handed on: plain keys, read back here and without this package."""

import pytest
import tiny
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import kd
from kd.errors import ConfigError
from kd.models import Supernet, Tapped, build


@pytest.mark.parametrize("name", ["cnn3x4", "resnet8", "wrn-10-1", "mobilenetv2"])
def test_a_network_comes_back_as_it_was(name, tmp_path):
    network = tiny.shaken(build(name, 7, 1)).to(memory_format=torch.channels_last)
    kd.save(network, tmp_path / "student.safetensors")
    back, images = kd.load(tmp_path / "student.safetensors"), torch.randn(2, 1, 16, 16)
    assert back.name == name and not back.training and network.training
    back = back.to(memory_format=torch.channels_last)  # another layout rounds differently
    assert torch.equal(back(images).logits, network.eval()(images).logits)
    assert not tiny.changed(back, tiny.snapshot(network))


def test_the_file_says_what_it_is_in_plain_words(tmp_path):
    network = tiny.network()
    kd.save(network, tmp_path / "student.safetensors")
    with safe_open(tmp_path / "student.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "network": "cnn3x4", "classes": "3", "channels": "1"}
        assert set(file.keys()) == set(network.state_dict())


def test_a_tapped_network_goes_back_into_torchvisions_without_this_package(tmp_path):
    network = Tapped(tiny.shaken(torchvision.models.resnet18(num_classes=4)), ["layer1"])
    kd.save(network, tmp_path / "student.safetensors")
    other, images = torchvision.models.resnet18(num_classes=4), torch.randn(1, 3, 32, 32)
    other.load_state_dict(load_file(tmp_path / "student.safetensors"))
    assert torch.equal(other.eval()(images), network.eval()(images).logits)
    again = kd.load(tmp_path / "student.safetensors", Tapped(torchvision.models.resnet18(num_classes=4), ["layer1"]))
    assert torch.equal(again(images).logits, network(images).logits)


def test_our_resnet50_goes_into_torchvisions_with_a_small_stem(tmp_path):
    network, images = tiny.shaken(build("resnet50", 4)).eval(), torch.randn(1, 3, 16, 16)
    kd.save(network, tmp_path / "student.safetensors")
    other = torchvision.models.resnet50(num_classes=4)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    weights = load_file(tmp_path / "student.safetensors")
    other.load_state_dict({torchvisions(name): value for name, value in weights.items()})
    torch.testing.assert_close(other.eval()(images), network(images).logits, rtol=1e-3, atol=1e-3)


def torchvisions(name):
    """torchvision's name of an entry of our resnet50: layer2.0.conv2.weight is our stages.1.0.branch.3.weight."""
    part, *rest = name.split(".")
    if part == "stem":
        return f"{['conv1', 'bn1'][int(rest[0])]}.{rest[1]}"
    if part == "head":
        return f"fc.{rest[0]}"
    stage, block, where, layer, entry = rest
    inner = (
        f"downsample.{layer}" if where == "shortcut" else f"{'bn' if int(layer) % 3 else 'conv'}{int(layer) // 3 + 1}"
    )
    return f"layer{int(stage) + 1}.{block}.{inner}.{entry}"


def test_weights_that_share_memory(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    kd.save(network, tmp_path / "tied.safetensors")
    other = kd.load(tmp_path / "tied.safetensors", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert torch.equal(other[1].weight, network[0].weight)


def test_what_does_not_fit_is_said(tmp_path):
    path = tmp_path / "student.safetensors"
    with pytest.raises(ConfigError, match="student.safetensors is missing; give the path"):
        kd.load(path)
    path.write_bytes(b"no")
    with pytest.raises(ConfigError, match="no whole safetensors file"):
        kd.load(path)
    kd.save(torchvision.models.resnet18(num_classes=4), path)
    with pytest.raises(ConfigError, match=r"holds ResNet, which kd.build .*kd.load\(path, network\)"):
        kd.load(path)
    with pytest.raises(ConfigError, match="the weights do not fit CNN"):
        kd.load(path, tiny.network())
    kd.save(Supernet(tiny.network(), [0.5, 1.0]), path)
    with pytest.raises(ConfigError, match="kd.load"):
        kd.load(path)
