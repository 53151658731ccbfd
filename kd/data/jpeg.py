"""Images that stay JPEG files, in a folder or a tar archive, and are decoded when they are needed: data of any size, such as ImageNet.

    data = kd.load_data("jpegfolder", "imagenet", size=224, validation=10_000)

Training sees RandomResizedCrop and RandomHorizontalFlip, evaluation Resize (256/224 of the size) and CenterCrop: the transforms of
torchvision's references/classification, which are torchvision.transforms.v2's own here. What they draw for an image is a function of
(seed, epoch, image), whatever the batch and however many processes decode: so runs can be paired, shared and resumed. Processes decode
ahead of the loop; images are normalised on the device.
"""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader

from kd.checkpoints import write_atomically
from kd.data.dataset import SPLITS, Batch, Data, _generator, check_split, normaliser, wanted_places
from kd.errors import ConfigError

MARGIN = 256 / 224  # evaluation: the shorter side before the centre is cut out, in sizes


@dataclasses.dataclass(eq=False)
class Files:
    """Where the images of a split lie, and what evaluation sees of them: files[i] is uint8 (3, size, size), of several (N, 3, size, size).

    source: the folder or archive; folder: of this split in it. names: all names, CLASS/FILE, one after another, uint8.
    numbers: int64 (4, N), of each image where its name begins in names and where it ends, the image's first byte in the archive (-1: it
    is a file of its own), and how many bytes it has.
    """

    source: str
    folder: str
    size: int
    names: torch.Tensor
    numbers: torch.Tensor

    def __len__(self):
        return self.numbers.shape[1]

    @property
    def shape(self):
        return len(self), 3, self.size, self.size

    def name(self, place):
        """The name of an image, CLASS/FILE, as bytes."""
        begin, end = self.numbers[:2, place].tolist()
        return self.names[begin:end].numpy().tobytes()

    def all_names(self):
        """The names of all images, in their order."""
        names, (begins, ends) = self.names.numpy().tobytes(), self.numbers[:2].tolist()
        return [names[begin:end] for begin, end in zip(begins, ends, strict=True)]

    def select(self, places):
        """The files of those images alone, int64 (N,)."""
        return dataclasses.replace(self, numbers=self.numbers[:, places])

    def read(self, place):
        """The bytes of an image, a tensor. ConfigError if they are not there any more."""
        first, count = self.numbers[2:, place].tolist()
        path = self.source if first >= 0 else os.path.join(self.source, self.folder, os.fsdecode(self.name(place)))
        raw = bytearray(count + (first < 0))  # one more: so that a file that has grown is seen
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(max(first, 0))
                found = file.readinto(raw)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}): restore it, or index the images anew with `dvc repro -f data`") from None
        if found != count:
            raise ConfigError(f"{self.place(place)} has not the {count:,} bytes of its index: index the images anew with `dvc repro -f data`")
        return torch.frombuffer(raw, dtype=torch.uint8)[:count]

    def decode(self, place):
        """An image, uint8 (3, H, W), grey ones in three equal channels. ConfigError names one that cannot be decoded."""
        from torchvision.io import ImageReadMode, decode_image

        raw = self.read(place)
        try:
            return decode_image(raw, mode=ImageReadMode.RGB)
        except RuntimeError as error:
            reason = " ".join(str(error).split()).partition(" Exception raised")[0]
            raise ConfigError(f"{self.place(place)} cannot be decoded ({reason:.100}): get it again or remove it") from None

    def place(self, place):
        """How messages name an image."""
        return f"{self.source}{':' if self.numbers[2, place] >= 0 else os.sep}{self.folder}/{os.fsdecode(self.name(place))}"

    def __getitem__(self, item):
        transform = transforms(self.size)[1]
        if isinstance(item, int) or (isinstance(item, torch.Tensor) and item.ndim == 0):
            return transform(self.decode(int(item)))
        return torch.stack([self[int(place)] for place in torch.arange(len(self))[item]])


@functools.cache
def transforms(size, flip=True):
    """(of training, of evaluation): torchvision's, of uint8 (3, H, W) to (3, size, size)."""
    from torchvision.transforms import v2  # slow to import

    train = [v2.RandomResizedCrop(size), *[v2.RandomHorizontalFlip()] * flip]
    return v2.Compose(train), v2.Compose([v2.Resize(round(size * MARGIN)), v2.CenterCrop(size)])


class Decoded(torch.utils.data.Dataset):
    """Item places, int64 (N,): (places, those images transformed, uint8 (N, size, size, 3), what is wrong with one or "").

    key: what the draws of an image hang on beside its place; None: it is evaluated, nothing is drawn.
    """

    def __init__(self, files, flip, key=None):
        self.files, self.key, self.transform = files, key, transforms(files.size, flip)[0 if key else 1]

    def __getitem__(self, places):
        size, before, problem = self.files.size, torch.get_rng_state(), ""
        images = torch.empty(len(places), size, size, 3, dtype=torch.uint8)
        try:
            for image, place in zip(images, places.tolist(), strict=True):
                decoded = self.files.decode(place)
                if self.key:  # torchvision's transforms draw from torch's own generator
                    torch.set_rng_state(_generator("image", *self.key, place).get_state())
                image.copy_(self.transform(decoded).permute(1, 2, 0))
        except ConfigError as error:  # told, not raised: an exception would come out of a worker with its traceback as message
            problem = str(error)
        torch.set_rng_state(before)
        return places, images, problem


