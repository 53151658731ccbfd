"""How fast a training step is, phase by phase, beside another project's loop, and whether going faster costs accuracy.

    python benchmarks/step.py                    the steps of two pairs, their phases, every method, memory, start-up
    python benchmarks/step.py --peer PATH        RepDistiller's own loop as well, in turns with ours, and the ratio
    python benchmarks/step.py --neutrality 10    ten paired seeds on the digits for each way of rounding differently

Images are random bytes of CIFAR's shape, made in memory: how long a step takes does not depend on what they show. What
is timed is `kd.distill` itself, data included, from the first batch of an epoch to the end of its last step. Every
variant runs in a process of its own, ours under the memory limits that training sets, the peer's loop under the C
library's defaults. They take turns of one epoch, so that a machine that slows down slows all of them; the ratio to the
peer is taken turn by turn. On a GPU, steps as CUDA graphs (kd/graphs.py) stand beside the others; that is not yet
measured.
"""

import argparse
import contextlib
import copy
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import peer, report
from benchmarks.loader import time_loaders
from benchmarks.peer import BATCH, CLASSES
from benchmarks.table import time_table
from benchmarks.turns import Turns, clock, in_own_process
from kd.data import Data, load_data
from kd.errors import ConfigError
from kd.methods import KNOWLEDGE, freeze, make
from kd.models import build, complexity, evaluate
from kd.models.fused import fuse_batchnorm
from kd.recipe import Recipe
from kd.statistics import interval
from kd.study.group import KEEP_MEMORY
from kd.study.settings import device_name, peak_memory, use_device
from kd.training import distill, train

ROOT = Path(__file__).resolve().parent.parent
PAIRS = (("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"))
# a small rate: random labels at the papers' 0.05 may diverge, and a step takes the same time
RECIPE = Recipe(epochs=1, batch_size=BATCH, learning_rate=1e-3)
BF16 = RECIPE.replace(precision="bf16")
VARIANTS = {"fp32": RECIPE.replace(channels_last=False), "fp32 channels_last": RECIPE, "bf16 channels_last": BF16}
COMPILED, GRAPHS, PEER = "bf16 compiled", "bf16 CUDA graphs", peer.NAME
TABLE = {
    "one row after another, fp32": (RECIPE, False),
    "side by side, fp32": (RECIPE, True),
    "side by side, bf16": (BF16, True),
}
MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product is the ceiling


