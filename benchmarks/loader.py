"""How fast JPEG files become batches: kd.data.jpeg beside torchvision's ImageFolder and DataLoader, on the same files.

    python benchmarks/step.py --only loader

Training batches of 64 at 224 pixels: RandomResizedCrop, flip, normalised floats on the device, with the same number of processes that
decode. The files are parts of scikit-learn's two photographs at ImageNet's usual 500x375 pixels, made in a temporary folder. Every
variant runs in a process of its own; they take turns of one epoch.
"""

import contextlib
import dataclasses
import itertools
import os
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.turns import Turns, clock
from kd.data import load_data
from kd.data.dataset import normaliser
from kd.data.folders import MEAN, STD
from kd.study.settings import use_device

BATCH, SIZE, CLASSES = 64, 224, 4
OURS, PEER, BYTES = "kd.data.jpeg", "ImageFolder + DataLoader", "ImageFolder + DataLoader, normalised on the device"


def write_photographs(folder, count):
    """`count` JPEG files of 500x375 pixels in folder/train/CLASS/, and one a class in folder/val/: about 80 kB each, ImageNet's have 110."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs, generator = [Image.fromarray(image) for image in load_sample_images().images], np.random.default_rng(0)
    for number in range(count + CLASSES):
        split = "train" if number < count else "val"
        path = Path(folder) / split / f"class{number % CLASSES}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        left, top = int(generator.integers(0, 140)), int(generator.integers(0, 52))
        photographs[number % 2].crop((left, top, left + 500, top + 375)).save(path, quality=95)


def run_ours(folder, workers, answer):
    """Images a second of an epoch of ours, again and again."""
    data = dataclasses.replace(load_data("jpegfolder", folder, size=SIZE), workers=workers).to(use_device())
    for epoch in itertools.count():
        rate(data.batches(0, epoch, BATCH), answer)


def run_peer(folder, workers, on_device, answer):
    """The same of torchvision's loader, with the transforms of its references/classification. on_device: normalised as ours are."""
    from torchvision import datasets
    from torchvision.transforms import v2

    device, steps = torch.device(use_device()), [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    if not on_device:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    files = datasets.ImageFolder(Path(folder) / "train", v2.Compose(steps))
    options = {"num_workers": workers, "pin_memory": device.type == "cuda"}
    # fork is Linux's default, but not in a process that was spawned itself, as these are
    loader = torch.utils.data.DataLoader(files, BATCH, shuffle=True, multiprocessing_context="fork", **options)
    normalise = normaliser(MEAN, STD, SIZE, device, torch.float32)

    def batches():
        for images, _ in loader:
            images = images.to(device, non_blocking=True)
            yield normalise(images.permute(0, 2, 3, 1).contiguous()) if on_device else images

    while True:
        rate(batches(), answer)


def rate(batches, answer):
    """answer(images a second of these batches)."""
    began, count = clock(), 0
    for batch in batches:
        count += len(batch[0] if isinstance(batch, tuple) else batch)
    answer(count / (clock() - began))


def time_loaders(repeats, images=512, workers=None):
    """Rows of {variant, n, images, workers, images_per_second, low, high, ratio}: medians of `repeats` turns; ratio: turn by turn, to PEER."""
    workers, rows = workers or os.cpu_count(), []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_photographs(folder, images)
        variants = {
            OURS: Turns(OURS, run_ours, folder, workers, variables={}),
            PEER: Turns(PEER, run_peer, folder, workers, False, variables={}),
            BYTES: Turns(BYTES, run_peer, folder, workers, True, variables={}),
        }
        for turns in variants.values():
            stack.callback(turns.close)
        for turns in variants.values():
            turns.answer()
        found = [{name: turns.turn() for name, turns in variants.items()} for _ in range(repeats)]
    for name in variants:
        rates = [turn[name] for turn in found]
        row = {"variant": name, "n": repeats, "images": images, "workers": workers, "images_per_second": median(rates)}
        row |= {"low": min(rates), "high": max(rates), "ratio": median(turn[name] / turn[PEER] for turn in found)}
        rows.append(row)
        print("{variant:52s} {images_per_second:7.0f} images a second ({low:.0f} to {high:.0f}), {ratio:.2f} times".format(**row))
    return rows
