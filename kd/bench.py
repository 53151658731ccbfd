"""How fast a training step is, phase by phase, beside another project's loop, and whether going faster costs accuracy.

    python -m kd bench                       the steps of two pairs, the phases, every method's cost, memory and start-up
    python -m kd bench --peer PATH           RepDistiller's own loop as well, in turns with ours, and the ratio
    python -m kd bench --neutrality 10       ten paired seeds on the digits for each way of rounding differently

Images are random bytes of CIFAR's shape, made in memory: how long a step takes does not depend on what they show. What is
timed is `kd.distill` itself, data included, from the first batch of an epoch to the end of its last step. Variants take
turns, so that a machine that slows down slows all of them; the ratio to the peer is taken turn by turn.

CUDA works as the CPU does (the device is waited for before every look at the clock), with whole steps as CUDA graphs beside
the others (kd/graphs.py); it is not yet measured.
"""

import contextlib
import copy
import csv
import ctypes
import io
import os
import pickle
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from kd.data import Data, load_data
from kd.distill import distill, train
from kd.errors import Problem
from kd.methods import KNOWLEDGE, freeze, make
from kd.models import build, complexity, evaluate, run_networks
from kd.models.folded import folded
from kd.recipe import Recipe
from kd.records import interval
from kd.study import device_name, use_device, workers_and_device

ROOT = Path(__file__).resolve().parent.parent
PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
# a small rate: random labels at the papers' 0.05 may diverge, and a step takes the same time
ONCE = Recipe(epochs=1, batch_size=64, learning_rate=1e-3)
VARIANTS = {
    "fp32": ONCE.but(channels_last=False),
    "fp32 channels_last": ONCE,
    "bf16 channels_last": ONCE.but(precision="bf16"),
}
COMPILED, GRAPHS = "bf16 compiled", "bf16 CUDA graphs"
PEER = "RepDistiller"
MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product is the ceiling


def random_data(images, test=64, side=32, classes=100):
    """Data of `images` random train images (3, side, side), padding an eighth of the side, flipped, as CIFAR is."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": images, "validation": 0, "test": test}
    pixels = {s: torch.randint(0, 256, (n, 3, side, side), generator=generator, dtype=torch.uint8) for s, n in sizes.items()}
    labels = {s: torch.randint(0, classes, (n,), generator=generator) for s, n in sizes.items()}
    names = tuple(map(str, range(classes)))
    return Data("random", names, pixels, labels, (0.5,) * 3, (0.29,) * 3, padding=side // 8, flip=True)


def wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def clock(device):
    wait(device)
    return time.perf_counter()


class Watched(Data):
    """Data that looks at the clock when an epoch's first batch is asked for, and when the step after its last one is over."""

    def watch(self, clock, channels_last):
        self.clock, self.channels_last, self.spans = clock, channels_last, []
        return self

    def batches(self, *arguments, **options):
        began = self.clock()
        for batch in super().batches(*arguments, **options):
            yield batch if self.channels_last else batch._replace(images=channels_first(batch.images))
        self.spans.append(self.clock() - began)


def watched(data, clock, channels_last=True):
    return Watched(**{name: getattr(data, name) for name in data.__dataclass_fields__}).watch(clock, channels_last)


def channels_first(images):
    """The same images in torch's default layout. A batch comes in channels_last, and one such image batch turns every layer
    behind it to channels_last, whatever the weights' layout: recipe.channels_last=False alone changes no computation."""
    return images.clone(memory_format=torch.contiguous_format)


# RepDistiller's loop ------------------------------------------------------------------------------------------------


