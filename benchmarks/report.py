"""The benchmark's report: benchmark.csv, benchmark.md and benchmark.png, of whatever was measured."""

import csv

from kd.report.markdown import grid_of

STEPS = """KD, batches of 64 random 32x32 images, augmentation included; medians of {n} turns of {steps} steps, and \
from least to most. Every variant runs in a process of its own. Of a product's speed: the arithmetic done in a second, \
over that of a large matrix product in the same type; convolutions may be faster than it. bf16: both networks run in \
bfloat16, losses and weights of the student stay in fp32, the teacher's norms are folded into its convolutions."""
TABLE = """Eight rows (labels, KD, FitNet, AT, FT, KR, IE-KD, KD + AT) of the same pair: images a second times the \
students that learn from them, medians of {n} turns of {steps} steps a row, and from least to most. Ours: as a study \
trains, a worker process a core, each with the eight students of a seed. RepDistiller: its loop once a row, on all cores, \
with its own distillers; KR and IE-KD, which it does not have, cost it what its KD costs. What FT and IE-KD train \
beforehand is left out on both sides."""
LOADER = """Training batches of 64 at 224 pixels from {images} JPEG files of 500x375 pixels (about 80 kB each, in memory): random crops, \
flips, normalised; {workers} processes decode. Medians of {n} turns of an epoch, and from least to most. torchvision's: its ImageFolder, \
PIL, and the transforms of its references/classification; once with its own normalisation and once with ours."""
METHODS = """resnet32x4 -> resnet8x4, fp32 channels_last. Time and arithmetic (multiply-adds, forward and backward) \
over those of KD's step."""
NEUTRALITY = """Digits, cnn6x16 -> cnn3x4, KD, {seeds} paired seeds: test accuracy in percent, and the difference from \
fp32 with its 95 % interval, in points."""

# the kind of a result: its heading, its text, and its table's columns, each as a cell is written
SECTIONS = {
    "steps": ("A training step", STEPS, {
        "pair": "{pair}", "variant": "{variant}", "ms a step": "{ms:.1f}", "spread": "{low:.1f} to {high:.1f}",
        "images/s": "{images_per_second:.0f}", "of a product's speed": "{share_of_ceiling:.0%}",
    }),
    "table": ("A whole table", TABLE, {
        "pair": "{pair}", "variant": "{variant}", "images/s": "{images_per_second:.0f}", "spread": "{low:.0f} to {high:.0f}",
    }),
    "phases": ("Its phases", "ms a step; evaluation: ms per 1000 images.", {"pair": "{pair}", "variant": "{variant}"}),
    "methods": ("A step of each method", METHODS, {
        "method": "{method}", "phase": "{phase}", "ms a step": "{ms:.1f}",
        "time": "{relative:.2f}", "arithmetic": "{arithmetic:.2f}",
    }),
    "loader": ("JPEG files", LOADER, {
        "variant": "{variant}", "images/s": "{images_per_second:.0f}", "spread": "{low:.0f} to {high:.0f}", "times torchvision": "{ratio:.2f}",
    }),
    "neutrality": ("Does it change what is learnt?", NEUTRALITY, {
        "variant": "{variant}", "accuracy": "{accuracy:.2f}", "difference": "{difference:+.2f}", "±": "{interval:.2f}",
    }),
}  # fmt: skip


HOW = """To repeat it: `make bench`; beside a checkout of RepDistiller, with torch.compile and the test of neutrality \
`python benchmarks/step.py --peer PATH --compile 400 --neutrality 30`; one section alone `--only table`, which keeps the \
others as they are. CUDA graphs and several seeds on one GPU (KD_GRAPHS, KD_WORKERS): not measured, no GPU yet."""


def page(rows):
    """The report in Markdown, of rows with a `what` (the kind) and a `machine`, as benchmark.csv has them."""
    text, machines = ["# Benchmark", HOW], {}
    for row in rows:
        machines.setdefault(row["what"], row["machine"])
    for kind, (title, words, columns) in SECTIONS.items():
        mine = [row for row in rows if row["what"] == kind]
        if not mine:
            continue
        if "ratio_to_peer" in mine[0]:
            columns = {**columns, "times RepDistiller": "{ratio_to_peer:.2f}"}
        if kind == "phases":  # a row a variant
            wide = {}
            for row in mine:
                wide.setdefault((row["pair"], row["variant"]), {**row})[row["phase"]] = row["ms"]
                columns = {**columns, row["phase"]: f"{{{row['phase']}:.1f}}"}
            mine = [*wide.values()]
        cells = [[cell.format(**row) for cell in columns.values()] for row in mine]
        text += [f"## {title}", f"{words.format(**mine[0])} Machine: {machines[kind]}.", grid_of(columns, cells)]
        text += ["![Time of a training step](benchmark.png)"] * (kind == "steps")
    if notes := [row["text"] for row in rows if row["what"] == "notes"]:
        text += ["## Notes", f"Machine: {machines['notes']}.", "\n".join(f"* {note}" for note in notes)]
    return "\n\n".join(text) + "\n"


def draw(rows, path):
    """Bars of ms a step, a panel a pair."""
    import matplotlib.pyplot as plt

    from kd.report.figures import COLOURS

    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    with plt.rc_context({"figure.constrained_layout.use": True}):
        figure, axes = plt.subplots(1, len(pairs), figsize=(5 * len(pairs), 3), squeeze=False)
        for axis, pair in zip(axes.flat, pairs, strict=True):
            mine = [row for row in rows if row["pair"] == pair]
            spread = [[row["ms"] - row["low"] for row in mine], [row["high"] - row["ms"] for row in mine]]
            colours = [COLOURS[row["variant"] == "RepDistiller"] for row in mine]
            axis.barh([row["variant"] for row in mine], [row["ms"] for row in mine], xerr=spread, color=colours)
            axis.set(title=pair, xlabel="ms a step of 64 images")
            axis.invert_yaxis()
        figure.savefig(path, dpi=100, metadata={"Software": None})
        plt.close(figure)


def read(path):
    """The rows of a benchmark.csv, numbers as numbers, without empty cells; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{name: number_or_text(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def number_or_text(value):
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError:
        return value


def write(folder, results, machine):
    """Write the three files into `folder`: results, {kind: rows}, measured on `machine`, and what was there of other kinds."""
    measured = [{"what": kind, "machine": machine} | row for kind, part in results.items() for row in part]
    rows = [row for row in read(folder / "benchmark.csv") if row["what"] not in results] + measured
    with open(folder / "benchmark.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    if steps := [row for row in rows if row["what"] == "steps"]:
        draw(steps, folder / "benchmark.png")
    (folder / "benchmark.md").write_text(page(rows))
