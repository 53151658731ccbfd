"""Settings of the machine: checked, and one thread unless asked."""

import os

import pytest
import torch

from kd.errors import ConfigError
from kd.study.settings import settings, use_device


@pytest.mark.parametrize("name, value", [
    ("KD_WORKERS", "zero"), ("KD_WORKERS", "-3"), ("KD_WORKERS", "100000"), ("KD_THREADS", "abc"), ("KD_THREADS", "100000"),
    ("KD_MEMORY_SHARE", "half"), ("KD_MEMORY_SHARE", "1.5"), ("KD_DEVICE", "cdua"), ("KD_DEVICE", "meta"),
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
