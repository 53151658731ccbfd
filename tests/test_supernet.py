"""Nested widths: the whole equals the plain network to the bit, a part a plain narrow network."""

import copy

import pytest
import tiny
import torch
from torch import nn

from kd.errors import ConfigError
from kd.models import Output, Supernet, Tapped, build, complexity, feature_shapes
from kd.models.resnet import ResNet
from kd.models.vgg import VGG
from kd.models.wrn import WideResNet

IMAGE = (3, 16, 16)


def widths(full, width):
    return tuple(max(1, round(channels * width)) for channels in full)


# name: how to build the plain network whose every layer has that share of the channels
NARROW = {
    "resnet8": lambda w: ResNet(8, widths((16, 16, 32, 64), w), 10),
    "resnet14": lambda w: ResNet(14, widths((16, 16, 32, 64), w), 10),
    "wrn-16-1": lambda w: WideResNet(16, widths((16, 16, 32, 64), w), 10),
    "wrn-10-2": lambda w: WideResNet(10, widths((16, 32, 64, 128), w), 10),
    "vgg8": lambda w: VGG([widths((c,), w) for c in (64, 128, 256, 512, 512)], 10),
    "cnn6x8": lambda w: build(f"cnn6x{round(8 * w)}", 10),
}


@pytest.mark.parametrize("name", [*NARROW, "allcnn-0.2", "resnet50", "torchvision-resnet18"])
@pytest.mark.parametrize("training", [True, False])
def test_full_width_is_the_plain_network_to_the_bit(name, training):
    network = tiny.shaken(build(name, 10)).train(training)
    supernet = Supernet(network)
    assert supernet.training is training and supernet.network.training is training
    images = torch.randn(3, *IMAGE)
    plain, whole = network(images), supernet(images)
    assert isinstance(whole, Output) and torch.equal(plain.logits, whole.logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.features, whole.features, strict=True))
    assert feature_shapes(network, IMAGE) == feature_shapes(supernet, IMAGE)
    assert complexity(network, IMAGE) == complexity(supernet, IMAGE)
    plain.logits.square().sum().backward()
    whole.logits.square().sum().backward()
    assert torch.equal(network.head.weight.grad, supernet.head.weight.grad)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_narrow_width_is_a_plain_narrow_network(name, index):
    network = tiny.shaken(build(name, 10)).eval()
    supernet = Supernet(network).select(index)
    narrow = NARROW[name](supernet.widths[index]).eval()
    state = network.state_dict()
    for key, target in narrow.state_dict().items():  # the leading corner of each full tensor
        target.copy_(state[key][tuple(slice(0, size) for size in target.shape)])
    images = torch.randn(2, *IMAGE)
    expected, output = narrow(images), supernet(images)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-5)
    for a, b in zip(output.features, expected.features, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert complexity(supernet, IMAGE) == complexity(narrow, IMAGE)


def test_gradients_stay_in_the_slice_and_norms_apart():
    supernet = Supernet(tiny.shaken(build("resnet8", 10)), (0.5, 1.0)).select(0)
    norm = supernet.network.stages[2][0].branch[1]
    assert [n.num_features for n in norm] == [32, 64]
    before = [n.running_mean.clone() for n in norm]
    supernet(torch.randn(4, *IMAGE)).logits.square().sum().backward()
    weight = supernet.network.stages[2][0].branch[0].weight
    assert weight.grad[:32, :16].abs().sum() > 0
    assert weight.grad[32:].abs().sum() == 0 and weight.grad[:, 16:].abs().sum() == 0
    head = supernet.head.weight.grad
    assert head[:, 32:].abs().sum() == 0 and head[:, :32].abs().sum() > 0
    assert norm[0].weight.grad is not None and norm[1].weight.grad is None
    assert not torch.equal(norm[0].running_mean, before[0]) and torch.equal(norm[1].running_mean, before[1])


def test_the_given_network_stays_plain_and_copies_are_independent():
    network = build("cnn3x4", 10)
    before = copy.deepcopy(network.state_dict())
    supernet = Supernet(network)
    with torch.no_grad():
        supernet.head.weight.zero_()
    supernet.select(0)(torch.randn(2, *IMAGE))
    assert type(network.head) is nn.Linear and network.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())

    twin = copy.deepcopy(supernet).select(3)
    assert feature_shapes(supernet, IMAGE)[-1][0] == 4 and feature_shapes(twin, IMAGE)[-1][0] == 16
    assert supernet.active == 0 and twin.active == 3
    assert supernet.widths == twin.widths == (0.25, 0.5, 0.75, 1.0)
    supernet.load_state_dict(twin.state_dict())
    assert supernet.select(-1).active == 3


def test_every_layer_keeps_a_channel():
    supernet = Supernet(build("cnn3x1", 10), (0.01, 1.0)).select(0)
    assert feature_shapes(supernet, IMAGE) == [(1, 16, 16), (1, 8, 8), (1, 4, 4)]
    assert supernet(torch.randn(2, *IMAGE)).logits.shape == (2, 10)


def test_supernet_compiles_whole_and_follows_select():
    supernet = Supernet(build("cnn3x4", 10).eval(), (0.5, 1.0))
    compiled = torch.compile(supernet, backend="eager", fullgraph=True)
    images = torch.randn(2, *IMAGE)
    for index in (1, 0):
        supernet.select(index)
        assert torch.equal(compiled(images).logits, supernet(images).logits)


@pytest.mark.parametrize("wrong", [(), (0.5,), (0.5, 0.5, 1.0), (1.0, 0.5), (0.0, 1.0), (-0.5, 1.0), (0.5, 1.5)])
def test_wrong_widths(wrong):
    with pytest.raises(ConfigError, match="increasing"):
        Supernet(build("cnn3x4", 10), wrong)


def test_wrong_networks_and_indices():
    tapped = Tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(10)), ["0"])
    for network, words in (
        (build("densenet121", 10), "no supernet for densenet121: concatenated"),
        (build("mobilenetv2", 10), "no supernet for mobilenetv2: grouped"),
        (tapped, "no supernet for Sequential: how its channels are wired"),
        (Tapped(build("resnet8", 10), ["stages.0"]), "no supernet for resnet8: "),
    ):
        with pytest.raises(ConfigError) as caught:
            Supernet(network)
        assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
    for index in (4, -5):
        with pytest.raises(ConfigError, match=f"no width {index}"):
            Supernet(build("cnn3x4", 10)).select(index)
