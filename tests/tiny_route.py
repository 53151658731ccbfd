"""A data set, a student and a recipe that are tiny: for the tests of curricula and of teachers."""

import torch

from kd.data import Data
from kd.models import build
from kd.recipe import Recipe

RECIPE = Recipe(epochs=6, batch_size=16, learning_rate=0.05)


def tiny_data(validation=12):
    generator = torch.Generator().manual_seed(3)
    labels = {split: torch.arange(size) % 3 for split, size in (("train", 36), ("validation", validation), ("test", 12))}
    images = {}
    for split, y in labels.items():  # a bright column a class, in noise: something that can be learnt
        noise = torch.randint(0, 120, (len(y), 1, 8, 8), generator=generator)
        for image, label in zip(noise, y, strict=True):
            image[0, :, 2 * int(label) + 1] += 130
        images[split] = noise.to(torch.uint8)
    return Data("tiny", ("a", "b", "c"), images, labels, (0.3,), (0.2,))


def student(seed=1):
    torch.manual_seed(seed)
    return build("cnn3x2", 3, 1)
