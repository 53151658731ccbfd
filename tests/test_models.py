"""Networks: sizes against published ones, values against independent derivations, and the features."""

import copy
import math

import pytest
import tiny
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import resnet as reference

from kd.errors import ConfigError
from kd.models import KNOWN, Output, Tapped, build, complexity, feature_shapes

# name: parameters at 100 classes, multiply-adds at 32x32 (rounded, where known), (channels, side) a stage
FACTS = {
    "resnet20": (278_324, 41e6, [(16, 32), (32, 16), (64, 8)]),
    "resnet32": (472_756, None, [(16, 32), (32, 16), (64, 8)]),
    "resnet56": (861_620, 126e6, [(16, 32), (32, 16), (64, 8)]),
    "resnet110": (1_736_564, None, [(16, 32), (32, 16), (64, 8)]),
    "resnet8x4": (1_233_540, 177e6, [(64, 32), (128, 16), (256, 8)]),
    "resnet32x4": (7_433_860, 1083e6, [(64, 32), (128, 16), (256, 8)]),
    "wrn-16-2": (703_284, None, [(32, 32), (64, 16), (128, 8)]),
    "wrn-40-2": (2_255_156, None, [(32, 32), (64, 16), (128, 8)]),
    "wrn-40-1": (569_780, None, [(16, 32), (32, 16), (64, 8)]),
    "vgg8": (3_965_028, None, [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]),
    "vgg13": (9_462_180, None, [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]),
    "mobilenetv2": (812_836, None, [(12, 16), (16, 8), (48, 4), (160, 2)]),
    "resnet50": (23_705_252, None, [(256, 32), (512, 16), (1024, 8), (2048, 4)]),
    "densenet121": (7_058_788, None, [(128, 16), (256, 8), (512, 4), (1024, 4)]),
    "allcnn-0.66": (2_182_413, None, [(63, 16), (126, 8), (168, 4), (253, 4)]),
}


@pytest.mark.parametrize("name", FACTS)
def test_parameters_multiply_adds_and_features(name):
    parameters, multiply_adds, features = FACTS[name]
    network = build(name, 100)
    measured = complexity(network, (3, 32, 32))
    assert measured[0] == parameters
    if multiply_adds:
        assert abs(measured[1] - multiply_adds) < 0.5e6
    assert feature_shapes(network, (3, 32, 32)) == [(c, side, side) for c, side in features]
    assert network.training and network.name == name
    assert isinstance(network.head, nn.Linear) and network.head.out_features == 100


def test_allcnn_at_full_scale():
    assert complexity(build("allcnn-1.0", 100), (3, 32, 32))[0] == 5_026_084


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "cnn3x4", "cnn6x16", "wrn-10-1", "vgg8", "allcnn-0.1"])
def test_digits(name):
    network = build(name, 10, channels=1)
    output = network(torch.rand(4, 1, 8, 8))
    assert output.logits.shape == (4, 10)
    assert [tuple(f.shape[1:]) for f in output.features] == feature_shapes(network, (1, 8, 8))
    output.logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_other_image_sizes():
    assert feature_shapes(build("resnet8", 7), (3, 40, 56)) == [(16, 40, 56), (32, 20, 28), (64, 10, 14)]
    assert [side for _, side, _ in feature_shapes(build("vgg8", 7), (3, 64, 64))] == [64, 32, 16, 8, 4]


def small_plain(depth_x_width="cnn6x4"):
    torch.manual_seed(3)
    return build(depth_x_width, 5, channels=2)


def test_cnn_layout():
    convolutions = [m for m in small_plain().modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == [
        (2, 4, 1), (4, 4, 1), (4, 8, 2), (8, 8, 1), (8, 16, 2), (16, 16, 1)]  # fmt: skip
    assert all(m.bias is None and m.kernel_size == (3, 3) for m in convolutions)


# ---- values, against networks put together from other people's parts or by hand


def carry_over(source, target):
    """Weights in order of declaration: the reference declares them in the same order, shape by shape."""
    values, names = list(source.state_dict().values()), list(target.state_dict())
    assert [v.shape for v in values] == [v.shape for v in target.state_dict().values()]
    target.load_state_dict(dict(zip(names, values, strict=True)))
    return target


def test_resnet_equals_torchvision_blocks():
    def shortcut(inputs, outputs, stride):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    block = reference.BasicBlock
    other = nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        block(32, 64, 1, shortcut(32, 64, 1)),
        block(64, 128, 2, shortcut(64, 128, 2)),
        block(128, 256, 2, shortcut(128, 256, 2)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    network = tiny.shaken(build("resnet8x4", 10)).eval()
    images = torch.randn(3, 3, 32, 32)
    expected = carry_over(network, other).eval()(images)
    torch.testing.assert_close(network(images).logits, expected, rtol=1e-4, atol=1e-4)


def test_torchvisions_networks_are_torchvisions():
    torch.manual_seed(0)
    network = build("torchvision-resnet18", 1000).eval()
    torch.manual_seed(0)
    other, images = torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images).logits, other(images)) and network.name == "torchvision-resnet18"
    assert feature_shapes(network, (3, 224, 224)) == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    assert complexity(network, (3, 224, 224)) == (11_689_512, 1_814_073_344)  # torchvision states 11,689,512 and 1.81 billion
    for name, channels, said in (("torchvision-resnet19", 3, "did you mean 'resnet18'"), ("torchvision-resnet18", 1, "3 channels, not 1")):
        with pytest.raises(ConfigError, match=said):
            build(name, 10, channels)


