"""Archives -> tensors: the digits of scikit-learn, CIFAR's own archives, folders of images."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import pickletools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from kd.data.dataset import Data
from kd.data.fetch import IMAGES, files_in, source_of
from kd.data.folders import Folders, index_jpegs, stratified
from kd.errors import ConfigError, NonNegativeInt, Positive, PositiveInt, checked, nearest, several
from kd.processes import alone
from kd.progress import say

NAMES = ("digits", "cifar10", "cifar100", "imagefolder", "jpegfolder")


FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # what kd.data.fetch.IMAGES are; others can start programs
MOST_PIXELS = 1 << 26  # of an image: as much as the largest cameras make
FORMAT = 1  # raise it when the same archive decodes to other tensors: older caches are then left alone


@checked("data")
def load_data(
    name: str,
    source: str | Path | None = None,
    validation: NonNegativeInt | None = None,
    padding: NonNegativeInt | None = None,
    flip: bool | None = None,
    size: PositiveInt | None = None,
    mean: several(float) | None = None,
    std: several(Positive) | None = None,
    images_per_class: PositiveInt | None = None,
    md5: str | None = None,
    cache: str | Path | None = "data",
):
    """Data from an archive, or from the tensors an earlier call left in the folder `cache` (None: keep nothing).

    name:       digits (in scikit-learn; 8x8 grey, 1000/257/540 images), cifar10, cifar100 (fine labels),
                imagefolder (train/CLASS/* and test/CLASS/*, possibly below one top folder; grey if all are), or
                jpegfolder (the same of .jpg files alone, test/ or val/; decoded as they are needed, kd/data/jpeg.py).
    source:     archive or folder; cifar10 and cifar100 default to the archive of data.dvc, whose size and md5
                are then checked.
    validation: images held out of train, stratified by class, always the same; default 257 for digits, else 0.
    padding:    pixels; default an eighth of the height: 4 at 32x32.  flip: default yes, except for digits.
    size:       imagefolder: resize to size x size pixels (shorter side, then the centre); default: as they are.
                jpegfolder: random crops and the centre are made this large; default 224.
    mean, std:  one number a channel in [0, 1] units; default those of train; jpegfolder: ImageNet's.
    images_per_class: train images kept of each class, always the same ones; default all. See Data.subset.
    md5:        of `source`, 32 hexadecimal digits: another archive of that name is refused; default: any will do.

    Raises ConfigError for whatever is wrong with these or with the files.
    """
    if name not in NAMES:
        raise ConfigError(f"no data called {name!r}{nearest(name, NAMES)}: there are {', '.join(NAMES)}")
    validation = (257 if name == "digits" else 0) if validation is None else validation
    if size is not None and name not in ("imagefolder", "jpegfolder"):
        raise ConfigError(f"data.size: for imagefolder and jpegfolder only; {name} must go without")
    for key, value in (("padding", padding), ("md5", md5)):
        if value is not None and name == "jpegfolder":
            raise ConfigError(f"data.{key}: not for jpegfolder, whose crops lie within the image and whose bytes nobody reads beforehand; set it to null")
    if name == "digits":
        if source is not None:
            raise ConfigError(f"digits come with scikit-learn: source={str(source)!r} must go")
        data = _data(name, *_digits(), validation)
    elif name == "jpegfolder":
        data, padding = index_jpegs(source, validation, size or 224), 0
    else:
        source, digest = source_of(name, source, cache, md5)
        options = hashlib.md5(
            json.dumps([FORMAT, validation, size]).encode(), usedforsecurity=False
        ).hexdigest()
        kept = cache and Path(cache) / f"{name}-{digest[:8]}-{options[:8]}.safetensors"
        data = None
        if kept and kept.exists():
            with suppress(ConfigError):  # a damaged cache is no harm: it is made again
                data = Data.open(kept)
        if data is None:
            # a second process that decodes the same waits, and finds the tensors there
            with alone(kept.with_name(f".{kept.name}.lock"), f"another reading of {source}", waiting=say) if kept else nullcontext():
                if kept and kept.exists():
                    with suppress(ConfigError):
                        data = Data.open(kept)
                if data is None:
                    content = _imagefolder(source, size) if name == "imagefolder" else _cifar(name, source)
                    data = _data(name, *content, validation)
                    if kept:
                        data.save(kept)
    padding = data.image_shape[1] // 8 if padding is None else padding
    if not 0 <= padding < data.image_shape[1]:
        raise ConfigError(f"padding={padding}: 0 to {data.image_shape[1] - 1} pixels")
    flip = name != "digits" if flip is None else bool(flip)
    mean, std = (
        tuple(map(float, own if given is None else given))
        for given, own in ((mean, data.mean), (std, data.std))
    )
    if not len(mean) == len(std) == data.image_shape[0] or min(std) <= 0:
        raise ConfigError(
            f"mean={mean}, std={std}: {data.image_shape[0]} numbers each (one a channel), std above 0"
        )
    data = dataclasses.replace(data, mean=mean, std=std, padding=padding, flip=flip)
    return data.subset(images_per_class, 0) if images_per_class else data


def _data(name, classes, train, test, validation):
    """Data from (images, labels) arrays of train and test, with `validation` images of train held out."""
    images, labels = train
    kept, held = slice(None), slice(0)  # slices copy nothing
    if validation:
        kept, held = stratified(labels, validation, f"validation={validation}")
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


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    train, test = stratified(digits.target, 540, "540 digits")
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


def _check_memo(raw):
    """Raise UnpicklingError for a pickle that numbers what it remembers beyond its own length: Python would make room for it."""
    for opcode, number, _ in pickletools.genops(raw):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and number > len(raw):
            raise pickle.UnpicklingError(f"it remembers something as number {number:,}")


def _cifar(name, source):
    """(class names, (images, labels) of train, of test) from the original python archive, N x 3072 bytes."""
    fine = b"fine_label" if name == "cifar100" else b"label"
    test_file, meta_file, train_file = "test_batch", "batches.meta", "data_batch_"
    if name == "cifar100":
        test_file, meta_file, train_file = "test", "meta", "train"
    found = {}

    def wanted(path):
        name = PurePosixPath(path).name
        return name in (test_file, meta_file) or name.startswith(train_file)

    for path, raw in files_in(source, wanted):
        file = PurePosixPath(path).name
        if raw is None or not wanted(path):
            continue
        try:
            _check_memo(raw)
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
            raise ConfigError(f"{source}: {path} is no CIFAR file ({what}): get the archive again") from None
    test, classes = found.pop(test_file, None), found.pop(meta_file, None)
    if test is None or classes is None or not found:
        raise ConfigError(
            f"{source} lacks {test_file}, {meta_file} or the train files of {name}: get the archive again"
        )
    train = tuple(np.concatenate(part) for part in zip(*(found[file] for file in sorted(found)), strict=True))
    labels = np.concatenate([train[1], test[1]])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ConfigError(f"{source} has labels outside of its {len(classes)} classes: get the archive again")
    return classes, train, test


def _decode(items, size):
    """uint8 arrays (H, W) for grey, (H, W, 3) for all other images, of [(path, bytes)]."""
    arrays = []
    for path, raw in items:
        try:
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels, more than {MOST_PIXELS:,}")
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
            raise ConfigError(f"the image {path} cannot be decoded ({what}): replace or remove it") from None
    return arrays


def _imagefolder(source, size):
    """(class names, (images, labels) of train, of test), classes and images in the order of their names."""
    found, chunk, jobs = Folders(source), [], []
    workers, bar = min(8, os.cpu_count() or 1), tqdm(desc=source.name, unit=" images", disable=None)
    with ThreadPoolExecutor(workers) as pool, bar:
        for path, raw in files_in(source, lambda path: Path(path).suffix.lower() in IMAGES):
            if not found.take(path, is_folder=raw is None):
                continue
            chunk.append((path, raw))
            bar.update()
            if len(chunk) == 64:
                jobs.append(([path for path, _ in chunk], pool.submit(_decode, chunk, size)))
                chunk = []
                if len(jobs) > 64:
                    jobs[-64][1].result()  # the reader waits for the decoders: no second archive in memory
        jobs.append(([path for path, _ in chunk], pool.submit(_decode, chunk, size)))
        arrays = {path: array for paths, job in jobs for path, array in zip(paths, job.result(), strict=True)}
    classes = found.check()
    shape, _ = Counter(array.shape[:2] for array in arrays.values()).most_common(1)[0]
    for path, array in sorted(arrays.items()):
        if array.shape[:2] != shape:
            (h, w), (height, width) = array.shape[:2], shape
            raise ConfigError(
                f"{source}: {path} has {w}x{h} pixels, most have {width}x{height}: give size=PIXELS to resize"
            )
    grey = all(array.ndim == 2 for array in arrays.values())
    label_of, parts = {class_name: label for label, class_name in enumerate(classes)}, []
    for split in ("train", "test"):
        paths = sorted(path for path, place in found.images.items() if place[0] == split)
        images = np.empty((len(paths), 1 if grey else 3, *shape), np.uint8)
        for image, path in zip(images, paths, strict=True):
            array = arrays.pop(path)
            image[:] = (
                array if array.ndim == 2 else array.transpose(2, 0, 1)
            )  # grey among coloured: thrice the same
        parts.append((images, np.array([label_of[found.images[path][1]] for path in paths])))
    return classes, *parts