@dataclasses.dataclass(eq=False)
class Jpegs(Data):
    """Data whose images are Files. Its interface is Data's; no padding: crops lie within the image.

    device: where batches go; labels lie there. workers: processes that decode; 0: the loop's own.
    """

    flip: bool = True
    device: torch.device | str = "cpu"
    workers: int = 0

    @functools.cached_property
    def md5(self):
        """hex, of the images' names and sizes, labels, classes, and what is made of an image: all that changes a run, but for the pixels.

        Reading all of ImageNet would take longer than an epoch, and a photograph that is replaced has another size. The same images give
        the same md5 in a folder and in an archive.
        """
        rest = [self.classes, self.mean, self.std, self.flip, self.image_shape]
        digest = hashlib.md5(json.dumps(rest).encode(), usedforsecurity=False)
        for split in SPLITS:
            files = self.images[split]
            digest.update(f"{split} {len(files)}".encode())
            digest.update(b"\0".join(files.all_names()))
            for numbers in (files.numbers[-1], self.labels[split].cpu()):
                digest.update(numbers.contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device):
        labels = {split: values.to(device) for split, values in self.labels.items()}
        moved = dataclasses.replace(self, labels=labels, device=device)
        if "md5" in vars(self):
            moved.md5 = self.md5
        return moved

    def subset(self, images_per_class, seed):
        kept = self.few(images_per_class, seed)
        images, labels = self.images | {"train": self.images["train"].select(kept)}, self.labels | {"train": self.labels["train"][kept]}
        return dataclasses.replace(self, name=f"{self.name}-{images_per_class}", images=images, labels=labels)

    def batches(self, seed, epoch, batch_size, dtype=torch.float32, part=None):
        order = torch.randperm(len(self.labels["train"]), generator=_generator("epoch", seed, epoch))
        wanted = [order[places] for places in wanted_places(len(order), batch_size, part)]
        yield from self.decoded("train", wanted, dtype, (seed, epoch))

    def chunks(self, split, size, dtype=torch.float32, first=0, every=1):
        check_split(split)
        count = len(self.labels[split])
        begins = range(first * size, count, every * size)
        yield from self.decoded(split, [torch.arange(begin, min(begin + size, count)) for begin in begins], dtype)

    def sample(self, split, count, dtype=torch.float32):
        return next(self.decoded(split, [self.spread(split, count)], dtype))

    def decoded(self, split, parts, dtype, key=None):
        """A Batch for each of `parts`, places in a split, int64 (N,). key: as Decoded's. ConfigError names a bad image."""
        loader = DataLoader(
            Decoded(self.images[split], self.flip, key),
            sampler=parts,
            batch_size=None,  # an item is a batch already
            num_workers=self.workers,
            multiprocessing_context="fork" if self.workers else None,  # another start would copy the index
            pin_memory=torch.device(self.device).type == "cuda",
            generator=torch.Generator(),  # else it draws from torch's own, and networks with dropout would notice
        )
        normalise = normaliser(self.mean, self.std, self.image_shape[2], self.device, dtype)
        for index, images, problem in loader:
            if problem:
                raise ConfigError(problem)
            index = index.to(self.device)
            yield Batch(normalise(images.to(self.device, non_blocking=True)), self.labels[split][index], index)

    def save(self, path):
        """Write the index to one safetensors file, whole or not at all; the images stay where they are. Equal data give equal bytes."""
        files, tensors = self.images["train"], {"names": self.images["train"].names}
        for split in SPLITS:
            tensors |= {f"{split}.numbers": self.images[split].numbers.contiguous(), f"{split}.labels": self.labels[split].cpu()}
        rest = {key: getattr(self, key) for key in ("name", "classes", "mean", "std", "flip", "md5")}
        rest |= {"source": files.source, "size": files.size, "folders": [self.images[split].folder for split in SPLITS]}
        write_atomically(path, save(tensors, metadata={"data": json.dumps(rest)}))


def open_jpegs(path, device="cpu", workers=0):
    """The Jpegs whose index `save` wrote. ConfigError if that file is missing or damaged, or the images are gone."""
    rest = Data.stated(path)
    source, size, folders, md5 = (rest.pop(key) for key in ("source", "size", "folders", "md5"))
    if not Path(source).exists():
        raise ConfigError(f"{source}, which {path} is the index of, is gone: bring it back, or `python -m kd use PROFILE --archive PATH`")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.get_tensor("names")
            images = {s: Files(source, f, size, names, file.get_tensor(f"{s}.numbers")) for s, f in zip(SPLITS, folders, strict=True)}
            labels = {split: file.get_tensor(f"{split}.labels") for split in SPLITS}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} is no whole index ({error}): delete it and run `dvc repro data`") from None
    rest = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    data = Jpegs(images=images, labels=labels, workers=workers, **rest)
    if data.md5 != md5:
        raise ConfigError(f"{path} is damaged (md5 {data.md5}, not {md5}): delete it and run `dvc repro data`")
    return data.to(device)