def random_data(images, test=0, side=32, classes=CLASSES):
    """Data of `images` random train images (3, side, side), padded by side / 8 and flipped, as CIFAR is."""
    generator, pixels, labels = torch.Generator().manual_seed(0), {}, {}
    for split, count in {"train": images, "validation": 0, "test": test}.items():
        pixels[split] = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        labels[split] = torch.randint(0, classes, (count,), generator=generator)
    names = tuple(map(str, range(classes)))
    return Data("random", names, pixels, labels, (0.5,) * 3, (0.29,) * 3, side // 8, flip=True)


def timed(data, clock=clock):
    """`data`, noting in `spans` how far `clock` goes each epoch, from its first batch to the end of its last step."""
    batches, data.spans = data.batches, []

    def timed_batches(*arguments, **options):
        began = clock()
        yield from batches(*arguments, **options)
        data.spans.append(clock() - began)

    data.batches = timed_batches
    return data


def networks(pair, device):
    """(teacher, student), freshly initialised, the teacher frozen."""
    teacher, student = (build(name, CLASSES).to(device) for name in pair)
    return freeze(teacher), student


def run_peer(checkout, pair, steps, answer):
    peer.run(checkout, pair, steps, use_device(), clock, lambda seconds: answer(1e3 * seconds / steps))


def run_ours(variant, pair, steps, answer):
    """kd.distill; answer(the milliseconds of a step) is called after each epoch of `steps`, of which there are enough."""
    device = use_device()
    teacher, student = networks(pair, device)
    if variant == COMPILED:
        teacher = fuse_batchnorm(teacher)
        for network in (teacher, student):
            network.compile(dynamic=False)
    data = timed(random_data(BATCH * steps).to(device))
    recipe = VARIANTS.get(variant, BF16).replace(epochs=1_000_000, schedule="constant")
    distill(student, make(["kd"]), teacher, data, recipe, after_epoch=lambda *_: answer(1e3 * data.spans[-1] / steps))


def take_part(variant, pair, steps, checkout):
    """The Turns of a variant, which answers with milliseconds a step."""
    if variant == PEER:
        return Turns(variant, run_peer, checkout, pair, steps, variables={})
    return Turns(
        variant, run_ours, variant, pair, steps, variables={**KEEP_MEMORY, "KD_GRAPHS": str(int(variant == GRAPHS))}
    )


def time_steps(steps, repeats, device, checkout=None, compile_seconds=0, pairs=PAIRS):
    """(rows of {pair, variant, n, steps, ms, low, high, images_per_second, share_of_ceiling, ratio_to_peer}, notes)."""
    further = {PEER: checkout, GRAPHS: device.startswith("cuda"), COMPILED: compile_seconds}
    names = [*VARIANTS, *(name for name, wanted in further.items() if wanted)]
    ceilings = {dtype: matrix_product(device, dtype, repeats) for dtype in (torch.float32, torch.bfloat16)}
    rows, notes = [], []
    for pair in pairs:
        title, variants = " -> ".join(pair), {}
        with contextlib.ExitStack() as stack:
            for name in names:
                turns = take_part(name, pair, steps, checkout)
                stack.callback(turns.close)
                try:
                    turns.answer(compile_seconds if name == COMPILED else None)
                    variants[name] = turns
                except ConfigError as error:
                    if name != COMPILED:  # whatever a compiler of another machine may say is a result
                        raise
                    notes.append(f"{title}, not measured: {error}")
            turns = [{name: variant.turn() for name, variant in variants.items()} for _ in range(repeats)]
        teacher, student = (complexity(build(name, CLASSES), (3, 32, 32))[1] for name in pair)
        operations = 2 * BATCH * (teacher + 3 * student)  # forward of both, and twice that backward
        for name in variants:
            times = [turn[name] for turn in turns]
            ceiling = ceilings[torch.bfloat16 if name.startswith("bf16") else torch.float32]
            row = {"pair": title, "variant": name, "n": repeats, "steps": steps, "ms": median(times)}
            row |= {"low": min(times), "high": max(times), "images_per_second": 1e3 * BATCH / row["ms"]}
            row["share_of_ceiling"] = operations / (row["ms"] / 1e3) / ceiling
            if checkout:
                row["ratio_to_peer"] = median(turn[PEER] / turn[name] for turn in turns)
            rows.append(row)
            print("{pair}  {variant:20s} {ms:8.1f} ms a step ({low:.1f} to {high:.1f})".format(**row))
    for dtype, ceiling in ceilings.items():
        notes.append(f"the large product, {str(dtype).split('.')[1]}: {ceiling / 1e9:.0f} billion operations a second")
    if checkout:
        notes.append(f"{PEER}: {peer.WORKERS} loader workers, batches of 64, fp32; its own networks, transforms, loop")
    return rows, notes


def matrix_product(device, dtype, repeats):
    """Operations a second (a multiply-add is two) of the product of two large square matrices: median of `repeats`."""
    side, times = MATRIX["cuda" if device.startswith("cuda") else "cpu"], []
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    for _ in range(repeats + 1):
        began = clock()
        a @ b
        times.append(clock() - began)
    return 2 * side**3 / median(times[1:])


def time_phases(steps, device, pairs=PAIRS):
    """Rows of {pair, variant, phase, ms} of the loop's own steps, and of evaluating the student, in ms per 1000 images.

    Medians; of data the mean: crops are cut for several batches at once. The student's forward pass includes the loss.
    """
    unseen, rows = random_data(BATCH, test=1000).to(device), []
    for pair in pairs:
        for variant, recipe in VARIANTS.items():
            teacher, student = networks(pair, device)
            times = phases(teacher, student, random_data(BATCH * steps).to(device), recipe)
            for _ in range(2):  # the first is for warming up
                began = clock()
                evaluate(student, unseen, "test", recipe.precision)
                times["evaluation"] = [1e3 * (clock() - began)]
            for phase, taken in times.items():
                ms = mean(taken) if phase == "data" else median(taken)
                rows.append({"pair": " -> ".join(pair), "variant": variant, "phase": phase, "ms": ms})
    return rows


def phases(teacher, student, data, recipe):
    """{phase: its milliseconds in each step} of the second epoch of a run; the first is for warming up."""
    marks, batches = [], data.batches

    def mark(phase):
        """A hook for the end of that phase."""
        return lambda *_: marks.append((phase, clock()))

    def marked_batches(*arguments, **options):
        marks[:] = [("start", clock())]
        for batch in batches(*arguments, **options):
            mark("data")()
            yield batch
            mark("optimizer")()

    def mark_gradient(network, inputs, output):
        if output.logits.requires_grad:
            output.logits.register_hook(mark("student forward"))

    data.batches = marked_batches
    teacher.register_forward_hook(mark("teacher"))
    student.register_forward_hook(mark_gradient)
    handle = register_optimizer_step_pre_hook(mark("backward"))
    distill(student, make(["kd"]), teacher, data, recipe.replace(epochs=2))
    handle.remove()
    times = {}
    for (_, began), (phase, ended) in zip(marks, marks[1:], strict=False):
        times.setdefault(phase, []).append(1e3 * (ended - began))
    return times


def time_methods(steps, repeats, device, pair=PAIRS[1], names=tuple(KNOWLEDGE)):
    """Rows of {method, phase, ms, relative, arithmetic}: a step of every phase of every method, fp32 channels_last.

    relative: its time over that of KD's step, turn by turn, the median. arithmetic: its multiply-adds (forward and
    backward) over KD's. A curriculum costs what the knowledge under it costs; narrow widths of a supernet cost less.
    """
    fresh, base, turns, counted = networks(pair, device), ("kd", "lesson"), [], {}

    def spans(name, data):
        """{(method, phase): the mean span of its epochs} of a run."""
        teacher, student = copy.deepcopy(fresh)
        curve, found = distill(student, make([name]), teacher, data, RECIPE).curve, {}
        for entry, span in zip(curve, data.spans, strict=True):
            found.setdefault((name, entry["phase"]), []).append(span)
        return {key: mean(values) for key, values in found.items()}

    for name in names:
        with FlopCounterMode(display=False) as counter:
            counted |= spans(name, timed(random_data(BATCH, test=8).to(device), counter.get_total_flops))
    for _ in range(repeats):
        turns.append({})
        for name in names:
            turns[-1] |= spans(name, timed(random_data(BATCH * steps, test=8).to(device)))
    rows = []
    for key in counted:
        row = {"method": key[0], "phase": key[1], "ms": 1e3 * median(turn[key] for turn in turns) / steps}
        row["relative"] = median(turn[key] / turn[base] for turn in turns)
        rows.append(row | {"arithmetic": counted[key] / counted[base]})
    return rows


def neutrality(seeds, device, epochs=20):
    """Rows of {variant, seeds, accuracy, difference, interval}: test accuracy in percent, and against fp32, in points.

    digits, cnn6x16 -> cnn3x4 with KD, the recipe of the digits profile; one teacher for all. fp32 is trained in torch's
    own layout, and accuracy taken in channels_last throughout.
    """
    data, recipe = load_data("digits", padding=1, flip=False, cache=None).to(device), Recipe(epochs, learning_rate=0.1)
    torch.manual_seed(0)
    teacher = build("cnn6x16", 10, 1).to(device)
    train(teacher, data, recipe)

    def channels_first(*arguments, **options):
        """Grey images lie in both layouts at once, and torch takes them for channels_last unless they are copied."""
        for batch in data.batches(*arguments, **options):
            yield batch._replace(images=batch.images.clone(memory_format=torch.contiguous_format))

    plain = copy.copy(data)
    plain.batches = channels_first
    variants = {
        "fp32": (teacher, plain, recipe.replace(channels_last=False)),
        "fp32 channels_last": (teacher, data, recipe),
        "fp32, teacher's norms folded": (fuse_batchnorm(freeze(teacher)), data, recipe),
        "bf16 channels_last": (teacher, data, recipe.replace(precision="bf16")),
    }
    found, rows = {name: [] for name in variants}, []
    for seed in range(seeds):
        for name, way in variants.items():
            torch.manual_seed(seed)
            student = build("cnn3x4", 10, 1).to(device)
            found[name].append(distill(student, make(["kd"]), *way, seed).last["test"])
    for name, values in found.items():
        row = {"variant": name, "seeds": seeds, "accuracy": mean(values)}
        row["difference"], row["interval"] = interval([v - b for v, b in zip(values, found["fp32"], strict=True)])
        rows.append(row)
    return rows


def memory():
    """MiB by which an epoch and an evaluation of 50,000 + 10,000 images of 3x32x32 raise this process's peak."""
    before = peak_memory()
    data = random_data(50_000, test=10_000)
    for batches in (data.batches(0, 0, BATCH), data.chunks("test", 2000)):
        for _ in batches:
            pass
    return peak_memory() - before


def seconds_to_import(name):
    """In a new Python with nothing else loaded, its start included; the median of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, check=True)
        times.append(time.perf_counter() - began)
    return median(times)


def benchmark(options):
    """Measure, print, and write the report."""
    if min(options.steps, options.repeats) < 1:
        raise ConfigError("--steps and --repeats must be at least 1")
    checkout = options.peer and Path(options.peer).expanduser().resolve()
    if checkout and not (checkout / "helper" / "loops.py").exists():
        raise ConfigError(f"--peer {checkout}: no checkout of RepDistiller (helper/loops.py is missing)")
    os.environ.setdefault("KD_THREADS", str(os.cpu_count()))  # nothing else should run beside a measurement
    device, folder = use_device(), Path(options.reports)
    folder.mkdir(parents=True, exist_ok=True)
    wanted, results = options.only or report.SECTIONS, {}
    if "steps" in wanted:
        print("memory, start-up, steps ...")
        size = in_own_process(memory)
        notes = [f"50,000 + 10,000 images of 3x32x32 take {size:.0f} MiB at most beyond the program, batches included"]
        notes += [f"`import {name}`, with Python's start: {seconds_to_import(name):.2f} s" for name in ("torch", "kd")]
        results["steps"], more = time_steps(options.steps, options.repeats, device, checkout, options.compile)
        results["notes"] = [{"text": note} for note in (*notes, *more)]
    if "table" in wanted and not device.startswith("cuda"):
        print("table ...")
        sizes = max(2, options.steps // 5), options.repeats  # of eight students each
        results["table"] = time_table(*sizes, random_data, TABLE, checkout, PAIRS)
    if "phases" in wanted:
        print("phases ...")
        results["phases"] = in_own_process(time_phases, options.steps, device)
    if "methods" in wanted:
        print("methods ...")
        results["methods"] = in_own_process(time_methods, max(2, options.steps // 4), options.repeats, device)
    if "loader" in wanted:
        print("loader ...")
        results["loader"] = time_loaders(options.repeats)
    if "neutrality" in wanted and options.neutrality:
        print("neutrality ...")
        results["neutrality"] = in_own_process(neutrality, options.neutrality, device)
    machine = device_name(device)
    if not device.startswith("cuda"):
        machine += f", {torch.get_num_threads()} threads"
    machine += f"; Python {platform.python_version()}, torch {torch.__version__}"
    report.write(folder, results, machine)
    print(f"{folder / 'benchmark.md'}: the tables")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peer", metavar="PATH", help="a checkout of RepDistiller, whose own loop is then timed beside ours")
    add("--repeats", type=int, default=5, help="turns")
    add("--steps", type=int, default=20, help="steps a turn")
    add("--compile", type=int, default=0, metavar="SECONDS", help="also torch.compile, given up after that long")
    add("--neutrality", type=int, default=0, metavar="SEEDS", help="also accuracy on the digits, over paired seeds")
    add(
        "--only",
        nargs="+",
        choices=report.SECTIONS,
        help="measure these alone; the report keeps what it has of the others",
    )
    add("--reports", metavar="FOLDER", default=ROOT / "reports", help="where the report goes; default: reports/")
    try:
        benchmark(parser.parse_args(arguments))
    except ConfigError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
