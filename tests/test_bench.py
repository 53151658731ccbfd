"""The benchmark measures what it says, beside a peer as well; no time is asserted."""

import csv
import re
import subprocess
import sys

import pytest
import tiny
import torch

from benchmarks import loader, report, step, table
from kd.errors import ConfigError
from kd.methods import make
from kd.training import distill

PAIR = ("resnet8", "resnet8")

# what benchmarks/peer.py uses of a checkout of RepDistiller
CHECKOUT = {
    "models/__init__.py": """
import torch

class Network(torch.nn.Linear):
    def __init__(self, num_classes):
        super().__init__(1, num_classes)

    def forward(self, images, is_feat=False):
        return [torch.zeros(2, 4, 8, 8)] * 5, None

model_dict = dict(resnet8=Network)
""",
    "models/util.py": """
import torch

class ConvReg(torch.nn.Linear):
    def __init__(self, mine, theirs):
        super().__init__(1, 1)

Paraphraser = lambda shape: torch.nn.Linear(1, 1)
Translator = ConvReg
""",
    "distiller_zoo.py": """
class DistillKL:
    def __init__(self, temperature): pass

class Attention: pass
class HintLoss: pass
class FactorTransfer: pass
""",
    "helper/loops.py": """
asked = []

def train_distill(epoch, loader, modules, criteria, optimizer, options):
    assert len(modules) == {"kd": 2, "hint": 3, "attention": 2, "factor": 4}[options.distill]
    for batch in loader: assert len(batch) == 3

def train_vanilla(epoch, loader, model, criterion, optimizer, options):
    for batch in loader: assert len(batch) == 2
""",
    "dataset/cifar100.py": """
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR100
from torchvision.transforms import ToTensor

class Instance(CIFAR100):
    def __getitem__(self, index):
        return *super().__getitem__(index), index

def get_cifar100_dataloaders(batch_size, num_workers, is_instance):
    kind = Instance if is_instance else CIFAR100
    return DataLoader(kind(get_data_folder(), download=True, transform=ToTensor()), batch_size), None
""",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in CHECKOUT.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


@pytest.fixture
def small_product(monkeypatch):
    monkeypatch.setitem(step.MATRIX, "cpu", 64)


def test_what_was_measured_stands_in_the_report(checkout, tmp_path, small_product, monkeypatch):
    monkeypatch.delitem(step.VARIANTS, "fp32 channels_last")  # each has a process of its own, which takes seconds to start
    rows, notes = step.time_steps(2, 3, "cpu", checkout, pairs=(PAIR,))
    assert [row["variant"] for row in rows] == [*step.VARIANTS, step.PEER]
    assert all(0 < row["low"] <= row["ms"] <= row["high"] and row["ratio_to_peer"] > 0 for row in rows)
    phases = step.time_phases(2, "cpu", (PAIR,))
    assert {row["variant"] for row in phases} == set(step.VARIANTS) and all(row["ms"] > 0 for row in phases)
    names = ("data", "teacher", "student forward", "backward", "optimizer", "evaluation")
    assert tuple(row["phase"] for row in phases[:6]) == names

    report.write(tmp_path, {"steps": rows, "notes": [{"text": note} for note in notes]}, "this machine")
    report.write(tmp_path, {"phases": phases}, "another machine")  # keeps the steps
    with open(tmp_path / "benchmark.csv") as file:
        found = [row for row in csv.DictReader(file) if row["what"] == "steps"]
    assert [float(row["ms"]) for row in found] == [row["ms"] for row in rows]
    text = (tmp_path / "benchmark.md").read_text()
    assert f"| {rows[0]['ms']:.1f} | {rows[0]['low']:.1f} to {rows[0]['high']:.1f} |" in text
    assert "medians of 3 turns of 2 steps" in text and all(note in text for note in notes) and "Machine: another machine." in text
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_table_is_timed_side_by_side_and_beside_the_peer(checkout):
    variants = {"one after another": (step.RECIPE, False), "side by side": (step.RECIPE, True)}
    rows = table.time_table(2, 2, step.random_data, variants, checkout, (PAIR,), workers=1)
    assert [row["variant"] for row in rows] == [*variants, step.PEER]
    assert all(0 < row["low"] <= row["images_per_second"] <= row["high"] and row["students"] == 8 for row in rows)
    assert rows[-1]["ratio_to_peer"] == 1
    text = report.page([{"what": "table", "machine": "this one"} | row for row in rows])
    assert "## A whole table" in text and f"| {rows[0]['images_per_second']:.0f} |" in text


def test_both_loaders_are_timed_on_all_files(tmp_path):
    loader.write_photographs(tmp_path, 9)
    for run, options in ((loader.run_ours, ()), (loader.run_peer, (False,)), (loader.run_peer, (True,))):
        rates = []

        def answer(rate, rates=rates):
            rates.append(rate)
            raise EOFError

        with pytest.raises(EOFError):
            run(tmp_path, 1, *options, answer)
        assert rates[0] > 0
    counted = []
    loader.rate([torch.zeros(3, 1), torch.zeros(2, 1)], counted.append)
    assert counted[0] > 0
    row = {"variant": loader.OURS, "n": 3, "images": 9, "workers": 1, "images_per_second": 70.2, "low": 60.0, "high": 80.0, "ratio": 1.25}
    report.write(tmp_path, {"loader": [row]}, "this machine")
    assert "| kd.data.jpeg | 70 | 60 to 80 | 1.25 |" in (tmp_path / "benchmark.md").read_text()


def test_a_process_that_fails_is_named(tmp_path):
    turns = step.take_part(step.PEER, PAIR, 1, tmp_path)
    with pytest.raises(ConfigError, match=r"^RepDistiller: ModuleNotFoundError: No module named '\w+'$"):
        turns.answer()
    turns.close()


def test_a_process_that_is_killed_is_named():
    turns = step.take_part("fp32", PAIR, 1, None)
    turns.process.kill()
    with pytest.raises(ConfigError, match="^fp32: its process ended with -9$"):
        turns.turn()
    turns.close()


def test_a_compiler_that_takes_too_long_is_given_up():
    turns = step.take_part(step.COMPILED, PAIR, 1, None)
    with pytest.raises(ConfigError, match="^bf16 compiled: not ready after 0.1 s$"):
        turns.answer(0.1)
    turns.close()
    assert not turns.process.is_alive()


BAD = [(["--peer", "."], "--peer .*RepDistiller"), (["--steps", "0"], "--steps")]


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        step.main([*arguments, "--reports", str(tmp_path)])
    assert stop.value.code == 2
    captured = capsys.readouterr().err
    assert re.search(message, captured) and captured.count("\n") == 1


def test_timed_data_train_alike(data, networks):
    ticks = iter(range(100))
    students = [tiny.network() for _ in range(2)]
    distill(students[0], make(["kd"]), networks[0], data, tiny.RECIPE)
    timed = step.timed(data.to("cpu"), lambda: next(ticks))
    distill(students[1], make(["kd"]), networks[0], timed, tiny.RECIPE)
    assert timed.spans == [1, 1, 1, 1]
    for a, b in zip(*(student.state_dict().values() for student in students), strict=True):
        assert torch.equal(a, b)


def test_a_methods_arithmetic_is_that_of_its_networks():
    rows = step.time_methods(1, 1, "cpu", PAIR, ("labels", "kd", "dml"))
    found = {row["method"]: row for row in rows}
    # of the same network: kd 1 + 3 forward passes' worth, labels 3, dml 2 networks forward and backward and 2 forward
    # the backward pass is a little less than twice the forward one, as no gradient goes into the images
    assert found["kd"]["arithmetic"] == 1 and found["kd"]["relative"] == 1
    assert 0.72 < found["labels"]["arithmetic"] < 0.75
    assert 1.97 < found["dml"]["arithmetic"] < 2.03


def test_every_way_of_rounding_is_compared_with_fp32():
    rows = {row["variant"]: row for row in step.neutrality(2, "cpu", epochs=2)}
    assert len(rows) == 4 and rows["fp32"]["difference"] == rows["fp32"]["interval"] == 0
    assert all(10 < row["accuracy"] < 100 for row in rows.values())


def test_cifar_size_stays_under_a_gibibyte():
    assert 150 < step.in_own_process(step.memory) < 1024  # the bytes of 50,000 images alone are 146 MiB


def test_import_brings_torch_and_little_more():
    heavy = ("torchvision", "scipy", "pandas", "sklearn", "matplotlib", "IPython", "nbformat")
    code = f"import sys, kd; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=step.ROOT)
    assert done.stdout.strip() == "[]"
