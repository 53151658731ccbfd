"""KD: the softened divergence against its definition and its limit."""

import numpy as np
import pytest
import tiny
import torch

from kd.methods.kd import KD, softened_divergence
from kd.training import distill


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_softened_divergence_is_its_definition(temperature):
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 17, 11)) * 5
    p, q = tiny.softmax(teacher / temperature), tiny.softmax(student / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    found = softened_divergence(torch.tensor(student), torch.tensor(teacher), temperature)
    assert abs(found.item() - expected) < 1e-9
    assert abs(softened_divergence(torch.tensor(teacher), torch.tensor(teacher), temperature).item()) < 1e-12


def test_kd_gradient_at_high_temperature_is_that_of_matching_logits():
    # Hinton et al., section 2.1: for zero-mean logits and T -> infinity the gradient tends to (z_s - z_t) / (N C)
    z_s, z_t = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z_s, z_t = z_s - z_s.mean(1, keepdim=True), z_t - z_t.mean(1, keepdim=True)
    z_s.requires_grad_()
    (gradient,) = torch.autograd.grad(softened_divergence(z_s, z_t, 1e5), z_s)
    assert torch.allclose(gradient, (z_s - z_t) / (6 * 5), atol=1e-4)


def test_kd_weights_the_labels(data, networks):
    teacher, student = networks
    result = distill(student, KD(alpha=0.7), teacher, data, tiny.RECIPE.replace(epochs=1))
    assert set(result.last["loss"]) == {"logits", "labels"}
    assert KD(alpha=0.7).label_weight == pytest.approx(0.3)
    assert KD(alpha=2.0, label_weight=1.0).label_weight == 1.0
