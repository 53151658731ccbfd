"""Data that need not fit in memory: the same batches, to the bit, read from the data's file as they are wanted.

    data = open_data_for("data/tiny.safetensors", memory_share=0.5, device="cuda")

The decoded bytes stay in the file that Data.save wrote and are mapped, not read: the system keeps in memory what it has
room for. A torch DataLoader cuts the crops out ahead of the loop; what happens to which image is drawn as in kd/data.py.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from kd.data.dataset import SPLITS, Batch, Data, draws, normaliser, wanted_places, where
from kd.data.jpeg import open_jpegs
from kd.errors import ConfigError


def memory_available(device="cpu"):
    """Bytes that are free for data on a device. Not known (infinite) where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")


def mapped(path):
    """{tensor name: array} of a safetensors file of uint8 and int64, mapped: nothing is read before it is used.

    Mapped for copying on write, because torch takes no memory that it may not write to; nothing is written.
    """
    kinds = {"U8": np.uint8, "I64": np.dtype("<i8")}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: np.memmap(path, kinds[entry["dtype"]], "c", 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))
        if 0 not in entry["shape"] else np.empty(entry["shape"], kinds[entry["dtype"]])
        for name, entry in header.items()
    }


class Crops(torch.utils.data.Dataset):
    """Item (places, top, left), each (N,): those train images, padded with zeros and cropped there, uint8 (N, H, W, C)."""

    def __init__(self, images, padding):
        self.images, self.padding = images, padding

    def __getitem__(self, item):
        places, top, left = (values.numpy() for values in item)
        count, (channels, height, width) = len(places), self.images.shape[1:]
        # the file is read in the order of the places, which is the order of the bytes in it
        order = np.argsort(places)
        wide = np.zeros((count, height + 2 * self.padding, width + 2 * self.padding, channels), np.uint8)
        inner = slice(self.padding, self.padding + height), slice(self.padding, self.padding + width)
        wide[order, inner[0], inner[1]] = self.images[places[order]].transpose(0, 2, 3, 1)
        crops = np.empty((count, height, width, channels), np.uint8)
        for crop, image, y, x in zip(crops, wide, top, left, strict=True):
            crop[:] = image[y : y + height, x : x + width]
        return torch.from_numpy(crops)


class Stream(Data):
    """Data whose images stay in the file. Its interface and its batches are those of Data; `device` is where batches go.

    workers: processes that read ahead; 0 reads in the loop's own, which is best where images come from memory anyway.
    Each holds two batches. Labels are in memory.
    """

    def on(self, device, workers=0):
        self.device, self.workers = torch.device(device), workers
        self.labels = {split: labels.to(device) for split, labels in self.labels.items()}
        return self

    def to(self, device):
        moved = dataclasses.replace(self)
        if "md5" in vars(self):  # computing it would read the whole file
            moved.md5 = self.md5
        return moved.on(device, self.workers)

    def subset(self, images_per_class, seed):
        """As Data.subset. The few images are in memory: they are meant to be few."""
        return super(Stream, self.to("cpu")).subset(images_per_class, seed).on(self.device, self.workers)

    def batches(self, seed, epoch, batch_size, dtype=torch.float32, part=None):
        order, top, left, flipped = draws(self, seed, epoch)
        parts = wanted_places(len(order), batch_size, part)
        wanted = [(order[part], top[part], left[part]) for part in parts]
        crops = DataLoader(
            Crops(self.images["train"].numpy(), self.padding),
            sampler=wanted,
            batch_size=None,  # an item is a batch already
            num_workers=self.workers,
            multiprocessing_context="fork" if self.workers else None,  # another start would copy the mapped images
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from torch's own, and networks with dropout would notice
        )
        normalise = normaliser(self.mean, self.std, self.image_shape[2], self.device, dtype)
        index, flipped = order.to(self.device), flipped.to(self.device)
        for part, images in zip(parts, crops, strict=True):
            images = images.to(self.device, non_blocking=True)
            if self.flip:
                images = where(flipped[part] == 1, images.flip(2), images)
            yield Batch(normalise(images), self.labels["train"][index[part]], index[part])

    def chunks(self, split, size, dtype=torch.float32, first=0, every=1):
        for batch in super().chunks(split, size, dtype, first, every):
            yield Batch(batch.images.to(self.device), batch.labels, batch.index.to(self.device))


def open_stream(path, device="cpu", workers=0):
    """The Data that a file of Data.save holds, streamed; of Jpegs.save, as kd.data.jpeg says. ConfigError if it is missing or not whole.

    The md5 is the one that the file states: computing it would read everything.
    """
    rest = Data.stated(path)
    if "folders" in rest:
        return open_jpegs(path, device, workers)
    try:
        arrays = mapped(path)
    except (OSError, ValueError, KeyError):
        raise ConfigError(f"{path} is no whole data file: delete it and run `dvc repro data`") from None
    md5 = rest.pop("md5")
    images, labels = ({split: arrays[f"{split}.{kind}"] for split in SPLITS} for kind in ("images", "labels"))
    labels = {split: torch.from_numpy(np.array(values)) for split, values in labels.items()}
    images = {split: torch.from_numpy(np.asarray(values)) for split, values in images.items()}
    data = Stream(images=images, labels=labels, **{k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()})
    data.md5 = md5
    return data.on(device, workers)


def open_data_for(path, memory_share=0.5, device="cpu", workers=0, decoders=0):
    """Data.open(path) on the device, or its stream if the images, padded copies included, would take more than `memory_share`
    of what is free there. decoders: processes that decode images which are files. ConfigError for a share outside (0, 1]."""
    if not 0 < memory_share <= 1:
        raise ConfigError(f"KD_MEMORY_SHARE={memory_share}: the share must lie in (0, 1]")
    stated = Data.stated(path)
    if "folders" in stated:
        return open_jpegs(path, device, decoders)
    padding, arrays = stated["padding"], mapped(path)
    needed = sum(array.nbytes for array in arrays.values())
    count, channels, height, width = arrays["train.images"].shape
    needed += count * channels * (height + 2 * padding) * (width + 2 * padding)
    if needed > memory_share * memory_available(device):
        return open_stream(path, device, workers)
    return Data.open(path).to(device)
