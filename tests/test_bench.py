import csv
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from torch import nn

from kd import bench
from kd.distill import distill
from kd.errors import Problem
from kd.methods import make
from kd.models import Supernet, Tapped, build
from kd.models.base import Output
from kd.models.folded import folded
from kd.recipe import Recipe


def lived_in(name, channels=3):
    """A network in eval mode whose norms have statistics and scales of their own, none near the initial 0 and 1."""
    torch.manual_seed(0)
    network = build(name, 10, channels)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.7, 1.3)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ("resnet20", "resnet8x4", "resnet50", "vgg8", "cnn3x4", "mobilenetv2", "allcnn-0.66", "wrn-16-1"))
def test_folding_keeps_the_function_and_the_network(name):
    network = lived_in(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        mine, theirs = folded(network)(images), network(images)
    assert isinstance(mine, Output) and len(mine.features) == len(theirs.features)
    for a, b in zip((mine.logits, *mine.features), (theirs.logits, *theirs.features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_folding_leaves_no_norm_in_a_resnet_and_no_gradient():
    network = folded(lived_in("resnet20"), torch.bfloat16)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in network.parameters())


def test_what_must_not_be_folded_comes_back_untouched():
    trains = lived_in("resnet8").train()
    watched = Tapped(lived_in("resnet8"), ["stages.0"])
    widths = Supernet(lived_in("resnet8"), (0.5, 1.0)).eval()
    for network in (trains, watched, widths):
        assert folded(network) is network


def test_bf16_counts_the_teachers_images_once(digits, networks):
    teacher, student = networks
    result = distill(student, make(["kd"]), teacher, digits, Recipe(epochs=2, precision="bf16"))
    assert result.teacher_images == 2 * len(digits.labels["train"])


def test_watched_data_trains_alike_and_times_every_epoch(digits, networks):
    ticks = iter(range(100))
    data = bench.watched(digits, lambda: next(ticks))
    students = [build("cnn3x4", 10, 1) for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    for student, source in zip(students, (digits, data), strict=True):
        distill(student, make(["kd"]), networks[0], source, Recipe(epochs=3))
    assert data.spans == [1, 1, 1]
    for a, b in zip(*(s.state_dict().values() for s in students), strict=True):
        assert torch.equal(a, b)


def test_a_methods_arithmetic_is_that_of_its_networks():
    rows = bench.time_methods(1, 1, "cpu", ("resnet8", "resnet8"), ("labels", "kd", "dml"))
    found = {row["method"]: row for row in rows}
    # of the same network: kd 1 + 3 forward passes' worth, labels 3, dml 2 networks forward and backward and 2 forward more.
    # the backward pass is a little less than twice the forward one, as no gradient goes into the images
    assert found["kd"]["arithmetic"] == 1 and found["kd"]["relative"] == 1
    assert 0.72 < found["labels"]["arithmetic"] < 0.75
    assert 1.97 < found["dml"]["arithmetic"] < 2.03


def test_phases_cover_the_step():
    rows = bench.time_phases(2, "cpu", (("resnet8", "resnet8"),))
    assert {row["phase"] for row in rows} == {"data", "teacher", "student forward", "backward", "optimizer", "evaluation"}
    assert {row["variant"] for row in rows} == set(bench.VARIANTS) and all(row["ms"] > 0 for row in rows)


def test_a_compiler_that_takes_too_long_is_given_up():
    import time

    with pytest.raises(TimeoutError, match="1 s"), bench.limited(1):
        time.sleep(5)
    with bench.limited(1):
        pass
    time.sleep(1.1)  # the alarm is off


def test_the_page_holds_what_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "PAIRS", (("resnet8", "resnet8"),))
    monkeypatch.setattr(bench.time_pairs, "__defaults__", (None, 0, bench.PAIRS, print))
    monkeypatch.setattr(bench.time_phases, "__defaults__", (bench.PAIRS,))
    monkeypatch.setitem(bench.MATRIX, "cpu", 256)
    monkeypatch.setattr(bench, "start_up", lambda: ["start-up"])
    monkeypatch.setattr(bench, "memory", lambda: 1.0)
    monkeypatch.setenv("KD_THREADS", "1")
    monkeypatch.setenv("KD_DEVICE", "cpu")
    bench.bench(Namespace(peer=None, repeats=2, steps=1, compile=0, neutrality=0, methods=False, reports=str(tmp_path)))
    with open(tmp_path / "benchmark.csv") as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["what"] == "steps"]
    assert len(steps) == len(bench.VARIANTS) and all(float(r["low"]) <= float(r["ms"]) <= float(r["high"]) for r in steps)
    assert all(torch.__version__ in row["machine"] and "1 threads" in row["machine"] for row in rows)
    text = (tmp_path / "benchmark.md").read_text()
    assert f"{float(steps[0]['ms']):.1f}" in text and "python -m kd bench --steps 1 --repeats 2 --no-methods" in text
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Problem, match=r"--peer .*RepDistiller"):
        bench.Peer(tmp_path, bench.random_data(64), 1)


def test_cifar_size_stays_under_a_gibibyte():
    assert 150 < bench.memory() < 1024  # the bytes of 50,000 images alone are 146 MiB


def test_import_brings_torch_and_little_more():
    heavy = ("torchvision", "scipy", "pandas", "sklearn", "matplotlib", "IPython", "nbformat", "torch.utils.flop_counter")
    code = f"import sys, kd; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=bench.ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("channels", (1, 3))
def test_the_default_layout_is_that_of_every_layer(channels, digits):
    data = digits if channels == 1 else bench.random_data(64, side=8)
    network = build("cnn3x4", 10, channels)
    for wanted in (False, True):
        network.to(memory_format=torch.channels_last if wanted else torch.contiguous_format)
        batch = next(bench.watched(data, lambda: 0, wanted).batches(0, 0, 8))
        for feature in network(batch.images).features[:2]:
            assert feature.is_contiguous(memory_format=torch.channels_last) == wanted
