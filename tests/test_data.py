"""Data: the usual transforms' distribution, purity of the draws, readers of archives, and their problems."""

import dataclasses
import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from scipy.stats import chisquare
from torchvision.transforms import v2

from kd.data import Data, dataset, fetch, load_data, readers
from kd.errors import ConfigError


def make_data(train=12, channels=3, padding=2, flip=True, **changes):
    made = tiny.data(train, 0, 5, channels=channels, padding=padding, flip=flip)
    return dataclasses.replace(made, **changes)


def pixels(data, batch):
    """The uint8 images of a batch, normalisation undone."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    return ((batch.images * std + mean) * 255).round().to(torch.uint8)


def outputs_of_torchvision(image, padding):
    """{bytes of an output: (top, left, flipped)} of all that RandomCrop + RandomHorizontalFlip can make."""
    size, results = image.shape[-1], {}
    padded = v2.functional.pad(image, [padding] * 4, fill=0)
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = v2.functional.crop(padded, top, left, size, size)
            results[crop.numpy().tobytes()] = (top, left, 0)
            results[v2.functional.horizontal_flip(crop).numpy().tobytes()] = (top, left, 1)
    return results


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_and_flips_are_torchvision_s_uniformly(channels):
    data = make_data(channels=channels, padding=2)
    possible = [outputs_of_torchvision(image, 2) for image in data.images["train"]]
    assert all(len(outputs) == 25 * 2 for outputs in possible)  # so that a draw is read off the output
    draws = []
    for epoch in range(250):
        for batch in data.batches(7, epoch, 5):
            for image, index in zip(pixels(data, batch), batch.index.tolist(), strict=True):
                # a KeyError would say that torchvision cannot make it
                draws.append(possible[index][image.numpy().tobytes()])
    joint = np.zeros((5, 5, 2))
    np.add.at(joint, tuple(np.array(draws).T), 1)
    assert joint.sum() == 3000
    assert chisquare(joint.ravel()).pvalue > 0.001
    assert chisquare(joint.sum((0, 1))).pvalue > 0.001


def test_torchvision_s_own_transform_stays_in_the_same_set():
    data, transform = make_data(), v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    image = data.images["train"][0]
    made = {transform(image).numpy().tobytes() for _ in range(2000)}
    assert made == set(outputs_of_torchvision(image, 2))


def test_order_is_uniform_and_independent_of_the_draws_of_other_epochs():
    data = make_data(train=6)
    places = np.zeros((6, 6))
    for epoch in range(600):
        for place, index in enumerate(torch.cat([batch.index for batch in data.batches(0, epoch, 4)]).tolist()):
            places[place, index] += 1
    assert (places.sum(0) == 600).all()  # every image once an epoch
    assert all(chisquare(row).pvalue > 0.001 for row in places)


def test_without_flip_and_padding_images_come_as_they_are():
    data = make_data(padding=0, flip=False)
    for batch in data.batches(0, 0, 5):
        assert torch.equal(pixels(data, batch), data.images["train"][batch.index])


def epoch_of(data, batch_size, seed=3, epoch=4):
    batches = list(data.batches(seed, epoch, batch_size))
    order = torch.cat([batch.index for batch in batches])
    return (order, torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches]))


@pytest.mark.parametrize("block", [1, 10**9])
def test_an_epoch_does_not_depend_on_batch_size_or_block(monkeypatch, block):
    data = make_data(train=13)
    expected = epoch_of(data, 13)
    torch.manual_seed(99)  # the global generator has no say
    monkeypatch.setattr(dataset, "BLOCK", {"cpu": block})
    for batch_size in (1, 4, 13, 50):
        assert all(torch.equal(a, b) for a, b in zip(epoch_of(data, batch_size), expected, strict=True))
        assert data.steps(batch_size) == len(list(data.batches(0, 0, batch_size)))
    order, _, labels = expected
    assert sorted(order.tolist()) == list(range(13)) and torch.equal(labels, data.labels["train"][order])


def test_what_happens_to_an_image_does_not_depend_on_its_place(monkeypatch):
    data, shuffle = make_data(), torch.randperm

    def by_image():
        order, images, _ = epoch_of(data, 5)
        return images[order.argsort()]

    expected = by_image()
    monkeypatch.setattr(torch, "randperm", lambda *arguments, **options: shuffle(*arguments, **options).flip(0))
    assert torch.equal(by_image(), expected)


def test_seeds_and_epochs_differ():
    data = make_data(train=40)
    epochs = {(s, e): tuple(epoch_of(data, 40, s, e)[0].tolist()) for s in range(4) for e in range(4)}
    assert len(set(epochs.values())) == 16


def test_values_equal_totensor_and_normalize():
    data = make_data(padding=0, flip=False)
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
    for batch in [*data.batches(0, 0, 5), *data.chunks("train", 7)]:
        torch.testing.assert_close(batch.images, transform(data.images["train"][batch.index]), atol=1e-6, rtol=0)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    low = next(data.batches(0, 0, 5, torch.bfloat16)).images
    assert low.dtype == torch.bfloat16 and torch.equal(low, next(data.batches(0, 0, 5)).images.bfloat16())


def test_chunks_keep_order_and_the_last_part():
    data = make_data()
    chunks = list(data.chunks("test", 2))
    assert [len(chunk.labels) for chunk in chunks] == [2, 2, 1] and list(data.chunks("validation", 2)) == []
    assert torch.equal(torch.cat([pixels(data, chunk) for chunk in chunks]), data.images["test"])
    assert torch.cat([chunk.index for chunk in chunks]).tolist() == list(range(5))
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        next(data.chunks("tst", 2))


def test_a_subset_has_as_many_of_each_class():
    data = make_data(train=31)
    few = data.subset(4, seed=1)
    assert torch.bincount(few.labels["train"]).tolist() == [4, 4, 4] and few.mean == data.mean
    assert torch.equal(few.images["test"], data.images["test"]) and few.md5 != data.md5
    where = [[torch.equal(image, other) for other in data.images["train"]].index(True) for image in few.images["train"]]
    assert where == sorted(set(where))
    assert data.subset(4, 1).md5 == few.md5 != data.subset(4, 2).md5
    with pytest.raises(ConfigError, match=r"class 'b'.*10 train images.*not 11"):
        data.subset(11, 0)


def test_md5_follows_everything_that_changes_a_run():
    data = make_data()
    changed = [
        make_data(padding=1),
        make_data(flip=False),
        make_data(mean=(0.1, 0.5, 0.3)),
        make_data(std=(0.1, 0.2, 0.3)),
    ]
    for split in ("train", "test"):
        for part in ("images", "labels"):
            other = make_data()
            getattr(other, part)[split][0] += 1
            changed.append(other)
    assert make_data().md5 == data.md5 == data.to("cpu").md5
    assert len({data.md5, *(other.md5 for other in changed)}) == 9


def test_save_and_open(tmp_path):
    data, path = make_data(), tmp_path / "new folder" / "made.safetensors"
    data.save(path)
    first = path.read_bytes()
    data.save(path)
    assert path.read_bytes() == first and os.listdir(path.parent) == [path.name]
    again = Data.open(path)
    for field in ("name", "classes", "mean", "std", "padding", "flip", "md5"):
        assert getattr(again, field) == getattr(data, field)
    for split in dataset.SPLITS:
        assert torch.equal(again.images[split], data.images[split]) and torch.equal(
            again.labels[split], data.labels[split]
        )
    assert Data.md5_at(path) == data.md5
    path.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    with pytest.raises(ConfigError, match="damaged"):
        Data.open(path)
    for content in (first[:-5], b"", b"nonsense" * 9):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="no whole data file"):
            Data.open(path)
    with pytest.raises(ConfigError, match="missing"):
        Data.open(tmp_path / "none.safetensors")


def test_digits():
    data = load_data("digits", cache=None)
    assert {split: len(part) for split, part in data.labels.items()} == {"train": 1000, "validation": 257, "test": 540}
    assert data.image_shape == (1, 8, 8) and data.padding == 1 and data.flip is False and len(data.classes) == 10
    images, labels = (torch.cat([part[split] for split in dataset.SPLITS]) for part in (data.images, data.labels))
    from sklearn.datasets import load_digits

    raw = load_digits()
    expected = sorted(
        (np.rint(image * 15.9375).astype(np.uint8).tobytes(), label)
        for image, label in zip(raw.images, raw.target, strict=True)
    )
    assert (
        sorted((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True)) == expected
    )
    for part in data.labels.values():  # stratified: each class within one image of its share
        assert (torch.bincount(part) - torch.bincount(labels) * len(part) / 1797).abs().max() <= 1
    train = data.images["train"].numpy() / 255
    np.testing.assert_allclose([data.mean[0], data.std[0]], [train.mean(), train.std()], atol=1e-12)
    assert load_data("digits", cache=None).md5 == data.md5
    assert load_data("digits", validation=0, cache=None).images["validation"].shape == (0, 1, 8, 8)


# -- archives -----------------------------------------------------------


def tar_of(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return path


def cifar_files(name, count=20):
    random = np.random.default_rng(0)
    label, classes = (b"fine_label", 4) if name == "cifar100" else (b"label", 2)

    def part(count):
        labels = [k % classes for k in range(count)]
        return {
            b"data": random.integers(0, 256, (count, 3072), np.uint8),
            label + b"s": labels,
            b"coarse_labels": [0] * count,
        }

    names = {label + b"_names": [f"thing {k}".encode() for k in range(classes)]}
    if name == "cifar100":
        contents = {"train": part(count), "test": part(8), "meta": names}
    else:
        contents = {f"data_batch_{k}": part(count // 2) for k in (2, 1)} | {
            "test_batch": part(8),
            "batches.meta": names,
        }
    return contents


def pickled(contents, protocol=4):
    return {f"cifar/{file}": pickle.dumps(content, protocol) for file, content in contents.items()} | {
        "cifar/readme": b"x"
    }


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("protocol", [3, 5])
def test_cifar(tmp_path, name, protocol):
    contents = cifar_files(name)
    data = load_data(name, tar_of(tmp_path / "a.tar.gz", pickled(contents, protocol)), cache=tmp_path / "cache")
    trains = [contents["train"]] if name == "cifar100" else [contents["data_batch_1"], contents["data_batch_2"]]
    label = b"fine_labels" if name == "cifar100" else b"labels"
    expected = np.concatenate([part[b"data"] for part in trains]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.images["train"].numpy(), expected)
    assert data.labels["train"].tolist() == [k for part in trains for k in part[label]]
    assert data.labels["test"].tolist() == contents["test" if name == "cifar100" else "test_batch"][label]
    assert data.classes[:2] == ("thing 0", "thing 1") and data.padding == 4 and data.flip is True
    np.testing.assert_allclose(data.mean, expected.mean((0, 2, 3)) / 255, atol=1e-12)
    np.testing.assert_allclose(data.std, (expected / 255).std((0, 2, 3)), atol=1e-12)


def test_the_original_python_2_pickles_are_read():
    """Protocol 2 as Python 2 and numpy 1 wrote it: module numpy.core.multiarray, strings as bytes of latin-1."""
    stream = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x07\xfftb."
    )
    assert readers._ArraysOnly(io.BytesIO(stream), encoding="bytes").load().tolist() == [7, 255]


def test_validation_is_stratified_fixed_and_taken_from_train(tmp_path):
    archive = tar_of(tmp_path / "a.tar.gz", pickled(cifar_files("cifar100", 40)))
    whole, split = (load_data("cifar100", archive, validation=v, cache=tmp_path) for v in (0, 8))
    assert torch.bincount(split.labels["validation"]).tolist() == [2, 2, 2, 2] and len(split.labels["train"]) == 32
    both = torch.cat([split.images["train"], split.images["validation"]])
    assert sorted(image.numpy().tobytes() for image in both) == sorted(
        i.numpy().tobytes() for i in whole.images["train"]
    )
    assert torch.equal(
        split.images["validation"], load_data("cifar100", archive, validation=8, cache=None).images["validation"]
    )
    for wrong in (3, 40, -1):
        with pytest.raises(ConfigError, match=f"validation(=|: ){wrong}"):
            load_data("cifar100", archive, validation=wrong, cache=None)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class EvilCall(Evil):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("evil", [Evil, EvilCall])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, evil):
    contents = cifar_files("cifar10")
    contents["data_batch_2"][b"filenames"] = evil(tmp_path / "ran")
    with pytest.raises(ConfigError, match=r"data_batch_2.*only numpy arrays"):
        load_data("cifar10", tar_of(tmp_path / "a.tar.gz", pickled(contents)), cache=tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # the same pickle, loaded by plain pickle, does run


@pytest.mark.parametrize("missing", ["test", "meta", "train"])
def test_incomplete_cifar(tmp_path, missing):
    contents = cifar_files("cifar100")
    del contents[missing]
    with pytest.raises(ConfigError, match="lacks"):
        load_data("cifar100", tar_of(tmp_path / "a.tar.gz", pickled(contents)), cache=None)


def test_cifar_with_wrong_shapes_or_labels(tmp_path):
    contents = cifar_files("cifar100")
    contents["train"][b"fine_labels"][0] = 9
    with pytest.raises(ConfigError, match="labels outside"):
        load_data("cifar100", tar_of(tmp_path / "a.tar.gz", pickled(contents)), cache=None)
    contents["train"][b"fine_labels"] = [0]
    with pytest.raises(ConfigError, match="train is no CIFAR file"):
        load_data("cifar100", tar_of(tmp_path / "b.tar.gz", pickled(contents)), cache=None)


def picture(seed, size=(6, 6), mode="RGB", form="PNG"):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(file, form)
    return file.getvalue()


def folder_files(**kwargs):
    places = [f"{split}/{name}/{k}.png" for split in ("train", "test") for name in ("cat", "ape") for k in range(3)]
    return {place: picture(seed, **kwargs) for seed, place in enumerate(places)}


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["w:", "w:gz", "w:xz", "folder"])
@pytest.mark.parametrize("top", ["", "top/", "./"])
def test_imagefolder(tmp_path, kind, top):
    files = folder_files()
    noise = {"classes.txt": b"text", "train/.DS_Store": b"x", "train/cat/._0.png": b"x", "train/cat/notes.txt": b"x"}
    noise |= {".ipynb_checkpoints/train/dog/0.png": b"x"}
    source = tmp_path / ("source" if kind == "folder" else "source.tar")
    for name, content in {**files, **noise}.items():
        if kind == "folder":
            (source / top / name).parent.mkdir(parents=True, exist_ok=True)
            (source / top / name).write_bytes(content)
    if kind != "folder":
        tar_of(source, {top + name: content for name, content in {**files, **noise}.items()}, kind)
    before = set(tmp_path.rglob("*"))
    data = load_data("imagefolder", source, cache=None)
    assert set(tmp_path.rglob("*")) == before  # nothing is unpacked
    assert data.classes == ("ape", "cat") and data.labels["train"].tolist() == data.labels["test"].tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    for split in ("train", "test"):
        for image, name in zip(
            data.images[split], [f"{split}/{c}/{k}.png" for c in ("ape", "cat") for k in range(3)], strict=True
        ):
            np.testing.assert_array_equal(image.numpy(), decoded(files[name]))


def test_grey_images_have_one_channel_unless_mixed(tmp_path):
    files = folder_files(mode="L")
    assert load_data("imagefolder", tar_of(tmp_path / "a.tar", files), cache=None).image_shape == (1, 6, 6)
    files["train/cat/0.png"] = picture(0)
    data = load_data("imagefolder", tar_of(tmp_path / "b.tar", files), cache=None)
    assert data.image_shape == (3, 6, 6)
    np.testing.assert_array_equal(data.images["train"][0].numpy(), decoded(files["train/ape/0.png"]))


def test_sizes(tmp_path):
    files = folder_files() | {"test/cat/1.png": picture(1, (9, 7))}
    source = tar_of(tmp_path / "a.tar", files)
    with pytest.raises(ConfigError, match=r"test/cat/1.png has 9x7 pixels, most have 6x6"):
        load_data("imagefolder", source, cache=None)
    assert load_data("imagefolder", source, size=4, cache=None).image_shape == (3, 4, 4)


def without(files, start):
    return {name: content for name, content in files.items() if not name.startswith(start)}


PROBLEMS = {
    "no train/CLASS/": lambda files: without(files, "train/"),
    "no test/CLASS/": lambda files: without(files, "test/"),
    "train/dog holds no images": lambda files: files | {"train/dog/notes.txt": b""},
    "test/eel holds no images": lambda files: files | {"test/eel": None},
    "class 'cat' is in train/ and not in test/": lambda files: without(files, "test/cat"),
    "class 'ape' is in test/ and not in train/": lambda files: without(files, "train/ape"),
    "image train/cat/1.png cannot be decoded": lambda files: files | {"train/cat/1.png": b"no image"},
    "image test/cat/2.png cannot be decoded": lambda files: files | {"test/cat/2.png": files["test/cat/2.png"][:80]},
    "several places": lambda files: files | {"other/train/cat/9.png": picture(0)},
    "(it is none)": lambda files: files | {"test/cat/0.png": b"a text"},
    "of more than 8 bits a channel": lambda files: files | {"train/ape/0.png": deep_picture()},
    "one class alone, 'cat'": lambda files: without(without(files, "train/ape"), "test/ape"),
}


def deep_picture():
    file = io.BytesIO()
    Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6) * 1700).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("top", ["", "top/"])
def test_imagefolder_problems(tmp_path, problem, top):
    files = PROBLEMS[problem](folder_files())
    files = {name if name.startswith("other") else top + name: content for name, content in files.items()}
    with pytest.raises(ConfigError) as raised:
        load_data("imagefolder", tar_of(tmp_path / "a.tar.gz", files), cache=tmp_path / "cache")
    assert problem in str(raised.value).replace(top, "", 1) and "\n" not in str(raised.value)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.parametrize(
    "name", ["../train/cat/7.png", "/train/cat/7.png", "train/../../cat/7.png", "train/cat/../../../x.png"]
)
def test_entries_that_leave_the_archive_are_refused(tmp_path, name):
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    source = tar_of(folder / "a.tar.gz", folder_files() | {name: picture(7)})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="points out of the archive"):
        load_data("imagefolder", source, cache=None)
    assert set(tmp_path.rglob("*")) == before


def test_links_are_named(tmp_path):
    source = tar_of(tmp_path / "a.tar", folder_files(), "w:")
    with tarfile.open(source, "a") as tar:
        link = tarfile.TarInfo("train/cat/8.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ConfigError, match=r"train/cat/8.png is a link"):
        load_data("imagefolder", source, cache=None)


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:xz", "w:bz2"])
def test_truncated_or_damaged_archives(tmp_path, mode):
    files = folder_files()
    whole = tar_of(tmp_path / "a.tar", files, mode).read_bytes()
    end = tarfile.BLOCKSIZE * sum(1 + -(-len(content) // tarfile.BLOCKSIZE) for content in files.values())
    cuts = (
        [len(whole) // 3, len(whole) // 2, len(whole) - 1, 3, 0]
        if mode != "w:"
        else [end // 3, end // 2, end, end - 700, 3, 0]
    )
    for cut in cuts:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=r"cut.tar is not a whole tar archive"):
            load_data("imagefolder", tmp_path / "cut.tar", cache=None)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    source = tar_of(tmp_path / "a.tar", folder_files(), "w:")
    content = bytearray(source.read_bytes())
    at = content.index(b"test/ape/2.png")
    content[at : at + 4] = b"\xff\xfe\xfd\xfc"
    source.write_bytes(content)
    with pytest.raises(ConfigError, match="not a whole tar archive"):
        load_data("imagefolder", source, cache=None)


# -- cache --------------------------------------------------------------


def test_the_second_start_reads_tensors_and_a_changed_archive_is_noticed(tmp_path, monkeypatch):
    source, cache, calls = tmp_path / "a.tar.gz", tmp_path / "cache", []
    decode, md5 = readers._decode, fetch.file_md5
    monkeypatch.setattr(readers, "_decode", lambda *a: calls.append("decode") or decode(*a))
    monkeypatch.setattr(fetch, "file_md5", lambda *a: calls.append("md5") or md5(*a))
    files = folder_files()
    tar_of(source, files)
    first = load_data("imagefolder", source, cache=cache)
    assert calls == ["md5", "decode"]
    again = load_data("imagefolder", source, padding=3, mean=(0.1, 0.1, 0.1), cache=cache)
    assert calls == ["md5", "decode"] and again.padding == 3 and again.mean == (0.1, 0.1, 0.1)
    assert torch.equal(again.images["train"], first.images["train"]) and again.md5 != first.md5
    assert load_data("imagefolder", source, cache=cache).md5 == first.md5
    [kept] = cache.glob("imagefolder-*.safetensors")
    assert kept.name.startswith(f"imagefolder-{md5(source)[:8]}-")

    kept.write_bytes(kept.read_bytes()[:-3])  # a damaged cache is made again
    assert load_data("imagefolder", source, cache=cache).md5 == first.md5 and calls == ["md5", "decode", "decode"]
    (cache / "md5.json").write_text("{broken")
    assert load_data("imagefolder", source, cache=cache).md5 == first.md5 and calls[3:] == ["md5"]

    tar_of(source, files | {"train/cat/0.png": picture(77)})
    os.utime(source, ns=(5, 5))
    changed = load_data("imagefolder", source, cache=cache)
    assert changed.md5 != first.md5 and calls[4:] == ["md5", "decode"]
    load_data("imagefolder", source, size=3, cache=cache)
    assert calls[6:] == ["decode"] and len(json.loads((cache / "md5.json").read_text())) == 2


def test_an_archive_that_is_not_the_profiles_is_refused(tmp_path):
    source = tar_of(tmp_path / "a.tar.gz", folder_files())
    right = fetch.file_md5(source)
    assert load_data("imagefolder", source, md5=right, cache=tmp_path / "c").labels["train"].shape == (6,)
    with pytest.raises(
        ConfigError, match=r"a.tar.gz is not the archive this profile was made for \(md5 .*, not 0123\)"
    ):
        load_data("imagefolder", source, md5="0123", cache=tmp_path / "c")


def test_a_folder_is_no_pinned_archive_and_a_broken_link_is_named(tmp_path):
    for name, content in folder_files().items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"f is a folder, and this profile was made for one archive \(md5 0123\)"):
        load_data("imagefolder", tmp_path / "f", md5="0123", cache=None)
    (tmp_path / "f/train/cat/9.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ConfigError, match=r"9.png cannot be read \(No such file or directory\)"):
        load_data("imagefolder", tmp_path / "f", cache=None)


def test_images_per_class(tmp_path):
    source = tar_of(tmp_path / "a.tar.gz", folder_files())
    whole = load_data("imagefolder", source, cache=None)
    few = load_data("imagefolder", source, images_per_class=2, cache=None)
    assert few.md5 == whole.subset(2, 0).md5 and torch.bincount(few.labels["train"]).tolist() == [2, 2]
    with pytest.raises(ConfigError, match="has 3 train images"):
        load_data("imagefolder", source, images_per_class=4, cache=None)


def test_a_changed_folder_is_noticed(tmp_path):
    for name, content in folder_files().items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(content)
    first = load_data("imagefolder", tmp_path / "f", cache=tmp_path / "cache")
    (tmp_path / "f" / "train/cat/0.png").write_bytes(picture(77))
    assert load_data("imagefolder", tmp_path / "f", cache=tmp_path / "cache").md5 != first.md5


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose data.dvc describes a small cifar100 archive at its place."""
    path = tmp_path / "data" / "raw" / "small.tar.gz"
    path.parent.mkdir(parents=True)
    tar_of(path, pickled(cifar_files("cifar100")))
    out = {"path": "data/raw/small.tar.gz", "size": path.stat().st_size, "md5": fetch.file_md5(path)}
    out["meta"] = {"name": "cifar100", "addresses": []}
    (tmp_path / "data.dvc").write_text(json.dumps({"outs": [out]}))
    monkeypatch.setattr(fetch, "FILES", tmp_path)
    monkeypatch.setattr(fetch, "ROOT", tmp_path)
    return path


