"""A frozen teacher without its batch norms gives what it gave before."""

import pytest
import tiny
import torch
from torch import nn

from kd.methods import make
from kd.models import Supernet, Tapped, build
from kd.models.base import Output
from kd.models.fused import fuse_batchnorm
from kd.training import distill

NETWORKS = ("resnet20", "resnet8x4", "resnet50", "vgg8", "cnn3x4", "mobilenetv2", "allcnn-0.66", "wrn-16-1")


def taught(name):
    torch.manual_seed(0)
    return tiny.shaken(build(name, 10)).eval().requires_grad_(False)


@pytest.mark.parametrize("name", NETWORKS)
def test_fusing_keeps_the_function_and_the_network(name):
    network = taught(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        mine, theirs = fuse_batchnorm(network)(images), network(images)
    assert isinstance(mine, Output) and len(mine.features) == len(theirs.features)
    for a, b in zip((mine.logits, *mine.features), (theirs.logits, *theirs.features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_fusing_leaves_no_norm_in_a_resnet_and_no_gradient():
    network = fuse_batchnorm(taught("resnet20"), torch.bfloat16)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in network.parameters())


def test_what_must_not_be_fused_comes_back_untouched():
    trains = taught("resnet8").train()
    watched = Tapped(taught("resnet8"), ["stages.0"])
    widths = Supernet(taught("resnet8"), (0.5, 1.0)).eval()
    for network in (trains, watched, widths):
        assert fuse_batchnorm(network) is network


def test_bf16_counts_the_teachers_images_once(data, networks):
    teacher, student = networks
    result = distill(student, make(["kd"]), teacher, data, tiny.RECIPE.replace(precision="bf16"))
    assert result.teacher_images == tiny.RECIPE.epochs * len(data.labels["train"])