def as_by_itself():
    """Give another's loop the trim limit that glibc comes to by itself, in place of kd.distill.keep_memory's. It is not all that
    loop has without ours: the raised M_MMAP_THRESHOLD stays, from which it still gains, so that the ratio is a cautious one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD: twice the largest M_MMAP_THRESHOLD


class Peer:
    """RepDistiller's train_distill with its own networks, transforms, data set class and loader, from a checkout at `path`.

    Its loader starts its worker processes anew every epoch. An epoch of the real length hides that, a short one would not:
    so the clock starts when the workers are busy (after 2 batches a worker, and one), and stops while they still are.
    Workers: its 8, or a worker a core if there are fewer; more only made it slower.
    """

    def __init__(self, path, data, steps):
        path = Path(path).expanduser()
        if not (path / "helper" / "loops.py").exists():
            raise Problem(f"--peer {path}: no checkout of RepDistiller (helper/loops.py is missing)")
        sys.path.insert(0, str(path.resolve()))
        import torchvision.datasets.cifar as cifar
        from dataset import cifar100
        from distiller_zoo import DistillKL
        from helper.loops import train_distill
        from models import model_dict

        self.loop, self.models, self.divergence, self.steps = train_distill, model_dict, DistillKL, steps
        self.workers = min(8, os.cpu_count() or 1)
        self.first = 2 * self.workers + 1
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name) / "cifar-100-python"
        folder.mkdir()
        wanted = 64 * (self.first + steps + 2 * self.workers + 1)
        many = -(-wanted // len(data.labels["train"]))
        pixels = data.images["train"].cpu().flatten(1).repeat(many, 1)[:wanted].numpy()
        labels = data.labels["train"].cpu().repeat(many)[:wanted].tolist()
        for name, content in {
            "train": {"data": pixels, "fine_labels": labels},
            "test": {"data": pixels[:64], "fine_labels": labels[:64]},
            "meta": {"fine_label_names": list(data.classes)},
        }.items():
            (folder / name).write_bytes(pickle.dumps(content))
        # its data set class would look for the archive's own md5 and download it
        kept = cifar.check_integrity, cifar100.get_data_folder
        cifar.check_integrity, cifar100.get_data_folder = lambda *_: True, lambda: self.folder.name
        with contextlib.redirect_stdout(io.StringIO()):
            self.loader = cifar100.get_cifar100_dataloaders(64, self.workers, is_instance=True)[0]
        cifar.check_integrity, cifar100.get_data_folder = kept

    def prepare(self, pair, device):
        """A function that runs `steps` of its steps and gives the seconds they took."""
        classes = 100
        student, teacher = (self.models[name](num_classes=classes).to(device) for name in reversed(pair))
        criteria = [torch.nn.CrossEntropyLoss(), self.divergence(4), self.divergence(4)]
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        options = Namespace(distill="kd", gamma=0.1, alpha=0.9, beta=0.0, print_freq=100)

        def run():
            as_by_itself()
            span = []

            def batches():
                for place, batch in enumerate(self.loader):
                    if place in (self.first, self.first + self.steps):
                        span.append(clock(device))
                    if len(span) == 2:
                        return
                    yield batch

            class Loader:  # the loop asks for its length as well
                __iter__, __len__ = staticmethod(batches), lambda _: self.steps

            with contextlib.redirect_stdout(io.StringIO()):
                self.loop(1, Loader(), [student, teacher], criteria, optimizer, options)
            return span[1] - span[0]

        return run


# Ours ---------------------------------------------------------------------------------------------------------------


def our_run(pair, recipe, data, device, compiled=False, recorded=False):
    """A function that runs kd.distill for one epoch of `data` and gives the seconds of its steps, a recording included."""
    teacher, student = (build(name, len(data.classes)).to(device) for name in pair)
    freeze(teacher)
    if compiled:
        teacher = folded(teacher)
        for network in (teacher, student):
            network.compile(dynamic=False)
    data = watched(data, partial(clock, device), recipe.channels_last)

    def run():
        data.spans.clear()
        with mock.patch.dict(os.environ, {"KD_GRAPHS": str(int(recorded))}):
            distill(student, make(["kd"]), teacher, data, recipe)
        return data.spans[-1]

    return run


@contextlib.contextmanager
def limited(seconds):
    """Raises TimeoutError in what takes longer, where the system has alarms."""
    def late(*_):
        raise TimeoutError(f"not ready after {seconds} s")

    if not seconds or not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def time_pairs(steps, repeats, device, peer_path=None, compile_seconds=0, pairs=PAIRS, say=print):
    """Rows of {pair, variant, n, steps, milliseconds (median), low, high, images_per_second, ratio_to_peer, ...}."""
    data, rows, notes = random_data(64 * steps, test=0).to(device), [], []
    peer = Peer(peer_path, data, steps) if peer_path else None
    ceilings = {dtype: matrix_product(device, dtype, repeats) for dtype in (torch.float32, torch.bfloat16)}
    for pair in pairs:
        runs = {name: our_run(pair, recipe, data, device) for name, recipe in VARIANTS.items()}
        if peer:
            runs[PEER] = peer.prepare(pair, device)
        if device.startswith("cuda"):
            runs[GRAPHS] = our_run(pair, VARIANTS["bf16 channels_last"], data, device, recorded=True)
        for run in runs.values():
            run()  # the first time is another: memory is fetched, kernels are chosen
        if compile_seconds:
            try:
                with limited(compile_seconds):
                    run = our_run(pair, VARIANTS["bf16 channels_last"], data, device, compiled=True)
                    run()
                runs[COMPILED] = run
            except Exception as error:  # whatever a compiler of another machine may say is a result of this measurement
                reason = str(error).strip().partition("\n")[0][:150]
                notes.append(f"{' -> '.join(pair)}, {COMPILED}: not measured, {type(error).__name__}: {reason}")
        found = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                found[name].append(1e3 * run() / steps)
        operations = [complexity(build(name, 100), (3, 32, 32))[1] for name in pair]
        arithmetic = 2 * 64 * (operations[0] + 3 * operations[1])  # forward of both, and twice that backward
        for name, times in found.items():
            middle = statistics.median(times)
            row = {"pair": " -> ".join(pair), "variant": name, "n": repeats, "steps": steps}
            row |= {"ms": middle, "low": min(times), "high": max(times), "images_per_second": 64e3 / middle}
            dtype = torch.bfloat16 if name.startswith("bf16") else torch.float32
            row["share_of_ceiling"] = arithmetic / (middle / 1e3) / ceilings[dtype]
            if peer:
                row["ratio_to_peer"] = statistics.median(p / t for p, t in zip(found[PEER], times, strict=True))
            rows.append(row)
            say("{pair}  {variant:20s} {ms:8.1f} ms a step  {images_per_second:8.0f} images/s".format(**row)
                + (f"  {row['ratio_to_peer']:.2f} times {PEER}" if peer else ""))
    notes += [f"the large product, {str(dtype).split('.')[1]}: {value / 1e9:.0f} billion operations a second" for dtype, value in ceilings.items()]
    if peer:
        notes.append(f"{PEER}: {peer.workers} loader workers, batches of 64, fp32, its own networks, transforms and loop")
    return rows, notes


def matrix_product(device, dtype, repeats=5):
    """Operations a second (a multiply-add is two) of the product of two large square matrices: the median of `repeats`."""
    side = MATRIX["cuda" if device.startswith("cuda") else "cpu"]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    times = []
    for _ in range(repeats + 1):
        began = clock(device)
        a @ b
        times.append(clock(device) - began)
    return 2 * side**3 / statistics.median(times[1:])


def time_phases(steps, device, pairs=PAIRS):
    """Rows of {pair, variant, phase, ms}: medians over steps of the same operations as in the loop, one after another.

    Evaluation is that of the student, in ms per 1000 images.
    """
    data, rows = random_data(64 * steps, test=1000).to(device), []
    for pair in pairs:
        for name, recipe in VARIANTS.items():
            layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
            teacher, student = (build(network, 100).to(device, memory_format=layout) for network in pair)
            teacher = freeze(teacher)
            if recipe.precision == "bf16":
                teacher = folded(teacher, torch.bfloat16)
            optimizer, knowledge = recipe.build_optimizer(student.parameters()), make(["kd"]).knowledge
            times = {phase: [] for phase in ("data", "teacher", "student forward", "backward", "optimizer", "evaluation")}
            for attempt in range(2):  # the first is for warming up
                for taken in times.values():
                    taken.clear()
                batches = data.batches(0, attempt, 64)
                for _ in range(steps):
                    marks = [clock(device)]
                    images, labels, _ = next(batches)
                    images = images if recipe.channels_last else channels_first(images)
                    marks.append(clock(device))
                    with torch.no_grad():
                        theirs = run_networks(teacher, images, recipe.precision)
                    marks.append(clock(device))
                    mine = run_networks(student.train(), images, recipe.precision)
                    loss = sum(knowledge.loss(mine, theirs, labels).values()) + 0.1 * F.cross_entropy(mine.logits, labels)
                    marks.append(clock(device))
                    loss.backward()
                    marks.append(clock(device))
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    marks.append(clock(device))
                    for phase, first, last in zip(times, marks, marks[1:], strict=False):
                        times[phase].append(1e3 * (last - first))
                began = clock(device)
                evaluate(student, data, "test", recipe.precision)
                times["evaluation"].append(1e3 * (clock(device) - began))
            # images are cut out for several batches at once: a mean, where the other phases have medians
            means = {"data": statistics.mean(times.pop("data"))} | {p: statistics.median(t) for p, t in times.items()}
            rows += [{"pair": " -> ".join(pair), "variant": name, "phase": phase, "ms": ms} for phase, ms in means.items()]
    return rows


# Methods ------------------------------------------------------------------------------------------------------------


def time_methods(steps, repeats, device, pair=PAIRS[1], names=tuple(KNOWLEDGE)):
    """Rows of {method, phase, ms, relative, arithmetic}: a step of every phase of every method, fp32 channels_last.

    relative: its time over that of KD's step, turn by turn, the median. arithmetic: its multiply-adds (forward and backward)
    over KD's. A curriculum costs what the knowledge under it costs; narrow widths of a supernet cost less.
    """
    shape, found, counted = random_data(64 * steps, test=8).to(device), {}, {}
    networks = [build(name, 100).to(device) for name in pair]
    for turn in range(repeats + 1):
        for name in names:
            data = shape if turn else random_data(64, test=8).to(device)
            counter = FlopCounterMode(display=False)
            look = partial(clock, device) if turn else counter.get_total_flops
            data = watched(data, look)
            teacher, student = (copy.deepcopy(network) for network in networks)
            with counter if not turn else contextlib.nullcontext():
                result = distill(student, make([name]), teacher, data, ONCE)
            phases = {}
            for entry, span in zip(result.curve, data.spans, strict=True):
                phases.setdefault(entry["phase"], []).append(span)
            for phase, spans in phases.items():
                where, each = (found, 1e3 / steps) if turn else (counted, 1)
                where.setdefault((name, phase), []).append(each * statistics.mean(spans))
    base, rows = found["kd", "lesson"], []
    for key, times in found.items():
        relative = statistics.median(t / b for t, b in zip(times, base, strict=True))
        arithmetic = counted[key][0] / counted["kd", "lesson"][0]
        rows.append({"method": key[0], "phase": key[1], "ms": statistics.median(times), "relative": relative, "arithmetic": arithmetic})
    return rows


# Accuracy, memory, start-up -----------------------------------------------------------------------------------------


def neutrality(seeds, device, epochs=20, say=print):
    """Rows of {variant, seeds, accuracy, difference, interval}: paired with fp32 in torch's default layout, test accuracy in points.

    digits, cnn6x16 -> cnn3x4 with KD (the layout is that of training; accuracy is taken in channels_last throughout), the recipe of the digits profile; one teacher for all.
    """
    data = load_data("digits", padding=1, flip=False, cache=None).to(device)
    recipe = Recipe(epochs=epochs, learning_rate=0.1)
    torch.manual_seed(0)
    teacher = build("cnn6x16", 10, 1).to(device)
    train(teacher, data, recipe)
    plain = folded(freeze(teacher))
    variants = {
        "fp32": (recipe.but(channels_last=False), teacher),
        "fp32 channels_last": (recipe, teacher),
        "fp32, teacher's norms folded": (recipe, plain),
        "bf16 channels_last": (recipe.but(precision="bf16"), teacher),
    }
    found = {name: [] for name in variants}
    for seed in range(seeds):
        for name, (way, source) in variants.items():
            torch.manual_seed(seed)
            student = build("cnn3x4", 10, 1).to(device)
            seen = watched(data, lambda: 0, way.channels_last)
            found[name].append(distill(student, make(["kd"]), source, seen, way, seed).last["test"])
        say(f"neutrality: seed {seed + 1} of {seeds}")
    rows = []
    for name, values in found.items():
        difference, width = interval([v - b for v, b in zip(values, found["fp32"], strict=True)])
        rows.append({"variant": name, "seeds": seeds, "accuracy": statistics.mean(values), "difference": difference, "interval": width})
    return rows


PEAK = """
import resource, sys, torch
torch.set_num_threads(1)
from kd.bench import random_data

