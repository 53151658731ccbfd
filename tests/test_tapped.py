"""Networks from elsewhere as teachers and students: layouts of their features, found, told or refused by name."""

import math
import re

import pytest
import tiny
import torch
import torchvision

from kd.data import Data
from kd.errors import ConfigError
from kd.methods.attention import AT
from kd.methods.hints import FitNet
from kd.methods.kd import KD
from kd.models import Tapped, feature_shapes
from kd.models.tapped import as_map
from kd.recipe import Recipe
from kd.training import distill

IMAGES = torch.zeros(2, 3, 8, 8)
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    "shape,layout,expected",
    [
        ((2, 5, 4, 4), None, (5, 4, 4)),
        ((2, 4, 4, 5), None, (5, 4, 4)),
        ((2, 5, 1, 1), None, (5, 1, 1)),
        ((2, 4, 4, 4), "NHWC", (4, 4, 4)),
        ((2, 16, 5), None, (5, 4, 4)),
        ((2, 17, 5), None, (5, 4, 4)),
        ((2, 1, 5), None, (5, 1, 1)),
        ((2, 7, 5), "NTC", (5, 7, 1)),
        ((2, 17, 5), "NTC", (5, 17, 1)),
    ],
)
def test_layouts_are_found_or_told(shape, layout, expected):
    output = torch.randn(shape)
    found = as_map(output, IMAGES, layout, "layer", False)
    assert found.shape[1:] == expected
    if len(shape) == 4:
        assert torch.equal(found, output if expected == shape[1:] and layout is None else output.permute(0, 3, 1, 2))
    else:
        tokens = output[:, -expected[1] * expected[2] :].transpose(1, 2)
        assert torch.equal(found, tokens.unflatten(-1, expected[1:]))  # row by row; the class token, the first, is gone


def test_layouts_of_images_that_are_not_square():
    images = torch.zeros(1, 3, 30, 100)
    assert as_map(torch.zeros(1, 12, 4, 13), images, None, "layer", False).shape == (1, 12, 4, 13)
    assert as_map(torch.zeros(1, 4, 13, 12), images, None, "layer", False).shape == (1, 12, 4, 13)


@pytest.mark.parametrize(
    "shape,layout,words",
    [
        ((2, 4, 4, 4), None, r"which may be either of .*; say which: layout=\"NCHW\" or \"NHWC\""),
        ((2, 4, 5, 6), None, "neither"),
        ((2, 15, 5), None, r"15 are no square, with or without a class token; layout=\"NTC\""),
        ((2, 16, 5), "NCHW", "is not NCHW"),
        ((8, 4, 4, 5), None, "for 2 images, which are parts of images"),
    ],
)
def test_layouts_that_cannot_be_told_are_refused_by_name(shape, layout, words):
    with pytest.raises(ConfigError, match=f"^layer stage.*{words}"):
        as_map(torch.zeros(shape), IMAGES, layout, "stage", False)


def test_a_convolutional_layer_with_as_many_channels_as_pixels_is_read_as_it_is():
    network, images = torchvision.models.resnet18(num_classes=4).eval(), torch.randn(1, 3, 256, 256)
    (feature,) = Tapped(network, ["layer1"])(images).features
    stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    assert feature.shape == (1, 64, 64, 64) and torch.equal(feature, network.layer1(stem))


@pytest.mark.parametrize(
    "layout,words",
    [("NHCW", r"'NHCW' must be NCHW, NHWC, NTC or None \(did you mean"), (["NCHW", None], "2 for 1 layers")],
)
def test_wrong_layouts(layout, words):
    with pytest.raises(ConfigError, match=f"layout: {words}"):
        Tapped(torchvision.models.resnet18(), ["layer1"], layout)


def learns(network):
    """Whether something finite is learnt from a network's features and logits, and by it from another's."""
    other = Tapped(torchvision.models.resnet18(num_classes=2), ["layer2"])
    return taught(other, network) and taught(network.requires_grad_(True), other)


def taught(student, teacher):
    data = Data("photos", ("a", "b"), *photos(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    before, method = tiny.snapshot(student), KD() + FitNet() + AT(taps="last")
    result = distill(student, method, teacher, data, Recipe(epochs=1, batch_size=4, learning_rate=0.01))
    return tiny.changed(student, before) and all(math.isfinite(value) for value in result.last["loss"].values())


def photos(side=64):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=generator)
    return dict.fromkeys(SPLITS, pixels), dict.fromkeys(SPLITS, torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    "name,layers,shapes",
    [
        ("swin_t", ["features.1", "features.5"], [(96, 16, 16), (384, 4, 4)]),  # (N, H, W, C)
        ("convnext_tiny", ["features.1", "features.7"], [(96, 16, 16), (768, 2, 2)]),
        ("vit_b_16", ["encoder.layers.encoder_layer_5"], [(768, 4, 4)]),  # 17 tokens
    ],
)
def test_torchvisions_transformers_and_convnext_teach_and_learn(name, layers, shapes):
    size = {"image_size": 64} if name.startswith("vit") else {}
    teacher = Tapped(getattr(torchvision.models, name)(num_classes=2, **size), layers)
    assert feature_shapes(teacher, (3, 64, 64)) == shapes
    assert learns(teacher)


@pytest.mark.parametrize(
    "name,layers,shapes,more",
    [
        ("resnet18", ["layer1", "layer4"], [(64, 16, 16), (512, 2, 2)], {}),
        ("convnext_atto", ["stages.0", "stages.3"], [(40, 16, 16), (320, 2, 2)], {}),
        ("mobilenetv3_small_050", ["blocks.1", "blocks.5"], [(16, 8, 8), (288, 2, 2)], {}),
        ("swin_tiny_patch4_window7_224", ["layers.0", "layers.2"], [(96, 16, 16), (384, 4, 4)], {"img_size": 64}),
        ("vit_tiny_patch16_224", ["blocks.2", "blocks.11"], [(192, 4, 4), (192, 4, 4)], {"img_size": 64}),
    ],
)
def test_timms_networks_teach_and_learn(name, layers, shapes, more):
    timm = pytest.importorskip("timm")
    teacher = Tapped(timm.create_model(name, num_classes=2, **more), layers)
    assert feature_shapes(teacher, (3, 64, 64)) == shapes
    assert teacher.head.out_features == 2 and learns(teacher)


@pytest.mark.parametrize(
    "model,size,layer,shapes",
    [
        ("ViT", {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}, r"layers?\.0", [(24, 4, 4)]),
        (
            "Swin",
            {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
            r"layers?\.0",
            [(32, 8, 8)],
        ),
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, r"stages\.1", [(16, 8, 8)]),
        ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, r"stages\.1", [(16, 8, 8)]),
    ],
)
def test_hugging_faces_networks_teach_and_learn(model, size, layer, shapes):
    transformers = pytest.importorskip("transformers")
    configuration = getattr(transformers, f"{model}Config")(num_labels=2, image_size=64, **size)
    network = getattr(transformers, f"{model}ForImageClassification")(configuration)
    name = next(name for name, _ in network.named_modules() if re.search(rf"\.{layer}$", name))
    teacher = Tapped(network, [name])
    assert feature_shapes(teacher, (3, 64, 64)) == shapes and learns(teacher)
