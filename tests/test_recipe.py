"""The recipe: learning rates epoch by epoch, and what it refuses."""

import math

import numpy as np
import pytest

from kd.errors import ConfigError
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
