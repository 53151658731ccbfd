"""The recipe: learning rates epoch by epoch, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from kd.errors import ConfigError
from kd.methods import Phase
from kd.recipe import Recipe


def test_step_schedule_has_the_papers_epochs():
    recipe = Recipe()
    rates = [recipe.learning_rate_at(epoch / 240) for epoch in range(240)]
    expected = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30
    assert np.allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "triangular", "constant"])
def test_other_schedules(schedule):
    recipe = Recipe(schedule=schedule, learning_rate=0.2)
    rates = np.array([recipe.learning_rate_at(p) for p in np.linspace(0, 1, 101)[:-1]])
    p = np.linspace(0, 1, 101)[:-1]
    expected = {"cosine": 0.1 * (1 + np.cos(np.pi * p)), "triangular": 0.002 + 0.198 * (1 - abs(2 * p - 1)), "constant": 0.2 + 0 * p}
    assert np.allclose(rates, expected[schedule])
    twice = Recipe(schedule=schedule, learning_rate=0.2, cycles=2)
    assert twice.learning_rate_at(0.6) == pytest.approx(recipe.learning_rate_at(0.2))


def steps_of(optimizer, gradients, rates, scheduler=None):
    """The weights after each step, (steps, 3), under given gradients and rates, or those of a scheduler."""
    (weight,), found = optimizer.param_groups[0]["params"], []
    for gradient, rate in zip(gradients, rates, strict=True):
        if scheduler is None:
            optimizer.param_groups[0]["lr"] = rate
        weight.grad = gradient.clone()
        optimizer.step()
        found.append(weight.detach().clone())
        if scheduler:
            scheduler.step()
    return torch.stack(found)


def test_adamw_takes_torchs_own_steps():
    gradients, start = torch.randn(20, 3), torch.randn(3)
    recipe = Recipe(optimizer="adamw", schedule="cosine", learning_rate=0.01, weight_decay=0.1)
    ours = recipe.build_optimizer([torch.nn.Parameter(start.clone())])
    theirs = torch.optim.AdamW([torch.nn.Parameter(start.clone())], lr=0.01, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 20)
    rates = [recipe.learning_rate_at(step / 20) for step in range(20)]
    found = steps_of(ours, gradients, rates)
    torch.testing.assert_close(found, steps_of(theirs, gradients, rates, scheduler))
    adam = recipe.replace(optimizer="adam").build_optimizer([torch.nn.Parameter(start.clone())])
    assert not torch.allclose(found, steps_of(adam, gradients, rates), rtol=1e-3)  # its decay goes into the gradient


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_warm_up_is_torchs_linear_warm_up_times_the_schedule(schedule):
    recipe, steps = Recipe(schedule=schedule, learning_rate=0.2, milestones=[0.5, 0.75], warm_up=0.1), 200
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    of = torch.optim.lr_scheduler
    both = [of.LinearLR(optimizer, 0.01, total_iters=20)]
    if schedule != "constant":
        step, cosine = of.MultiStepLR(optimizer, [100, 150]), of.CosineAnnealingLR(optimizer, steps)
        both.append(step if schedule == "step" else cosine)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for one in both:
            one.step()
    assert np.allclose([recipe.learning_rate_at(step / steps) for step in range(steps)], rates, rtol=1e-9)
    assert rates[0] == pytest.approx(0.002) and max(rates) > 0.19


def test_no_segment_of_the_learning_rate_ends_while_it_warms_up():
    phase = Phase("lesson", [], Recipe(epochs=10, milestones=[0.5], warm_up=0.3))
    assert [epoch for epoch in range(1, 11) if phase.ends_segment(epoch)] == [5, 10]


def test_a_recipe_without_warm_up_is_called_what_it_always_was():
    assert "warm_up" not in Recipe().as_dict()
    assert Recipe.of(Recipe(warm_up=0.05).as_dict()).warm_up == 0.05


def test_a_recipe_takes_its_values_as_they_are_given():
    values = {"epochs": 3, "learning_rate": 1, "milestones": [1]}
    found = Recipe.of(values).as_dict()
    assert found == Recipe().as_dict() | values and list(found) == list(Recipe().as_dict())
    assert type(found["learning_rate"]) is int and type(found["milestones"][0]) is float


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"learning_rat": 1}, "recipe: unknown key 'learning_rat' (did you mean 'learning_rate'?); known: epochs, "),
        ({1: 2}, "recipe: unknown key 1; known: "),
        ([], "recipe: [] must be a mapping"),
        ({"epochs": 0}, "recipe.epochs: 0 must be greater than 0"),
        ({"epochs": 2.5}, "recipe.epochs: 2.5 must be a whole number"),
        ({"schedule": "stepp"}, "recipe.schedule: 'stepp' must be 'step', "),
        ({"precision": "fp16"}, "recipe.precision: 'fp16' must be 'fp32' or 'bf16'"),
        ({"learning_rate": 0}, "recipe.learning_rate: 0 must be greater than 0"),
        ({"learning_rate": "1e-3"}, "recipe.learning_rate: '1e-3' must be a number"),
        ({"weight_decay": math.nan}, "recipe.weight_decay: nan must be a finite number"),
        ({"momentum": -1}, "recipe.momentum: -1 must be greater than or equal to 0"),
        ({"nesterov": "no"}, "recipe.nesterov: 'no' must be true or false"),
        ({"nesterov": True, "momentum": 0}, "recipe.nesterov: "),
        ({"warm_up": 1}, "recipe.warm_up: 1 must be less than 1"),
        ({"optimizer": "adamx"}, "recipe.optimizer: 'adamx' must be 'sgd', 'adam' or 'adamw' (did you mean 'adam'"),
        ({"gamma": 0}, "recipe.gamma: 0 must be greater than 0"),
        ({"milestones": 0.5}, "recipe.milestones: 0.5 must be a list"),
        ({"milestones": ["half"]}, "recipe.milestones.0: 'half' must be a number"),
        ({"milestones": [0.5, 2]}, "recipe.milestones.1: 2 must be less than or equal to 1"),
    ],
)
def test_what_a_recipe_refuses(wrong, words):
    keyword = isinstance(wrong, dict) and all(isinstance(key, str) for key in wrong)
    for refuse in (Recipe.of, lambda values: Recipe().replace(**values))[: 1 + keyword]:
        with pytest.raises(ConfigError) as caught:
            refuse(wrong)
        assert str(caught.value).startswith(words)
