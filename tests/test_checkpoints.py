"""Files of weights: whole or absent, the same content the same bytes, anything else refused by name."""

import json
from hashlib import md5

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd import checkpoints
from kd.errors import ConfigError
from kd.models import build

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_any_nest_survives(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    checkpoints.save_state(path, {"value": value, "tensor": torch.arange(3)})
    found = checkpoints.load_state(path)
    assert found["value"] == value and torch.equal(found["tensor"], torch.arange(3))


def test_optimizers_survive_and_bytes_repeat(tmp_path):
    network = build("cnn3x4", 10, 1)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 1, 8, 8)).logits.sum().backward()
    optimizer.step()
    for name in ("a", "b"):
        checkpoints.save_state(tmp_path / name, {"optimizer": optimizer.state_dict(), "tuple": (1, torch.ones(2))}, network="cnn3x4")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = checkpoints.load_state(tmp_path / "a", network="cnn3x4")
    assert found["tuple"][0] == 1 and isinstance(found["tuple"], tuple)
    other = torch.optim.Adam(network.parameters())
    other.load_state_dict(found["optimizer"])
    for before, after in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    tensor = torch.arange(6.0)
    checkpoints.save_state(tmp_path / "x", {"a": tensor, "b": tensor, "c": tensor[:3]})
    found = checkpoints.load_state(tmp_path / "x")
    assert torch.equal(found["b"], tensor) and torch.equal(found["c"], tensor[:3])


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "teacher.safetensors"
    with pytest.raises(ConfigError, match=r"teacher.safetensors is missing"):
        checkpoints.load_state(path)
    checkpoints.save_state(path, {"w": torch.ones(100)}, network="resnet20", data="d1")
    with pytest.raises(ConfigError, match="of network 'resnet20', not 'resnet56'"):
        checkpoints.load_state(path, network="resnet56")
    with pytest.raises(ConfigError, match="of data 'd1', not 'd2'"):
        checkpoints.load_state(path, network="resnet20", data="d2")
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="truncated or damaged|not one that kd wrote"):
            checkpoints.load_state(path)
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(ConfigError, match="not one that kd wrote"):
        checkpoints.load_state(path)


def test_another_networks_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="the weights do not fit"):
        checkpoints.load_weights(build("cnn3x8", 10, 1), build("cnn3x4", 10, 1).state_dict(), "x.safetensors")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x"
    checkpoints.write_atomically(path, "old")
    monkeypatch.setattr(checkpoints.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        checkpoints.write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_too_little_disk_is_said_before_writing(tmp_path, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(1, 1, 0))
    with pytest.raises(ConfigError, match="too little disk"):
        checkpoints.write_atomically(tmp_path / "x", "new")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoints.save_state(path, {"w": torch.ones(3)}, network="cnn3x4")
    whole = path.read_bytes()
    for place in range(len(whole)):
        harmed = bytearray(whole)
        harmed[place] ^= 1 << place % 8
        path.write_bytes(harmed)
        assert checkpoints.fault(path), f"byte {place}"
    path.write_bytes(harmed)  # of the weights: nothing else would notice
    with pytest.raises(ConfigError, match=r"x.safetensors is damaged \(its md5 is .*; delete it"):
        checkpoints.load_state(path)


def test_a_file_of_an_older_kd_is_refused_and_has_the_same_name_in_records(tmp_path):
    from safetensors.torch import load_file, save

    path = tmp_path / "x.safetensors"
    checkpoints.save_state(path, {"w": torch.ones(3)}, network="cnn3x4")
    header = json.dumps({"about": {"network": "cnn3x4"}, "state": {"dict": [["w", {"tensor": "/w"}]]}}, sort_keys=True)
    old = save(load_file(path), metadata={"kd": header})
    assert checkpoints.with_checksum(old) == path.read_bytes() == checkpoints.with_checksum(path.read_bytes())
    named = checkpoints.file_md5(path)
    path.write_bytes(old)
    assert checkpoints.file_md5(path) == named == md5(old).hexdigest()
    with pytest.raises(ConfigError, match=r"has no checksum: its beginning is damaged, or an older kd wrote it; delete it"):
        checkpoints.load_state(path)


def test_a_folder_is_no_file_of_weights(tmp_path):
    for read in (checkpoints.load_state, checkpoints.about):
        with pytest.raises(ConfigError, match="is a folder, not a file of weights"):
            read(tmp_path)
    (tmp_path / "running").mkdir()
    checkpoints.Checkpoint(tmp_path / "running").remove()
    assert not (tmp_path / "running").exists()
    assert "folder" in checkpoints.fault(tmp_path) and checkpoints.fault(tmp_path / "none") == "is missing"