def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # not ru_maxrss, which on Linux a process inherits from the one that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 2**10

before = peak()
data = random_data(50_000, test=10_000)
for batch in data.batches(0, 0, 64): pass
for batch in data.chunks("test", 2000): pass
print(peak() - before)
"""


def memory():
    """Peak MiB that 50,000 + 10,000 images of 3x32x32 take beyond the program, an epoch's and an evaluation's batches included."""
    try:
        return float(python("-c", PEAK).stdout)
    except subprocess.CalledProcessError as error:
        raise Problem(f"memory was not measured: {error.stderr.strip().splitlines()[-1:]}") from None


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


def start_up(repeats=3):
    """Notes: seconds to import torch alone and kd, and of `dvc repro` where it has nothing to do. Medians."""
    def seconds(*arguments):
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            python(*arguments)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    notes = [f"`import {name}`: {seconds('-c', f'import {name}'):.2f} s, a python with nothing else loaded" for name in ("torch", "kd")]
    try:
        idle = python("-m", "dvc", "status", "--quiet", "dvc.yaml") and seconds("-m", "dvc", "repro")
        return [*notes, f"`dvc repro` with nothing to do: {idle:.2f} s"]
    except subprocess.CalledProcessError:
        return [*notes, "`dvc repro` with nothing to do: not measured, the pipeline has something to do here"]


# The page -----------------------------------------------------------------------------------------------------------


def machine(device):
    threads = "" if device.startswith("cuda") else f", {torch.get_num_threads()} threads"
    return f"{device_name(device)}{threads}; Python {platform.python_version()}, torch {torch.__version__}"


def table(rows, columns):
    """Markdown of some columns of rows: {heading: (key, format)}."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(format(row[key], form) for key, form in columns.values()) + " |")
    return "\n".join(lines)


