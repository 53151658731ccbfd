import pytest
import tiny
import torch

from kd.data import Data
from kd.data.stream import Stream, open_data_for, open_stream
from kd.errors import ConfigError
from kd.models import build
from kd.recipe import Recipe
from kd.training import train


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    data, path = tiny.data(150, 0, 37, channels=3, padding=1, flip=True), tmp_path_factory.mktemp("data") / "random.safetensors"
    data.save(path)
    return data, path


def same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        for name in one._fields:
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b), name


@pytest.mark.parametrize("workers", (0, 2))
def test_a_stream_gives_the_batches_of_memory_to_the_bit(saved, workers):
    data, path = saved
    stream = open_stream(path, workers=workers)
    for seed, epoch in ((0, 0), (0, 1), (7, 0)):
        same(data.batches(seed, epoch, 64), stream.batches(seed, epoch, 64))
    same(data.chunks("test", 20), stream.chunks("test", 20))
    assert stream.steps(64) == data.steps(64) and stream.image_shape == data.image_shape
    assert list(stream.chunks("validation", 20)) == []


def test_a_few_images_of_a_stream_are_those_of_memory(saved):
    data, path = saved
    few = open_stream(path).subset(5, 3)
    same(data.subset(5, 3).batches(1, 2, 4), few.batches(1, 2, 4))
    assert few.md5 == data.subset(5, 3).md5 != data.md5


def test_a_sample_is_from_all_over_a_split(saved):
    data, path = saved
    whole = next(data.chunks("test", 37))
    for source in (data, open_stream(path)):
        sample = source.sample("test", 10)
        assert sample.index.tolist() == list(range(0, 30, 3))
        assert torch.equal(sample.images, whole.images[sample.index]) and torch.equal(sample.labels, whole.labels[sample.index])
        assert len(source.sample("test", 100).labels) == 37 and len(source.sample("validation", 5).labels) == 0
    large = tiny.data(4, 0, 300)
    large.images["test"] = torch.zeros(300, 1, 224, 224, dtype=torch.uint8)
    large.images["train"] = torch.zeros(4, 1, 224, 224, dtype=torch.uint8)
    assert len(large.sample("test", 300).labels) == 167  # of that many large images a network's maps still fit


def test_moving_keeps_what_names_the_content(saved):
    data, path = saved
    moved = open_stream(path).to("cpu")
    assert "md5" in vars(moved) and moved.md5 == data.md5 and isinstance(moved, Stream)


def test_the_loader_draws_nothing_from_torchs_generator(saved):
    stream = open_stream(saved[1])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(stream.batches(0, 0, 64))
    assert torch.equal(before, torch.get_rng_state())


def test_training_from_a_stream_ends_in_the_same_bits(saved):
    data, path = saved
    networks = []
    for source in (data, open_stream(path)):
        torch.manual_seed(0)
        networks.append(build("cnn3x4", 3))
        train(networks[-1], source, Recipe(epochs=2))
    for a, b in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(a, b)


def test_the_stated_share_decides(saved, monkeypatch):
    data, path = saved
    padded = 150 * 3 * 10 * 10
    needed = sum(t.nbytes for part in (data.images, data.labels) for t in part.values()) + padded
    for free, kind in ((2 * needed, Data), (2 * needed - 2, Stream)):
        monkeypatch.setattr("kd.data.stream.memory_available", lambda device, free=free: free)
        found = open_data_for(path, memory_share=0.5)
        assert type(found) is kind
        same(data.batches(0, 0, 64), found.batches(0, 0, 64))


def test_mistakes_are_named(saved, tmp_path):
    for share in (0, 1.5):
        with pytest.raises(ConfigError, match="KD_MEMORY_SHARE"):
            open_data_for(saved[1], memory_share=share)
    for bad in (tmp_path / "none.safetensors", tmp_path / "cut.safetensors"):
        if bad.stem == "cut":
            bad.write_bytes(saved[1].read_bytes()[:500])
        with pytest.raises(ConfigError, match=bad.name):
            open_stream(bad)