def test_resnet50_equals_torchvision_with_a_small_stem():
    other = torchvision.models.resnet50(num_classes=10)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    network = tiny.shaken(build("resnet50", 10)).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = carry_over(network, other).eval()(images)
    torch.testing.assert_close(network(images).logits, expected, rtol=1e-3, atol=1e-3)


def test_vgg13_equals_torchvision_layers():
    features = torchvision.models.vgg13_bn().features  # pools after each of five blocks; ours keeps the first three
    kept = [layer for i, layer in enumerate(features) if not (isinstance(layer, nn.MaxPool2d) and i > 21)]
    other = nn.Sequential(*kept, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    network = tiny.shaken(build("vgg13", 10)).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = carry_over(network, other).eval()(images)
    torch.testing.assert_close(network(images).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name,blocks", [("wrn-16-1", 2), ("wrn-16-2", 2), ("wrn-10-2", 1)])
def test_wrn_by_hand(name, blocks):
    network = tiny.shaken(build(name, 10)).eval()
    weights = network.state_dict()

    def activate(x, norm):
        values = [weights[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, scale, shift = (v[:, None, None] for v in values)
        return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)

    images = torch.randn(2, 3, 16, 16)
    x, expected = F.conv2d(images, weights["conv.weight"], padding=1), []
    for stage in range(3):
        for index in range(blocks):
            at = f"stages.{stage}.{index}"
            stride = 2 if stage > 0 and index == 0 else 1
            a = activate(x, f"{at}.norm1")
            if index == 0 and stage > 0:
                expected.append(a)
            h = activate(F.conv2d(a, weights[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.norm2")
            h = F.conv2d(h, weights[f"{at}.conv2.weight"], padding=1)
            if f"{at}.shortcut.weight" in weights:
                x = F.conv2d(a, weights[f"{at}.shortcut.weight"], stride=stride)
            x = x + h
    expected.append(activate(x, "norm"))
    logits = expected[-1].mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]
    output = network(images)
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-4)
    for ours, other in zip(output.features, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_densenet_puts_new_features_in_front():
    network = tiny.shaken(build("densenet121", 10)).eval()
    images = torch.randn(1, 3, 16, 16)
    output = network(images)
    third, fourth = output.features[2:]
    assert torch.equal(fourth[:, -512:], third)  # 16 layers x 32 channels before it
    assert not torch.equal(fourth[:, :512], third)
    pooled = F.relu(network.top[0](fourth)).mean((2, 3))
    torch.testing.assert_close(output.logits, F.linear(pooled, network.head.weight, network.head.bias))


def test_mobilenet_layout():
    network = build("mobilenetv2-6-0.5", 10)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.stride[0] for m in convolutions].count(2) == 4  # the first convolution and three depthwise ones
    depthwise = [m for m in convolutions if m.groups > 1]
    assert len(depthwise) == 17 and all(m.groups == m.in_channels == m.out_channels for m in depthwise)
    block = tiny.shaken(network).eval().stages[0][-1]  # 12 to 12 channels, stride 1: the second of two
    x = torch.randn(1, 12, 4, 4)
    inner = x
    for module in block:
        inner = module(inner)
    torch.testing.assert_close(block(x), x + inner)


# ---- initialisation


def test_seed_decides_the_weights():
    def state(seed):
        torch.manual_seed(seed)
        return build("resnet8", 10).state_dict()

    first, second, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", ["resnet32x4", "wrn-40-2", "vgg13", "mobilenetv2", "cnn6x16"])
def test_kaiming_fan_out(name):
    torch.manual_seed(0)
    ratios = [
        m.weight.std().item() / math.sqrt(2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels))
        for m in build(name, 10).modules()
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 2000
    ]
    assert ratios and all(abs(ratio - 1) < 0.1 for ratio in ratios)


@pytest.mark.parametrize("name", ["densenet121", "allcnn-0.66"])
def test_srm_networks_start_with_noisy_biases(name):
    torch.manual_seed(0)
    network = build(name, 100)
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    biases = torch.cat([m.bias.detach() for m in layers])
    assert abs(biases.mean()) < 0.1 and abs(biases.std() - 1) < 0.1
    for m in layers:
        if m.weight.numel() > 5000:
            assert abs(m.weight.std().item() / math.sqrt(2 / m.weight[0].numel()) - 1) < 0.1


# ---- features


@pytest.mark.parametrize("name", ["resnet14", "wrn-16-2", "vgg8", "mobilenetv2", "resnet50", "densenet121", "allcnn-0.2"])
def test_nothing_overwrites_a_feature(name):
    network = build(name, 10)
    output = network(torch.randn(2, 3, 16, 16))
    kept = [feature.detach().clone() for feature in output.features]
    (output.logits.sum() + sum(f.square().mean() for f in output.features)).backward()
    assert all(torch.equal(k, f) for k, f in zip(kept, output.features, strict=True))
    # cloned at the moment a stage gives it, the feature is the same: no later layer worked in place
    seen = []
    for stage in network.stages:
        part, index = (stage[0], 1) if name.startswith("wrn") else (stage, ...)
        part.register_forward_hook(lambda _, inputs, result, index=index: seen.append(result[index].clone()))
    features = network.eval()(torch.randn(2, 3, 16, 16)).features
    if name.startswith("wrn"):
        seen, features = seen[1:], features[:-1]
    assert len(seen) == len(features) and all(torch.equal(s, f) for s, f in zip(seen, features, strict=True))


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-2", "vgg8", "allcnn-0.2", "cnn3x4", "resnet50"])
def test_head_reads_the_mean_of_the_last_feature(name):
    network = build(name, 10).eval()
    output = network(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(network.head(output.features[-1].mean((2, 3))), output.logits)


def test_networks_compile_whole():
    for name in ("resnet8", "wrn-10-1", "cnn3x4"):
        network = build(name, 10).eval()
        images = torch.randn(2, 3, 8, 8)
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images).logits, network(images).logits)


def test_a_look_leaves_the_network_as_it_was():
    network = small_plain()
    network.stages[1].eval()
    before = copy.deepcopy(network.state_dict())
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    # by hand: convolutions 9 x inputs x outputs, norms 2 x channels, linear 16 x 5 + 5
    weights = [9 * 2 * 4, 9 * 4 * 4, 9 * 4 * 8, 9 * 8 * 8, 9 * 8 * 16, 9 * 16 * 16]
    positions = [64, 64, 16, 16, 4, 4]
    expected = sum(weights) + 2 * 2 * (4 + 8 + 16) + 16 * 5 + 5
    multiply_adds = sum(w * p for w, p in zip(weights, positions, strict=True)) + 16 * 5
    assert complexity(network, (2, 8, 8)) == (expected, multiply_adds)
    assert network.training and network.stages[0].training and not network.stages[1].training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


# ---- problems


@pytest.mark.parametrize(
    "name,hint",
    [
        ("resnt20", "resnet20"), ("WRN-40-2", "wrn-40-2"), ("vgg9", "vgg"), ("densenet", "densenet121"),
        ("lenet", "resnet"), ("resnet20x3", "resnet20"), ("resnet21", "the nearest is 20"),
        ("resnet2", "the nearest is 8"),
        ("resnet31x4", "the nearest is 32"), ("wrn-17-2", "the nearest is 16"), ("wrn-16-0", "wrn-16-"),
        ("cnn4x8", "3, 6, 9"), ("cnn3x0", "width at least 1"), ("mobilenetv2-0-1", "T must be"),
        ("mobilenetv2-6-0.01", "W at least"), ("allcnn-0.001", "at least"), (None, "known"),
    ],
)  # fmt: skip
def test_wrong_names_say_what_is_near(name, hint):
    with pytest.raises(ConfigError) as caught:
        build(name, 10)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and hint in message and "\n" not in message


@pytest.mark.parametrize("classes,channels", [(1, 3), (0, 3), (10, 0), ("10", 3)])
def test_wrong_numbers_of_classes_and_channels(classes, channels):
    with pytest.raises(ConfigError, match="classes"):
        build("resnet8", classes, channels)


def test_every_known_name_builds():
    for name in KNOWN:
        with torch.device("meta"):
            assert build(name, 10).name == name


def test_images_that_do_not_fit():
    with pytest.raises(ConfigError, match="resnet8 does not take images"):
        complexity(build("resnet8", 10), (1, 8, 8))
    with pytest.raises(ConfigError, match="densenet121 does not take images"):
        feature_shapes(build("densenet121", 10), (3, 4, 4))


# ---- Tapped


@pytest.mark.parametrize(
    "make,layers,shapes",
    [
        (torchvision.models.resnet18, ["layer1", "layer3.1"], [(64, 8, 8), (256, 2, 2)]),
        (torchvision.models.mobilenet_v3_small, ["features.3", "features.12"], [(24, 4, 4), (576, 1, 1)]),
    ],
)
def test_tapped_torchvision(make, layers, shapes):
    plain = make(num_classes=6).eval()
    tapped = Tapped(plain, layers)
    assert not tapped.training
    images = torch.randn(2, 3, 32, 32)
    output = tapped(images)
    assert isinstance(output, Output) and torch.equal(output.logits, plain(images))
    assert feature_shapes(tapped, (3, 32, 32)) == shapes
    assert tapped.head is (plain.fc if hasattr(plain, "fc") else plain.classifier[3])
    assert set(tapped.state_dict()) == {f"module.{key}" for key in plain.state_dict()}
    assert complexity(tapped, (3, 32, 32)) == complexity(make(num_classes=6), (3, 32, 32))
    (2 * output.features[0]).sum().backward()
    assert next(plain.parameters()).grad.abs().sum() > 0


def test_tapped_gives_the_values_of_our_own_features():
    network = build("resnet8", 10).eval()
    images = torch.randn(2, 3, 16, 16)
    tapped = Tapped(network, ["stages.0", "stages.2"])
    own, through = network(images), tapped(images)
    assert torch.equal(own.logits, through.logits) and tapped.head is network.head
    assert torch.equal(through.features[0], own.features[0]) and torch.equal(through.features[1], own.features[2])
    assert len(tapped(images).features) == 2  # a second pass gives its own features, not four


def test_copies_of_tapped_are_independent():
    tapped = Tapped(torchvision.models.resnet18(num_classes=4).eval(), ["layer1"])
    images = torch.randn(1, 3, 32, 32)
    first = tapped(images)
    twin = copy.deepcopy(tapped)  # after a pass with gradients: nothing of it may linger in the hooks
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    changed, again = twin(images), tapped(images)
    assert torch.equal(first.features[0], again.features[0])
    assert not torch.equal(changed.features[0], again.features[0])
    nn.Sequential(twin.module)(images)  # the plain module used alone keeps nothing either
    assert all(tap.output is None for tap in (*tapped.taps, *twin.taps))


def test_tapped_compiles_whole():
    tapped = Tapped(build("cnn3x4", 10).eval(), ["stages.0"])
    images = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(tapped, backend="eager", fullgraph=True)(images)
    assert torch.equal(compiled.features[0], tapped(images).features[0])


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.flat, self.unused = nn.Linear(4, 2), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.flat(self.relu(self.norm(self.conv(images))).mean((2, 3)))


@pytest.mark.parametrize("layer,words", [("flat", "not a feature map"), ("norm", "in place"), ("unused", "no part")])
def test_wrong_taps_speak_on_first_use(layer, words):
    tapped = Tapped(Odd(), [layer])
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{layer}.*{words}|{words}.*{layer}"):
            tapped(torch.randn(1, 3, 8, 8))
    assert tapped.taps[0].output is None
    assert Tapped(Odd(), ["conv", "relu"])(torch.randn(1, 3, 8, 8)).logits.shape == (1, 2)
    with torch.inference_mode():  # no counting of changes there, but it runs
        assert len(Tapped(Odd(), ["relu"])(torch.randn(1, 3, 8, 8)).features) == 1


def test_unknown_layers():
    with pytest.raises(ConfigError, match=r"no layer 'layr1' \(did you mean 'layer1'\?\); it has conv1, bn1"):
        Tapped(torchvision.models.resnet18(), ["layr1"])
    with pytest.raises(ConfigError, match="name at least one"):
        Tapped(Odd(), [])
    assert not hasattr(Tapped(nn.Sequential(nn.Conv2d(3, 4, 3)), ["0"]), "head")
    with pytest.raises(ConfigError, match="does not give logits"):
        Tapped(nn.Sequential(nn.Conv2d(3, 4, 3)), ["0"])(torch.randn(1, 3, 8, 8))