def page(results, notes, about, command):
    """The report in Markdown, of whatever was measured."""
    text = ["# Benchmark", f"Machine: {about}.", f"To repeat it: `{command}`"]
    if rows := results.get("steps"):
        text += ["## A training step", f"KD, batches of 64 random 32x32 images, augmentation included; medians of {rows[0]['n']} turns of {rows[0]['steps']} steps, "
                 "least and most in brackets. Of a product's speed: the arithmetic done in a second, over that of a large matrix product in the same type; convolutions may be faster than it. "
                 "bf16: both networks run in bfloat16, losses and weights of the student stay in fp32, the teacher's norms are folded into its convolutions."]
        for row in rows:
            row["spread"] = f"{row['low']:.1f} to {row['high']:.1f}"
        columns = {"pair": ("pair", ""), "variant": ("variant", ""), "ms a step": ("ms", ".1f"), "spread": ("spread", ""),
                   "images/s": ("images_per_second", ".0f"), "of a product's speed": ("share_of_ceiling", ".0%")}
        if "ratio_to_peer" in rows[0]:
            columns[f"times {PEER}"] = ("ratio_to_peer", ".2f")
        text += [table(rows, columns), "![Time of a training step](benchmark.png)"]
    if rows := results.get("phases"):
        names = list(dict.fromkeys(row["phase"] for row in rows))
        wide = {}
        for row in rows:
            wide.setdefault((row["pair"], row["variant"]), {"pair": row["pair"], "variant": row["variant"]})[row["phase"]] = row["ms"]
        text += ["## Its phases", "ms a step; evaluation: ms per 1000 images."]
        text += [table(wide.values(), {name: (name, "") for name in ("pair", "variant")} | {name: (name, ".1f") for name in names})]
    if rows := results.get("methods"):
        text += ["## A step of each method", f"{' -> '.join(PAIRS[1])}, fp32 channels_last. Time and arithmetic (multiply-adds, forward and backward) over those of KD's step."]
        text += [table(rows, {"method": ("method", ""), "phase": ("phase", ""), "ms a step": ("ms", ".1f"), "time": ("relative", ".2f"), "arithmetic": ("arithmetic", ".2f")})]
    if rows := results.get("neutrality"):
        text += ["## Does it change what is learnt?", f"Digits, cnn6x16 -> cnn3x4, KD, {rows[0]['seeds']} paired seeds: test accuracy in percent, and the difference from fp32 with its 95 % interval, in points."]
        text += [table(rows, {"variant": ("variant", ""), "accuracy": ("accuracy", ".2f"), "difference": ("difference", "+.2f"), "±": ("interval", ".2f")})]
    return "\n\n".join([*text, "## Notes", "\n".join(f"* {note}" for note in notes)]) + "\n"


