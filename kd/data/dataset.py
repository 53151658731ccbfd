"""Archives -> tensors -> batches whose order, crop and flip are a pure function of (seed, epoch, index).

A data set lives as uint8 tensors on the device. An epoch's draws are made at once on the CPU (the same on every
device) and go over in one transfer; batches are then cut out by batched tensor operations, with the distribution
of the usual transforms: RandomCrop(size, padding) with zeros *before* normalisation, RandomHorizontalFlip,
ToTensor, Normalize.
"""

import dataclasses
import functools
import hashlib
import json
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import pad

from kd.checkpoints import write_atomically
from kd.errors import ConfigError, nearest

SPLITS = ("train", "validation", "test")
BLOCK = {
    "cpu": 1 << 20,
    "cuda": 1 << 24,
}  # bytes of images cut at once: what fits a cache; few kernel launches
PIXELS = 1 << 23  # of a sample: 8192 images of 32x32, 167 of 224x224; a network's maps of them fit a laptop's memory


class Batch(NamedTuple):
    images: torch.Tensor  # (N, C, H, W) normalised; channels_last when C > 1
    labels: torch.Tensor  # (N,) int64
    index: torch.Tensor  # (N,) int64, place of each image in its split


@dataclasses.dataclass(eq=False)
class Data:
    """A data set in memory.

    images, labels: {split: tensor} for train, validation, test; uint8 (N, C, H, W) in 0..255 and int64 (N,).
    classes:        names, in the order of the labels.
    mean, std:      per channel, in [0, 1] units; std is the population's.
    padding, flip:  of train: pixels of zeros around it before the random crop; flip sideways, with probability 1/2.
    md5:            hex, of tensors, classes, mean, std, padding and flip: everything here that changes a run.
    """

    name: str
    classes: tuple
    images: dict
    labels: dict
    mean: tuple
    std: tuple
    padding: int = 0
    flip: bool = False

    def __post_init__(self):
        self._padded = None

    @functools.cached_property
    def md5(self):
        rest = [self.classes, self.mean, self.std, self.padding, self.flip]
        digest = hashlib.md5(json.dumps(rest).encode(), usedforsecurity=False)
        for key, tensor in self._tensors().items():
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    @property
    def image_shape(self):
        """(C, H, W)"""
        return tuple(self.images["train"].shape[1:])

    def steps(self, batch_size):
        """Batches an epoch; the last may be smaller."""
        return -(-len(self.labels["train"]) // batch_size)

    def to(self, device):
        """The same data on a device ("cpu", "cuda", ...); tensors already there are shared."""
        images, labels = (
            {split: part[split].to(device) for split in SPLITS} for part in (self.images, self.labels)
        )
        moved = dataclasses.replace(self, images=images, labels=labels)
        if "md5" in vars(self):
            moved.md5 = self.md5
        return moved

    def subset(self, images_per_class, seed):
        """Data with `images_per_class` train images of each class, drawn by `seed`; the rest as it is.

        They keep their order. mean and std stay those of the full train split: a teacher trained on it expects
        them. ConfigError if a class has fewer.
        """
        kept = self.few(images_per_class, seed).to(self.labels["train"].device)
        images, labels = ({**part, "train": part["train"][kept]} for part in (self.images, self.labels))
        return dataclasses.replace(self, name=f"{self.name}-{images_per_class}", images=images, labels=labels)

    def few(self, images_per_class, seed):
        """The places of subset's train images, int64 (N,) on the CPU."""
        labels, kept = self.labels["train"].cpu(), []
        generator = _generator("few", images_per_class, seed)
        for label, class_name in enumerate(self.classes):
            places = torch.nonzero(labels == label).flatten()
            if not 1 <= images_per_class <= len(places):
                what = f"class {class_name!r} has {len(places)} train images"
                raise ConfigError(f"{what}: ask for 1 to that many, not {images_per_class}")
            kept.append(places[torch.randperm(len(places), generator=generator)[:images_per_class]])
        return torch.cat(kept).sort().values

    def batches(self, seed, epoch, batch_size, dtype=torch.float32, part=None):
        """Iterate over one epoch of train as Batch, each image once, shuffled, cropped and flipped.

        part: (number of images in a batch) -> slice, which of them are wanted; the others are not made. None: all.
        What happens to image i is drawn for i, whatever the batch size. The host never waits for the device.
        """
        images, labels = self.images["train"], self.labels["train"]
        (_, channels, height, width), device, padding = images.shape, images.device, self.padding
        wanted = wanted_places(len(labels), batch_size, part)
        order, top, left, flipped = (torch.cat([drawn[places] for places in wanted]) for drawn in draws(self, seed, epoch))
        # A crop is `height` runs of width*C bytes in the padded (N, H', W', C) bytes; its top run begins at `first`.
        row = (width + 2 * padding) * channels
        first = (order * (height + 2 * padding) + top) * row + left * channels
        order, first, flipped = torch.stack([order, first, flipped]).to(device)
        labels = labels[order]
        runs = self._runs(width * channels)
        rows = torch.arange(height, device=device) * row
        normalise = normaliser(self.mean, self.std, width, device, dtype)

        at_once, begin = max(1, BLOCK.get(device.type, 1 << 24) // (batch_size * images[0].numel())), 0
        for number in range(0, len(wanted), at_once):
            sizes = [places.stop - places.start for places in wanted[number : number + at_once]]
            block = slice(begin, begin + sum(sizes))
            begin = block.stop
            crops = runs.index_select(0, (first[block, None] + rows).flatten()).view(
                -1, height, width, channels
            )
            if self.flip:
                crops = where(flipped[block] == 1, crops.flip(2), crops)
            for crop, label, index in zip(crops.split(sizes), labels[block].split(sizes), order[block].split(sizes), strict=True):
                yield Batch(normalise(crop), label, index)

    def chunks(self, split, size, dtype=torch.float32, first=0, every=1):
        """Iterate over a split (train, validation, test) in its order as Batch of up to `size`, not augmented.

        first, every: chunk number `first` (from 0) and every `every`-th after it alone.
        """
        check_split(split)
        images, labels = self.images[split], self.labels[split]
        normalise = normaliser(self.mean, self.std, images.shape[3], images.device, dtype)
        index = torch.arange(len(labels), device=labels.device)
        for part in (slice(begin, begin + size) for begin in range(first * size, len(labels), every * size)):
            yield Batch(normalise(images[part].permute(0, 2, 3, 1).contiguous()), labels[part], index[part])

    def sample(self, split, count, dtype=torch.float32):
        """A Batch of `count` images of a split at most, from all over it, not augmented; fewer where they are large (PIXELS)."""
        images, labels, places = self.images[split], self.labels[split], self.spread(split, count)
        normalise = normaliser(self.mean, self.std, images.shape[3], labels.device, dtype)
        chosen = images[places.to(images.device)].permute(0, 2, 3, 1).contiguous()
        places = places.to(labels.device)
        return Batch(normalise(chosen.to(labels.device)), labels[places], places)

    def spread(self, split, count):
        """The places of `sample`'s images, int64 on the CPU."""
        check_split(split)
        count, total = min(count, PIXELS // (self.image_shape[1] * self.image_shape[2])), len(self.labels[split])
        return torch.arange(0, total, max(1, total // count))[:count]

    def save(self, path):
        """Write everything to one safetensors file, whole or not at all. Equal data give equal bytes."""
        rest = {
            key: getattr(self, key) for key in ("name", "classes", "mean", "std", "padding", "flip", "md5")
        }
        # One key in the header: safetensors writes several in no fixed order.
        content = save(self._tensors(), metadata={"data": json.dumps(rest)})
        try:
            write_atomically(path, content)
        except OSError as error:
            raise ConfigError(
                f"cannot write {path} ({error.strerror}): mend the folder's rights or choose another"
            ) from None

    @classmethod
    def open(cls, path):
        """Read what save() wrote. ConfigError if it is missing, damaged, or its content no longer has its md5."""
        try:
            with safe_open(path, framework="pt") as file:
                rest = json.loads(file.metadata()["data"])
                images, labels = (
                    {s: file.get_tensor(f"{s}.{kind}") for s in SPLITS} for kind in ("images", "labels")
                )
            written = rest.pop("md5")
            data = cls(
                images=images,
                labels=labels,
                **{k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()},
            )
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing: run the stage that makes it (`dvc repro data`)") from None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise ConfigError(f"{path} is no whole data file: delete it and run `dvc repro data`") from None
        if data.md5 != written:
            raise ConfigError(
                f"{path} is damaged (md5 {data.md5}, not {written}): delete it and run `dvc repro data`"
            )
        return data

    @staticmethod
    def md5_at(path):
        """The md5 that a file of save() states, without reading its tensors."""
        return Data.stated(path)["md5"]

    @staticmethod
    def stated(path):
        """What a file of save() states beside its tensors: {name, classes, mean, std, padding, flip, md5}."""
        try:
            with safe_open(path, framework="pt") as file:
                rest = json.loads(file.metadata()["data"])
                return {**rest, "md5": rest["md5"]}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise ConfigError(f"{path} is missing or no whole data file: run `dvc repro data`") from None

    def _tensors(self):
        parts = (("images", self.images), ("labels", self.labels))
        return {f"{split}.{kind}": part[split].cpu().contiguous() for kind, part in parts for split in SPLITS}

    def _runs(self, length):
        """Every run of `length` neighbouring bytes of the padded train images (N, H', W', C), as a view.

        Selecting whole runs copies contiguous memory: 5 to 7 times as fast on a CPU as indexing unfold()ed images.
        """
        if self._padded is None:
            train = self.images["train"].permute(0, 2, 3, 1)
            self._padded = pad(train, (0, 0, *[self.padding] * 4)).flatten()
        return self._padded.as_strided((self._padded.numel() - length + 1, length), (1, 1))


def check_split(split):
    """ConfigError for an unknown split."""
    if split not in SPLITS:
        raise ConfigError(f"no split {split!r}{nearest(split, SPLITS)}: there are {', '.join(SPLITS)}")


def _generator(*key):
    """A CPU generator whose seed is a hash of `key`: neighbouring seeds and epochs have nothing in common."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draws(data, seed, epoch):
    """(order, top, left, flipped) of an epoch, int64 (N,) on the CPU, in its order: images, their crops' corners, 1 for flipped."""
    count, generator = len(data.labels["train"]), _generator("epoch", seed, epoch)
    order = torch.randperm(count, generator=generator)
    top, left = torch.randint(0, 2 * data.padding + 1, (2, count), generator=generator)
    flipped = torch.randint(0, 2, (count,), generator=generator) * int(data.flip)
    return order, top[order], left[order], flipped[order]


def wanted_places(count, batch_size, part=None):
    """The places in an epoch's order, a slice a batch, of what `part` (as in Data.batches) wants of each batch."""
    found = []
    for begin in range(0, count, batch_size):
        size = min(batch_size, count - begin)
        taken = part(size) if part else slice(0, size)
        found.append(slice(begin + taken.start, begin + taken.stop))
    return found


def where(condition, yes, no):
    """torch.where, one boolean an image, on eight bytes at a time if they divide (8 times as fast on a CPU)."""
    word = torch.int64 if no[0].numel() % 8 == 0 else torch.uint8
    chosen = torch.where(condition[:, None], yes.flatten(1).view(word), no.flatten(1).view(word))
    return chosen.view(torch.uint8).view(no.shape)


def normaliser(mean, std, width, device, dtype):
    """A function: uint8 (N, H, W, C) to (x / 255 - mean) / std as `dtype` (N, C, H, W), channels_last for free."""
    mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale = (1 / (255 * std)).float().repeat(width).to(device)  # a row of pixels: W*C neighbouring values
    shift = (-mean / std).float().repeat(width).to(device)

    def normalise(images):
        values = torch.addcmul(shift, images.flatten(2).float(), scale).to(dtype)
        return values.view(images.shape).permute(0, 3, 1, 2)

    return normalise