def test_the_archive_of_data_dvc_is_checked(project, tmp_path):
    assert load_data("cifar100", cache=tmp_path).labels["train"].shape == (20,)
    content = project.read_bytes()
    for wrong in (content[:-1] + b"x", content[:-1]):
        project.write_bytes(wrong)
        os.utime(project, ns=(7, len(wrong)))
        with pytest.raises(ConfigError, match=r"not the archive of data.dvc.*delete it and run `.*fetch cifar100`"):
            load_data("cifar100", cache=tmp_path)
    project.unlink()
    with pytest.raises(ConfigError, match=r"small.tar.gz is missing: run `python -m kd fetch cifar100`"):
        load_data("cifar100", cache=tmp_path)


def test_too_little_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(ConfigError, match="too little disk"):
        make_data().save(tmp_path / "new" / "x.safetensors")
    assert not list(tmp_path.rglob("*x.safetensors*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar-100"}, "did you mean 'cifar100'"),
        ({"name": "imagefolder"}, "needs a source"),
        ({"name": "imagefolder", "source": "nowhere.tar"}, "nowhere.tar is missing"),
        ({"name": "digits", "source": "x"}, "source='x' must go"),
        ({"name": "digits", "size": 4}, "imagefolder and jpegfolder only"),
        ({"name": "digits", "padding": 8}, "padding=8: 0 to 7"),
        ({"name": "digits", "padding": -1}, "data.padding: -1 must be greater than or equal to 0"),
        ({"name": "digits", "validation": 1257}, "validation=1257"),
        ({"name": "digits", "mean": (0.1, 0.2)}, "one a channel"),
        ({"name": "digits", "std": (0.0,)}, "data.std.0: 0.0 must be greater than 0"),
        ({"name": "digits", "mean": 0.5}, "data.mean: 0.5 must be a list"),
        ({"name": "digits", "padding": 1.5}, "data.padding: 1.5 must be a whole number"),
        ({"name": "digits", "flip": "no"}, "data.flip: 'no' must be true or false"),
        ({"name": "digits", "images_per_class": 2.5}, "data.images_per_class: 2.5 must be a whole number"),
        ({"name": "imagefolder", "source": 5}, "data.source: 5 must be a text"),
        ({"name": "imagefolder", "source": "x", "size": 0}, "data.size: 0 must be greater than 0"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_data(**arguments, cache=None)