def draw(rows, path):
    """Bars of ms a step, a panel a pair."""
    import matplotlib.pyplot as plt

    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    with plt.rc_context({"figure.constrained_layout.use": True}):
        figure, axes = plt.subplots(1, len(pairs), figsize=(5 * len(pairs), 3), squeeze=False)
        for axis, pair in zip(axes.flat, pairs, strict=True):
            mine = [row for row in rows if row["pair"] == pair]
            middle = [row["ms"] for row in mine]
            spread = [[row["ms"] - row["low"] for row in mine], [row["high"] - row["ms"] for row in mine]]
            colours = ["#D55E00" if row["variant"] == PEER else "#0072B2" for row in mine]
            axis.barh([row["variant"] for row in mine], middle, xerr=spread, color=colours)
            axis.set(title=pair, xlabel="ms a step of 64 images")
            axis.invert_yaxis()
        figure.savefig(path, dpi=100, metadata={"Software": None})
        plt.close(figure)


def bench(options):
    """Measure, print, and write benchmark.csv, benchmark.md and benchmark.png into the reports' folder."""
    device = workers_and_device()[1]
    if os.environ.get("KD_THREADS") or device != "cpu":
        use_device()  # else all cores: nothing else should run beside a measurement
    folder = Path(options.reports or ROOT / "reports")
    folder.mkdir(parents=True, exist_ok=True)
    # first what may go wrong outside of this process: later it would take the measurements with it
    outside = [f"50,000 + 10,000 images of 3x32x32 take {memory():.0f} MiB at most beyond the program, batches included", *start_up()]
    results, results["steps"], notes = {}, *time_pairs(options.steps, options.repeats, device, options.peer, options.compile)
    print("phases ...")
    results["phases"] = time_phases(options.steps, device)
    if options.methods:
        print("methods ...")
        results["methods"] = time_methods(max(2, options.steps // 4), options.repeats, device)
    if options.neutrality:
        results["neutrality"] = neutrality(options.neutrality, device)
    notes += outside
    if not device.startswith("cuda"):
        notes.append("CUDA graphs (kd/graphs.py) and several seeds on one GPU (KD_WORKERS processes): not measured, no GPU here")
    about = machine(device)
    rows = [{"what": what, "machine": about} | row for what, part in results.items() for row in part]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "benchmark.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    flags = [f"--steps {options.steps} --repeats {options.repeats}"] + ["--peer PATH"] * bool(options.peer)
    flags += [f"--compile {options.compile}"] * bool(options.compile) + ["--no-methods"] * (not options.methods)
    flags += [f"--neutrality {options.neutrality}"] * bool(options.neutrality)
    draw(results["steps"], folder / "benchmark.png")
    (folder / "benchmark.md").write_text(page(results, notes, about, " ".join(["python -m kd bench", *flags])))
    print(f"{folder / 'benchmark.md'}: the tables")
