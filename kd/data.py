"""Archives -> tensors -> batches whose order, crop and flip are a pure function of (seed, epoch, index).

A data set lives as uint8 tensors on the device. An epoch's draws are made at once on the CPU (the same on every
device) and go over in one transfer; batches are then cut out by batched tensor operations, with the distribution
of the usual transforms: RandomCrop(size, padding) with zeros *before* normalisation, RandomHorizontalFlip,
ToTensor, Normalize.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import pad
from tqdm import tqdm

from kd.checkpoints import write_atomically
from kd.errors import Problem, check_kind, nearest
from kd.fetch import IMAGES, files_in, source_of

SPLITS = ("train", "validation", "test")
NAMES = ("digits", "cifar10", "cifar100", "imagefolder")
BLOCK = {
    "cpu": 1 << 20,
    "cuda": 1 << 24,
}  # bytes of images cut at once: what fits a cache; few kernel launches
FORMAT = 1  # raise it when the same archive decodes to other tensors: older caches are then left alone


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

    def few(self, images_per_class, seed):
        """Data with `images_per_class` train images of each class, drawn by `seed`; the rest as it is.

        They keep their order. mean and std stay those of the full train split: a teacher trained on it expects
        them. Problem if a class has fewer.
        """
        labels, kept = self.labels["train"].cpu(), []
        generator = _generator("few", images_per_class, seed)
        for label, class_name in enumerate(self.classes):
            places = torch.nonzero(labels == label).flatten()
            if not 1 <= images_per_class <= len(places):
                what = f"class {class_name!r} has {len(places)} train images"
                raise Problem(f"{what}: ask for 1 to that many, not {images_per_class}")
            kept.append(places[torch.randperm(len(places), generator=generator)[:images_per_class]])
        kept = torch.cat(kept).sort().values.to(self.labels["train"].device)
        images, labels = ({**part, "train": part["train"][kept]} for part in (self.images, self.labels))
        return dataclasses.replace(self, name=f"{self.name}-{images_per_class}", images=images, labels=labels)

    def batches(self, seed, epoch, batch_size, dtype=torch.float32):
        """Iterate over one epoch of train as Batch, each image once, shuffled, cropped and flipped.

        What happens to image i is drawn for i, whatever the batch size. The host never waits for the device.
        """
        images, labels = self.images["train"], self.labels["train"]
        (count, channels, height, width), device, padding = images.shape, images.device, self.padding
        order, top, left, flipped = draws(self, seed, epoch)
        # A crop is `height` runs of width*C bytes in the padded (N, H', W', C) bytes; its top run begins at `first`.
        row = (width + 2 * padding) * channels
        first = (order * (height + 2 * padding) + top) * row + left * channels
        order, first, flipped = torch.stack([order, first, flipped]).to(device)
        labels = labels[order]
        runs = self._runs(width * channels)
        rows = torch.arange(height, device=device) * row
        normalise = normaliser(self.mean, self.std, width, device, dtype)

        block = batch_size * max(1, BLOCK.get(device.type, 1 << 24) // (batch_size * images[0].numel()))
        for begin in range(0, count, block):
            part = slice(begin, min(begin + block, count))
            crops = runs.index_select(0, (first[part, None] + rows).flatten()).view(
                -1, height, width, channels
            )
            if self.flip:
                crops = where(flipped[part] == 1, crops.flip(2), crops)
            for start in range(part.start, part.stop, batch_size):
                batch = slice(start, min(start + batch_size, part.stop))
                yield Batch(normalise(crops[start - begin : batch.stop - begin]), labels[batch], order[batch])

    def chunks(self, split, size, dtype=torch.float32):
        """Iterate over a split (train, validation, test) in its order as Batch of up to `size`, not augmented."""
        if split not in SPLITS:
            raise Problem(f"no split {split!r}{nearest(split, SPLITS)}: there are {', '.join(SPLITS)}")
        images, labels = self.images[split], self.labels[split]
        normalise = normaliser(self.mean, self.std, images.shape[3], images.device, dtype)
        index = torch.arange(len(labels), device=labels.device)
        for part in (slice(begin, begin + size) for begin in range(0, len(labels), size)):
            yield Batch(normalise(images[part].permute(0, 2, 3, 1).contiguous()), labels[part], index[part])

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
            raise Problem(
                f"cannot write {path} ({error.strerror}): mend the folder's rights or choose another"
            ) from None

    @classmethod
    def open(cls, path):
        """Read what save() wrote. Problem if it is missing, damaged, or its content no longer has its md5."""
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
            raise Problem(f"{path} is missing: run the stage that makes it (`dvc repro data`)") from None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise Problem(f"{path} is no whole data file: delete it and run `dvc repro data`") from None
        if data.md5 != written:
            raise Problem(
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
            raise Problem(f"{path} is missing or no whole data file: run `dvc repro data`") from None

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


def load_data(
    name,
    source=None,
    validation=None,
    padding=None,
    flip=None,
    size=None,
    mean=None,
    std=None,
    images_per_class=None,
    md5=None,
    cache="data",
):
    """Data from an archive, or from the tensors an earlier call left in the folder `cache` (None: keep nothing).

    name:       digits (in scikit-learn; 8x8 grey, 1000/257/540 images), cifar10, cifar100 (fine labels), or
                imagefolder (train/CLASS/* and test/CLASS/*, possibly below one top folder; grey if all are).
    source:     archive or folder; cifar10 and cifar100 default to the archive of data.dvc, whose size and md5
                are then checked.
    validation: images held out of train, stratified by class, always the same; default 257 for digits, else 0.
    padding:    pixels; default an eighth of the height: 4 at 32x32.  flip: default yes, except for digits.
    size:       imagefolder: resize to size x size pixels (shorter side, then the centre); default: as they are.
    mean, std:  one number a channel in [0, 1] units; default those of train.
    images_per_class: train images kept of each class, always the same ones; default all. See Data.few.
    md5:        of `source`, 32 hexadecimal digits: another archive of that name is refused; default: any will do.

    Raises Problem for whatever is wrong with these or with the files.
    """
    if name not in NAMES:
        raise Problem(f"no data called {name!r}{nearest(name, NAMES)}: there are {', '.join(NAMES)}")
    validation = (257 if name == "digits" else 0) if validation is None else validation
    kinds = {"validation": (validation, 0), "padding": (padding, 0), "size": (size, 0), "images_per_class": (images_per_class, 0)}
    kinds |= {"flip": (flip, True), "source": (str(source) if isinstance(source, Path) else source, "")}
    for key, (value, like) in kinds.items():
        if value is not None:
            check_kind(f"data.{key}", value, like)
    for key, value in (("mean", mean), ("std", std)):
        if value is not None and not (isinstance(value, (list, tuple)) and all(isinstance(number, (int, float)) for number in value)):
            raise Problem(f"data.{key}: {value!r} must be a list of numbers, one a channel")
    if size is not None and size < 1:
        raise Problem(f"data.size: {size} must be a positive number of pixels")
    if size is not None and name != "imagefolder":
        raise Problem(f"data.size: for imagefolder only; {name} must go without")
    if name == "digits":
        if source is not None:
            raise Problem(f"digits come with scikit-learn: source={str(source)!r} must go")
        data = _data(name, *_digits(), validation)
    else:
        source, digest = source_of(name, source, cache, md5)
        options = hashlib.md5(
            json.dumps([FORMAT, validation, size]).encode(), usedforsecurity=False
        ).hexdigest()
        kept = cache and Path(cache) / f"{name}-{digest[:8]}-{options[:8]}.safetensors"
        data = None
        if kept and kept.exists():
            with suppress(Problem):  # a damaged cache is no harm: it is made again
                data = Data.open(kept)
        if data is None:
            content = _imagefolder(source, size) if name == "imagefolder" else _cifar(name, source)
            data = _data(name, *content, validation)
            if kept:
                data.save(kept)
    padding = data.image_shape[1] // 8 if padding is None else padding
    if not 0 <= padding < data.image_shape[1]:
        raise Problem(f"padding={padding}: 0 to {data.image_shape[1] - 1} pixels")
    flip = name != "digits" if flip is None else bool(flip)
    mean, std = (
        tuple(map(float, own if given is None else given))
        for given, own in ((mean, data.mean), (std, data.std))
    )
    if not len(mean) == len(std) == data.image_shape[0] or min(std) <= 0:
        raise Problem(
            f"mean={mean}, std={std}: {data.image_shape[0]} numbers each (one a channel), std above 0"
        )
    data = dataclasses.replace(data, mean=mean, std=std, padding=padding, flip=flip)
    return data.few(images_per_class, 0) if images_per_class else data


def _data(name, classes, train, test, validation):
    """Data from (images, labels) arrays of train and test, with `validation` images of train held out."""
    images, labels = train
    kept, held = slice(None), slice(0)  # slices copy nothing
    if validation:
        kept, held = _stratified(labels, validation, f"validation={validation}")
    pairs = {"train": (images[kept], labels[kept]), "validation": (images[held], labels[held]), "test": test}
    images = {split: torch.from_numpy(np.ascontiguousarray(pair[0])) for split, pair in pairs.items()}
    labels = {split: torch.from_numpy(np.asarray(pair[1], np.int64)) for split, pair in pairs.items()}
    # Sums of whole numbers: the same mean and std to the last bit on every machine.
    count = images["train"].numel() // images["train"].shape[1]
    first = second = 0
    for block in images["train"].split(1000):  # block by block: as whole numbers of 32 bits the images take four times the memory
        values = block.transpose(0, 1).flatten(1).int()
        first, second = first + values.sum(1, dtype=torch.int64), second + (values * values).sum(1, dtype=torch.int64)
    first, second = first.double() / count, second.double() / count
    mean, std = first / 255, (second - first**2).sqrt() / 255
    return Data(name, tuple(classes), images, labels, tuple(mean.tolist()), tuple(std.tolist()))


def _stratified(labels, held_out, what):
    """Places (kept, held out) of a fixed stratified split, each in its old order."""
    from sklearn.model_selection import train_test_split  # slow to import, seldom needed

    try:
        parts = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=0, stratify=labels)
    except (ValueError, TypeError) as error:
        raise Problem(
            f"{what} cannot be held out of {len(labels)} train images ({error}): choose another number"
        ) from None
    return (np.sort(part) for part in parts)


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    train, test = _stratified(digits.target, 540, "540 digits")
    return "0123456789", (images[train], digits.target[train]), (images[test], digits.target[test])


class _ArraysOnly(pickle.Unpickler):
    """Unpickles containers, numbers, strings and numpy arrays; refuses a pickle that names anything else, unrun."""

    allowed = {
        ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if module.split(".")[0] == "numpy" and (found := self.allowed.get((module.split(".")[-1], name))):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, only numpy arrays are admitted")


def _cifar(name, source):
    """(class names, (images, labels) of train, of test) from the original python archive, N x 3072 bytes."""
    fine = b"fine_label" if name == "cifar100" else b"label"
    test_file, meta_file, train_file = "test_batch", "batches.meta", "data_batch_"
    if name == "cifar100":
        test_file, meta_file, train_file = "test", "meta", "train"
    found = {}
    for path, raw in files_in(source):
        file = PurePosixPath(path).name
        if raw is None or not (file in (test_file, meta_file) or file.startswith(train_file)):
            continue
        try:
            content = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
            if file == meta_file:
                found[file] = [label.decode() for label in content[fine + b"_names"]]
            else:
                images, labels = (
                    content[b"data"].reshape(-1, 3, 32, 32),
                    np.asarray(content[fine + b"s"], np.int64),
                )
                if images.dtype != np.uint8 or labels.shape != images.shape[:1]:
                    raise ValueError(f"{images.dtype} images {images.shape}, labels {labels.shape}")
                found[file] = images, labels
        except Exception as error:  # a damaged pickle may raise anything; none of it ran code
            what = f"{type(error).__name__}: {error}"
            raise Problem(f"{source}: {path} is no CIFAR file ({what}): get the archive again") from None
    test, classes = found.pop(test_file, None), found.pop(meta_file, None)
    if test is None or classes is None or not found:
        raise Problem(
            f"{source} lacks {test_file}, {meta_file} or the train files of {name}: get the archive again"
        )
    train = tuple(np.concatenate(part) for part in zip(*(found[file] for file in sorted(found)), strict=True))
    labels = np.concatenate([train[1], test[1]])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise Problem(f"{source} has labels outside of its {len(classes)} classes: get the archive again")
    return classes, train, test


def _decode(items, size):
    """uint8 arrays (H, W) for grey, (H, W, 3) for all other images, of [(path, bytes)]."""
    arrays = []
    for path, raw in items:
        try:
            with Image.open(io.BytesIO(raw)) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"{image.mode} pixels, of more than 8 bits a channel")
                image = image if image.mode == "L" else image.convert("RGB")
                arrays.append(
                    np.asarray(
                        ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR) if size else image
                    )
                )
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
            what = "it is none" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
            raise Problem(f"the image {path} cannot be decoded ({what}): replace or remove it") from None
    return arrays


def _imagefolder(source, size):
    """(class names, (images, labels) of train, of test), classes and images in the order of their names."""
    folders, places, chunk, jobs = {"train": set(), "test": set()}, {}, [], []
    workers, bar = min(8, os.cpu_count() or 1), tqdm(desc=source.name, unit=" images", disable=None)
    with ThreadPoolExecutor(workers) as pool, bar:
        for path, raw in files_in(source):
            parts = PurePosixPath(path).parts
            at = next((i for i in (0, 1) if parts[i : i + 1] and parts[i] in folders), None)
            if at is None or len(parts) < at + 2 or any(part.startswith(".") for part in parts):
                continue
            split, class_name, is_image = parts[at], parts[at + 1], Path(path).suffix.lower() in IMAGES
            if raw is None or len(parts) > at + 2:
                folders[split].add(class_name)
            if raw is None or len(parts) == at + 2 or not is_image:
                continue
            places[path] = (split, class_name)
            chunk.append((path, raw))
            bar.update()
            if len(chunk) == 64:
                jobs.append(([path for path, _ in chunk], pool.submit(_decode, chunk, size)))
                chunk = []
                if len(jobs) > 64:
                    jobs[-64][1].result()  # the reader waits for the decoders: no second archive in memory
        jobs.append(([path for path, _ in chunk], pool.submit(_decode, chunk, size)))
        arrays = {path: array for paths, job in jobs for path, array in zip(paths, job.result(), strict=True)}
    tops = {path.split(f"{split}/")[0] for path, (split, _) in places.items()}
    if len(tops) > 1:
        raise Problem(
            f"{source} has train or test folders in several places, {', '.join(sorted(tops))!r}: keep one"
        )
    for split, names in folders.items():
        if not names:
            raise Problem(f"{source} has no {split}/CLASS/ folders: it needs train/CLASS/* and test/CLASS/*")
        if empty := sorted(names - {class_name for there, class_name in places.values() if there == split}):
            raise Problem(f"{source}: {split}/{empty[0]} holds no images: add some or remove the folder")
    if odd := sorted(folders["train"] ^ folders["test"]):
        has, lacks = ("train", "test") if odd[0] in folders["train"] else ("test", "train")
        raise Problem(
            f"{source}: class {odd[0]!r} is in {has}/ and not in {lacks}/: add it there or remove it"
        )

    shape, _ = Counter(array.shape[:2] for array in arrays.values()).most_common(1)[0]
    for path, array in sorted(arrays.items()):
        if array.shape[:2] != shape:
            (h, w), (height, width) = array.shape[:2], shape
            raise Problem(
                f"{source}: {path} has {w}x{h} pixels, most have {width}x{height}: give size=PIXELS to resize"
            )
    if len(folders["train"]) == 1:
        raise Problem(f"{source} has one class alone, {min(folders['train'])!r}: there is nothing to tell apart; add others")
    classes, grey = sorted(folders["train"]), all(array.ndim == 2 for array in arrays.values())
    label_of, parts = {class_name: label for label, class_name in enumerate(classes)}, []
    for split in ("train", "test"):
        paths = sorted(path for path, place in places.items() if place[0] == split)
        images = np.empty((len(paths), 1 if grey else 3, *shape), np.uint8)
        for image, path in zip(images, paths, strict=True):
            array = arrays.pop(path)
            image[:] = (
                array if array.ndim == 2 else array.transpose(2, 0, 1)
            )  # grey among coloured: thrice the same
        parts.append((images, np.array([label_of[places[path][1]] for path in paths])))
    return classes, *parts
