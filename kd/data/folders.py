"""Folders of images, train/CLASS/* and test/CLASS/*: which image is of which class; the index of JPEG files that stay where they are."""

import os
import stat
import tarfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

from kd.data.fetch import IMAGES, check_readable, look, path_inside, walk
from kd.data.jpeg import Files, Jpegs
from kd.errors import ConfigError

JPEGS = {".jpg", ".jpeg"}
# of the images on which torchvision's weights were trained, in [0, 1] units (torchvision references/classification/presets.py)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Folders:
    """What a listing of SPLIT/CLASS/* says, taken entry by entry; possibly all of it lies below one top folder.

    splits: names of the folders that count. images: {path: (split, class)} of the images taken; classes: {split: names};
    tops: the top folders that they lie below, "" or "NAME/".
    """

    def __init__(self, source, splits=("train", "test")):
        self.source, self.images, self.classes, self.tops = source, {}, {split: set() for split in splits}, set()

    def take(self, path, is_folder=False):
        """Note an entry, a path with slashes. Returns whether it is an image of a class."""
        parts = PurePosixPath(path).parts
        at = next((i for i in (0, 1) if parts[i : i + 1] and parts[i] in self.classes), None)
        if at is None or len(parts) < at + 2 or any(part.startswith(".") for part in parts):
            return False
        split, class_name = parts[at], parts[at + 1]
        if is_folder or len(parts) > at + 2:
            self.classes[split].add(class_name)
        if is_folder or len(parts) == at + 2 or Path(path).suffix.lower() not in IMAGES:
            return False
        self.images[path] = split, class_name
        self.tops.add("".join(f"{part}/" for part in parts[:at]))
        return True

    def check(self):
        """The class names, sorted. ConfigError unless train and test have the same classes, two or more, and images of each."""
        source = self.source
        if len(self.tops) > 1:
            raise ConfigError(f"{source} has train or test folders in several places, {', '.join(sorted(self.tops))!r}: keep one")
        for split, names in self.classes.items():
            if not names:
                raise ConfigError(f"{source} has no {split}/CLASS/ folders: it needs train/CLASS/* and test/CLASS/*")
            if empty := sorted(names - {class_name for there, class_name in self.images.values() if there == split}):
                raise ConfigError(f"{source}: {split}/{empty[0]} holds no images: add some or remove the folder")
        (train, trained), (test, tested) = self.classes.items()
        if odd := sorted(trained ^ tested):
            has, lacks = (train, test) if odd[0] in trained else (test, train)
            raise ConfigError(f"{source}: class {odd[0]!r} is in {has}/ and not in {lacks}/: add it there or remove it")
        if len(trained) == 1:
            raise ConfigError(f"{source} has one class alone, {min(trained)!r}: there is nothing to tell apart; add others")
        return sorted(trained)


def stratified(labels, held_out, what):
    """Places (kept, held out) of a fixed stratified split, each in its old order."""
    from sklearn.model_selection import train_test_split  # slow to import, seldom needed

    try:
        parts = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=0, stratify=labels)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{what} cannot be held out of {len(labels)} train images ({error}): choose another number"
        ) from None
    return (np.sort(part) for part in parts)


def index_jpegs(source, validation=0, size=224):
    """The Jpegs of a folder or plain .tar archive of train/CLASS/*.jpg and test/CLASS/*.jpg; val/ is taken for test/, as ImageNet has it.

    validation: images held out of train, stratified by class, always the same. size: pixels that crops are made to. No image is read:
    the index is names, sizes and, in an archive, where each image begins. ConfigError for whatever is wrong with the files.
    """
    if source is None or not Path(source).exists():
        raise ConfigError(f"jpegfolder needs a source, a folder or .tar of train/CLASS/* and test/CLASS/*: {source} is not there")
    check_readable(source)
    source = Path(source).absolute()
    found, places = Folders(source, ("train", "val", "test")), {}
    for path, begin, count in tqdm(_entries(source), desc=source.name, unit=" files", disable=None):
        if found.take(path, is_folder=count is None):
            if Path(path).suffix.lower() not in JPEGS:
                raise ConfigError(f"{source}: {path} is no .jpg or .jpeg: convert it, or take data.name: imagefolder, which decodes all at once")
            if count == 0:
                raise ConfigError(f"{source}: {path} is empty: get it again or remove it")
            places[path] = begin, count
    if found.classes["val"] and found.classes["test"]:
        raise ConfigError(f"{source} has classes in val/ and in test/: keep one of them, the images to test on")
    del found.classes["test" if found.classes["val"] else "val"]
    classes, paths = found.check(), defaultdict(list)
    for path in sorted(places):
        paths[found.images[path][0]].append(path)
    (top,), label_of = found.tops, {name: label for label, name in enumerate(classes)}
    names, files, labels = [], {}, {}
    for split, folder in zip(("train", "test"), found.classes, strict=True):
        own = [os.fsencode(path.removeprefix(f"{top}{folder}/")) for path in paths[folder]]
        sizes = np.array([len(name) for name in own])
        ends = sizes.cumsum() + sum(map(len, names))
        numbers = np.stack([ends - sizes, ends, *np.array([places[path] for path in paths[folder]]).T])
        names += own
        files[split] = Files(str(source), f"{top}{folder}", size, None, torch.from_numpy(numbers))
        labels[split] = torch.tensor([label_of[found.images[path][1]] for path in paths[folder]])
    blob = torch.from_numpy(np.frombuffer(bytearray(b"".join(names)), np.uint8))
    for part in files.values():
        part.names = blob
    kept, held = torch.arange(len(labels["train"])), torch.arange(0)
    if validation:
        kept, held = map(torch.from_numpy, stratified(labels["train"].numpy(), validation, f"validation={validation}"))
    files = {"train": files["train"].select(kept), "validation": files["train"].select(held), "test": files["test"]}
    labels = {"train": labels["train"][kept], "validation": labels["train"][held], "test": labels["test"]}
    return Jpegs("jpegfolder", tuple(classes), files, labels, MEAN, STD, workers=os.cpu_count())


def _entries(source):
    """(path, first byte, bytes) of every file of a folder or tar archive, bytes None for a folder; first byte -1 in a folder."""
    if source.is_dir():
        for folder, path in walk(source):
            name = (folder if path is None else path).relative_to(source).as_posix()
            if path is None or Path(name).suffix.lower() not in IMAGES:
                yield name, -1, None if path is None else 1  # what is no image is not looked at
                continue
            about = look(path, os.stat)
            if not stat.S_ISREG(about.st_mode):  # whoever opens a pipe waits for ever
                raise ConfigError(f"{path} is a pipe, a device or the like, not a file: remove it")
            yield name, -1, about.st_size
        return
    try:
        with open(source, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # else it remembers all of them
                path = path_inside(source, member)
                if member.isdir() or member.isfile():
                    yield path, member.offset_data, None if member.isdir() else member.size
            # a damaged header looks like the end to tarfile: the true end is a block of zeros
            raw.seek(tar.offset)
            if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, OSError, ValueError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        remedy = "a packed archive (.tar.gz, .tar.xz) must be unpacked first, to .tar or a folder, for its images to be read one by one"
        raise ConfigError(f"{source} is not a whole plain tar archive ({what}): {remedy}") from None
