"""JPEG files that are decoded as they are needed: what is drawn, what is read, what is said of files that are not right."""

import dataclasses
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

import kd
from kd.data import dataset
from kd.data.jpeg import Jpegs, open_jpegs
from kd.data.stream import open_data_for, open_stream
from kd.errors import ConfigError
from kd.side_by_side import Shared
from kd.teachers import adopt_route

SIZE = 16
CLASSES = ("ape", "bee", "cat")


def photograph(number, label):
    """A picture of smooth colours, of one of several sizes: decoders agree on it, and classes differ."""
    width, height = 20 + 3 * (number % 4), 18 + 5 * (number % 3)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (2 + label) + number), np.cos(y / (3 + label) - number), np.sin((x + y) / 7 + label)]
    pixels = (127 + 60 * np.stack(waves, -1)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if number == 5 else pixels)  # a grey one among them, as in ImageNet


def write_photographs(folder, test="val"):
    for split, count in (("train", 9), (test, 4)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                path = folder / split / name / f"{name}_{number}.{'JPEG' if number % 2 else 'jpg'}"
                photograph(number, label).save(path, "JPEG", quality=90)
    (folder / "LOC_val_solution.csv").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs") / "imagenet")


@pytest.fixture(scope="module")
def archive(folder):
    with tarfile.open(folder.parent / "imagenet.tar", "w") as tar:
        tar.add(folder, folder.name)  # below one top folder
    return folder.parent / "imagenet.tar"


def load(source, workers=0, **options):
    return dataclasses.replace(kd.load_data("jpegfolder", source, size=SIZE, **{"validation": 6, **options}), workers=workers)


def by_image(data, batch_size=10, seed=3, epoch=2):
    return {int(place): image for batch in data.batches(seed, epoch, batch_size) for place, image in zip(batch.index, batch.images, strict=True)}


def test_what_an_image_looks_like_hangs_on_seed_epoch_and_image_alone(folder, archive):
    first = by_image(load(folder))
    assert sorted(first) == list(range(21))
    for other in (load(folder, workers=2), load(folder, workers=1), load(archive), load(archive, workers=2)):
        for batch_size in (10, 7):
            again = by_image(other, batch_size)
            assert all(torch.equal(first[place], again[place]) for place in first) and len(again) == len(first)
    for seed, epoch in ((3, 3), (4, 2)):
        again = by_image(load(folder), seed=seed, epoch=epoch)
        assert not any(torch.equal(first[place], again[place]) for place in first)


def test_training_sees_torchvisions_own_transforms(folder):
    """By hand: decoded by PIL, cropped where torchvision's transform says, from the generator of this image."""
    data = load(folder)
    batch = next(data.batches(3, 2, 21))
    order = torch.randperm(21, generator=dataset._generator("epoch", 3, 2))
    assert torch.equal(batch.index, order) and torch.equal(batch.labels, data.labels["train"][order])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    transform = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
    for place, image in zip(batch.index.tolist(), batch.images, strict=True):
        name = data.images["train"].name(place).decode()
        pixels = v2.functional.pil_to_tensor(Image.open(folder / "train" / name).convert("RGB"))
        torch.set_rng_state(dataset._generator("image", 3, 2, place).get_state())
        expected = (transform(pixels).float() / 255 - mean) / std
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_evaluation_is_torchvisions_image_folder(folder):
    data, transform = load(folder), v2.Compose([v2.PILToTensor(), v2.Resize(round(SIZE * 256 / 224)), v2.CenterCrop(SIZE)])
    peer = datasets.ImageFolder(folder / "val", transform)
    assert data.classes == tuple(peer.classes) == CLASSES and len(data.labels["test"]) == len(peer)
    for place, (image, label) in enumerate(peer):
        assert torch.equal(data.images["test"][place], image) and int(data.labels["test"][place]) == label
    chunks = list(dataclasses.replace(data, workers=2).chunks("test", 5))
    assert [len(chunk.labels) for chunk in chunks] == [5, 5, 2] and torch.equal(torch.cat([chunk.index for chunk in chunks]), torch.arange(12))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    both = torch.cat([chunk.images for chunk in chunks]), (torch.stack([image for image, _ in peer]) / 255 - mean) / std
    torch.testing.assert_close(*both, atol=1e-5, rtol=0)
    assert torch.equal(data.sample("test", 12).images, both[0]) and data.sample("test", 4).index.tolist() == [0, 3, 6, 9]
    with pytest.raises(ConfigError, match="no split 'tst'"):
        next(data.chunks("tst", 5))


def test_the_interface_is_datas(folder):
    data = load(folder)
    assert data.image_shape == (3, SIZE, SIZE) and data.steps(10) == 3 and tuple(data.images) == dataset.SPLITS
    assert data.images["train"][[0, 3]].shape == (2, 3, SIZE, SIZE) and len(data.images["validation"]) == 6
    batch = next(data.batches(0, 0, 4))
    assert batch.images.is_contiguous(memory_format=torch.channels_last) and batch.labels.dtype == torch.int64
    held = {data.images["validation"].name(place) for place in range(6)}
    assert len(held) == 6 and not held & {data.images["train"].name(place) for place in range(21)}
    assert torch.bincount(data.labels["validation"]).tolist() == [2, 2, 2]
    few = data.subset(2, 0)
    assert torch.bincount(few.labels["train"]).tolist() == [2, 2, 2] and few.md5 != data.md5 and len(few.images["train"]) == 6
    assert all(few.classes[label] == few.images["train"].name(place).decode().split("/")[0] for place, label in enumerate(few.labels["train"]))


def test_the_md5_is_of_names_sizes_and_what_is_made_of_them(folder, archive, tmp_path):
    data = load(folder)
    assert data.md5 == load(archive).md5 == load(folder).md5
    others = [load(folder, validation=3), load(folder, flip=False), load(folder, mean=[0.5] * 3), kd.load_data("jpegfolder", folder, size=17, validation=6)]
    copied = write_photographs(tmp_path / "copied", test="test")
    assert load(copied).md5 == data.md5  # nor does it matter where they lie, or that val/ is called test/
    with open(copied / "train" / "bee" / "bee_2.jpg", "ab") as file:
        file.write(b"\0")
    others.append(load(copied))
    (copied / "train" / "bee" / "bee_2.jpg").rename(copied / "train" / "bee" / "renamed.jpg")
    others.append(load(copied))
    assert len({data.md5, *(other.md5 for other in others)}) == 1 + len(others)


def test_the_index_is_opened_as_the_data_that_it_is_of(archive, tmp_path):
    data, path = load(archive), tmp_path / "images.safetensors"
    data.save(path)
    content = path.read_bytes()
    for again in (open_data_for(path, decoders=2), open_stream(path)):
        assert isinstance(again, Jpegs) and again.md5 == data.md5
        first, second = by_image(data), by_image(again)
        assert all(torch.equal(first[place], second[place]) for place in first)
    assert again.to("cpu").md5 == data.md5
    again.save(path)
    assert path.read_bytes() == content
    path.write_bytes(content[:-8] + bytes(7) + b"\1")
    with pytest.raises(ConfigError, match=r"images.safetensors is damaged"):
        open_jpegs(path)
    path.write_bytes(content[:300])
    with pytest.raises(ConfigError, match=r"images.safetensors"):
        open_jpegs(path)


def test_decoding_leaves_torchs_generator_alone(folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(load(folder, workers).batches(0, 0, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_runs_side_by_side_see_the_same_batches(folder):
    data = load(folder, workers=1)
    shared, alone = Shared(data), list(data.batches(1, 0, 8))
    pairs = zip(shared.batches(1, 0, 8), shared.batches(1, 0, 8), alone, strict=True)
    assert all(a.images is b.images and torch.equal(a.images, c.images) for a, b, c in pairs)


def test_training_ends_in_the_same_bits_and_learns(folder):
    networks = []
    for workers in (0, 2):
        torch.manual_seed(0)
        networks.append(kd.build("cnn3x4", 3))
        curve = kd.train(networks[-1], load(folder, workers), kd.Recipe(epochs=3, batch_size=8)).curve
    assert curve[-1]["loss"]["labels"] < curve[0]["loss"]["labels"]
    for a, b in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(a, b)


def damaged(tmp_path, content=None, name="train/cat/cat_3.JPEG"):
    folder = write_photographs(tmp_path / "damaged")
    path = folder / name
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    return folder


@pytest.mark.parametrize("workers", (0, 2))
@pytest.mark.parametrize("content", (None, b"<html>not found</html>"))
def test_a_corrupt_file_is_named(tmp_path, workers, content):
    data = load(damaged(tmp_path, content), workers, validation=0)
    with pytest.raises(ConfigError, match=r"damaged/train/cat/cat_3.JPEG cannot be decoded \(.+\): get it again or remove it") as caught:
        list(data.batches(0, 0, 8))
    assert "\n" not in str(caught.value)


def test_a_corrupt_file_in_an_archive_and_one_that_has_changed_are_named(tmp_path):
    folder = damaged(tmp_path)
    with tarfile.open(tmp_path / "damaged.tar", "w") as tar:
        tar.add(folder, ".")
    with pytest.raises(ConfigError, match=r"damaged.tar:train/cat/cat_3.JPEG cannot be decoded"):
        list(load(tmp_path / "damaged.tar", validation=0).batches(0, 0, 8))
    data, path = load(folder, validation=0), folder / "val" / "ape" / "ape_0.jpg"
    for content in (path.read_bytes() + b"\0", path.read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"ape_0.jpg has not the [\d,]+ bytes of its index"):
            list(data.chunks("test", 8))
    path.unlink()
    with pytest.raises(ConfigError, match=r"ape_0.jpg cannot be read \(No such file"):
        list(data.chunks("test", 8))


def both_tests(folder):
    (folder / "test" / "ape").mkdir(parents=True)
    (folder / "test" / "ape" / "a.jpg").write_bytes(b"x")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda f: (f / "train/cat/cat_3.JPEG").write_bytes(b""), "train/cat/cat_3.JPEG is empty"),
        (lambda f: (f / "train/cat/more.png").write_bytes(b"x"), r"train/cat/more.png is no .jpg or .jpeg: convert it, or take data.name: imagefolder"),
        (lambda f: (f / "train/dog").mkdir(), "train/dog holds no images"),
        (lambda f: (f / "val/cat").rename(f / "val/dog"), r"class 'cat' is in train/ and not in val/"),
        (both_tests, r"classes in val/ and in test/: keep one"),
        (lambda f: (f / "val").rename(f / "evaluation"), "has no test/CLASS/ folders"),
    ],
)
def test_a_folder_that_is_not_right_is_refused(tmp_path, change, said):
    folder = write_photographs(tmp_path / "odd")
    change(folder)
    with pytest.raises(ConfigError, match=said):
        load(folder)


def test_what_cannot_be_read_by_offset_is_refused(archive, tmp_path):
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(archive, "imagenet.tar")
    with pytest.raises(ConfigError, match=r"packed.tar.gz is not a whole plain tar archive .*must be unpacked first"):
        load(packed)
    content = archive.read_bytes()
    for end in (len(content) // 2, len(content) // 2 // 512 * 512):
        (tmp_path / "cut.tar").write_bytes(content[:end])
        with pytest.raises(ConfigError, match=r"cut.tar is not a whole plain tar archive"):
            load(tmp_path / "cut.tar")


@pytest.mark.parametrize("options, said", [({"padding": 2}, "data.padding: not for jpegfolder"), ({"md5": "0" * 32}, "data.md5: not for jpegfolder"), ({"std": [0.5]}, "3 numbers each")])
def test_options_that_make_no_sense_are_refused(folder, options, said):
    with pytest.raises(ConfigError, match=said):
        load(folder, **options)
    with pytest.raises(ConfigError, match="nowhere is not there"):
        kd.load_data("jpegfolder", "nowhere")


# teachers that others have trained


@pytest.fixture
def weights(tmp_path):
    """torchvision's ResNet-18 for three classes as it is handed on, without batch counts as in torchvision's older files."""
    torch.manual_seed(1)
    network = kd.build("torchvision-resnet18", 3)
    state = {key: value for key, value in network.module.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet18.pth")
    return network, tmp_path / "resnet18.pth"


def test_a_teacher_of_others_weights_is_a_route_of_one_state(folder, tmp_path, weights):
    network, file = weights
    data, recipe = load(folder), kd.Recipe(epochs=2, batch_size=12)
    adopt_route("torchvision-resnet18", data, recipe, tmp_path / "route.safetensors", file)
    route = kd.Route(tmp_path / "route.safetensors", network="torchvision-resnet18", data=data.md5)
    batch = data.sample("test", 12)
    with torch.no_grad():
        assert len(route) == 1 and torch.equal(route[-1](batch.images).logits, network.eval()(batch.images).logits)
    assert route.accuracy == [{split: kd.evaluate(network, data, split) for split in ("validation", "test")}]
    with pytest.raises(ConfigError, match=r"RCO needs a route of several states.*train the teacher \(no teacher.weights\)"):
        kd.distill(kd.build("cnn3x4", 3), kd.RCO() * kd.KD(), kd.Teachers(route=route), data, recipe)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path, weights):
    file, target = weights[1], tmp_path / "route.safetensors"
    state = torch.load(file, weights_only=True)

    def refused(said, network="torchvision-resnet18"):
        with pytest.raises(ConfigError, match=said):
            adopt_route(network, load(folder), kd.Recipe(), target, file)
        assert not target.exists()

    refused("the weights do not fit", "torchvision-resnet34")
    torch.save(state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, file)
    refused(r"resnet18.pth is of a network for 1000 classes, and the data have 3")
    torch.save({"model": state}, file)
    refused("holds no state_dict")
    file.write_bytes(b"nothing")
    refused("resnet18.pth is no file of weights")
    file.unlink()
    refused("resnet18.pth is missing")
