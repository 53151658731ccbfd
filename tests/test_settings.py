"""Settings of the machine: checked, and one thread unless asked."""

import os
from types import SimpleNamespace

import pytest
import torch

from kd.errors import ConfigError
from kd.study.settings import devices, on_gpus, settings, use_device


@pytest.mark.parametrize("name, value", [
    ("KD_WORKERS", "zero"), ("KD_WORKERS", "-3"), ("KD_WORKERS", "100000"), ("KD_THREADS", "abc"), ("KD_THREADS", "100000"),
    ("KD_GPU_SHARE", "2"), ("KD_GPU_SHARE", "0"), ("KD_MEMORY_SHARE", "half"), ("KD_MEMORY_SHARE", "1.5"), ("KD_DEVICE", "cdua"), ("KD_DEVICE", "meta"),
])  # fmt: skip
def test_a_wrong_setting_is_named(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        settings()


def test_the_defaults(monkeypatch):
    for name in ("KD_WORKERS", "KD_THREADS", "KD_MEMORY_SHARE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("KD_DEVICE", "cpu")
    found = settings()
    assert (found.device, found.workers, found.threads, found.memory_share) == ("cpu", os.cpu_count(), 1, 0.5)


def test_threads_are_one_unless_asked(monkeypatch):
    monkeypatch.delenv("KD_THREADS", raising=False)
    monkeypatch.setenv("KD_DEVICE", "cpu")
    before = torch.get_num_threads()
    try:
        assert use_device() == "cpu" and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "gpus, asked, expected",
    [
        (1, {}, ["cuda:0"]),
        (3, {}, ["cuda:0", "cuda:1", "cuda:2"]),
        (2, {"KD_GPU_SHARE": "0.34"}, ["cuda:0", "cuda:1"] * 2),  # three of them do not fit onto one
        (2, {"KD_GPU_SHARE": "0.2"}, ["cuda:0", "cuda:1"] * 5),
        (4, {"KD_WORKERS": "6"}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]),
        (4, {"KD_DEVICE": "cuda:2"}, ["cuda:2"]),
        (4, {"KD_DEVICE": "cpu", "KD_WORKERS": "2"}, ["cpu", "cpu"]),
    ],
)
def test_workers_go_round_all_gpus(monkeypatch, gpus, asked, expected):
    for name in ("KD_WORKERS", "KD_GPU_SHARE", "KD_DEVICE", "KD_RAY"):
        monkeypatch.setenv(name, asked.get(name, ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: SimpleNamespace(device=torch.device(device)))
    assert devices(settings()) == expected


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_share_too_small_for_any_gpu_is_named(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: SimpleNamespace(device=torch.device(device)))
    monkeypatch.setenv("KD_GPU_SHARE", "1e-9")
    with pytest.raises(ConfigError, match="KD_GPU_SHARE=1e-09: that makes .* processes here, at most 256; give a larger share"):
        settings()


@pytest.mark.parametrize("share, fit", [(1, 1), (0.5, 2), (0.1, 10), (1 / 3, 3), (0.3, 3), (0.6, 1)])
def test_a_share_of_a_gpu_lies_on_one_of_them(share, fit):
    assert on_gpus(1.0, share) == fit and on_gpus(4, share) == 4 * fit
