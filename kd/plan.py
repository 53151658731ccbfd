"""What `dvc repro` would run under the parameters in force, and about how long it would take: `python -m kd plan`."""

import json
import math
from collections import defaultdict
from functools import cache
from pathlib import Path

from kd.errors import Problem
from kd.methods import CURRICULA, KNOWLEDGE, make
from kd.models import Supernet, build, complexity
from kd.records import grid_of, method_name, read_records
from kd.stream import open_stream
from kd.study import (
    MACHINE,
    ROOT,
    STAGES,
    Study,
    asked_rows,
    duration,
    images_path,
    key_of,
    load_table,
    parameters_file,
    stage_of,
)
from kd.tables import names

# What a data set is before it is there: (images to train and validate on, image shape, classes).
KNOWN_DATA = {
    "digits": (1257, (1, 8, 8), 10),
    "cifar10": (50_000, (3, 32, 32), 10),
    "cifar100": (50_000, (3, 32, 32), 100),
}
# airbench's plain baseline: 32.3 PFLOP in 7 minutes on an A100 (KellerJordan/cifar10-airbench, README.md)
SUSTAINED = 32.3e15 / (7 * 60)
LAUNCH = 8e-6  # seconds to start one GPU kernel from Python; an estimate. Small networks wait for this, not for arithmetic
OTHER_KERNELS = 50  # a step's, beside the layers': batch, losses, optimizer


class Planned(Study):
    """A Study of runs that nobody has made yet: what is not known before data and teachers exist stands as a placeholder."""

    data_md5 = "not yet known"

    def __init__(self, params):
        self.stage, self.params, self.profile = "plan", params, params["profile"]
        self.seeds = {"main": params["seeds"], "grid": params["grid_seeds"]}
        self.parameters = {name: dict(params.get(name) or {}) for name in (*KNOWLEDGE, *CURRICULA)}
        self.data_path, self.after, self.records, self.rows = Path("data"), [], {}, []

    @staticmethod
    def md5_of(path):
        return f"not yet known: {Path(path).name}"


def data_facts(params):
    """(training images, image shape, classes) of the data in params.yaml, or None when nobody can know yet."""
    name, profile, held_out = params["data"]["name"], params["profile"], params["data"].get("validation") or 0
    if known := KNOWN_DATA.get(name):
        return min(known[0] - held_out, (params["data"].get("images_per_class") or known[0]) * known[2]), *known[1:]
    if images_path(profile).exists():
        data = open_stream(images_path(profile))  # looks at the file without reading its images
        return len(data.labels["train"]), data.image_shape, len(data.classes)
    return None


@cache
def size_of(network, classes, shape, widths=()):
    """(multiply-adds of one image's forward pass, number of layers); with `widths` of all of a supernet's together."""
    module = build(network, classes, shape[0])
    layers = sum(1 for part in module.modules() if not list(part.children()))
    if not widths:
        return complexity(module, shape)[1], layers
    module, total = Supernet(module, widths), 0
    for index in range(len(widths)):
        module.select(index)
        total += complexity(module, shape)[1]
    return total, layers * len(widths)


def seconds_on_gpu(images, batch_size, forward, trained):
    """An epoch: forward and trained are (multiply-adds an image, layers) of what only looks and of what learns.

    The longer of arithmetic (2 operations a multiply-add; learning takes 3 forward passes' worth) and starting the kernels.
    """
    arithmetic = 2 * images * (forward[0] + 3 * trained[0]) / SUSTAINED
    launches = math.ceil(images / batch_size) * LAUNCH * (forward[1] + 3 * trained[1] + OTHER_KERNELS)
    return max(arithmetic, launches)


def machine_records(profile):
    """([machine record, ...], {key: record}) of the runs made so far."""
    machines = [json.loads(line) for path in sorted((MACHINE / profile).glob("*.jsonl")) for line in path.read_text().splitlines()]
    return machines, {r["key"]: r for path in (ROOT / "runs" / profile).glob("*/records.jsonl") for r in read_records(path.parent)}


def measured_rates(profile):
    """({(pair, method): seconds a student epoch}, devices) from the machine records of runs made so far."""
    machines, records = machine_records(profile)
    spent, epochs, devices = defaultdict(float), defaultdict(int), set()
    for machine in machines:
        if record := records.get(machine["key"]):
            kind = student_of(record["run"]), method_name(record["run"])
            spent[kind] += machine["seconds"]
            epochs[kind] += record["epochs"]
            devices.add(machine["device"])
    return {kind: spent[kind] / epochs[kind] for kind in spent if epochs[kind]}, sorted(devices)


def student_of(run):
    return run["teacher"], run["student"]


def student_epochs(run):
    """Epochs in which the student learns, those of the method's preparations included."""
    method = make(run["knowledge"], run["curriculum"], run["parameters"])
    spent, taken = method.knowledge.warm_up(run["recipe"]["epochs"])
    return run["recipe"]["epochs"] + spent - taken


def plan_counts(params):
    """What `dvc repro` would run: ({stage: {"runs": [run, ...], "tables": n, "shared": n}}, [what params.yaml lacks]).

    Runs that a stage takes over from an earlier one (every stage from kd, combined from all) are counted once, as shared.
    """
    study, seen, counts, lacking = Planned(params), {}, {}, set()
    for stage in STAGES:
        mine, shared = {}, set()
        before = {key for other, keys in seen.items() if other == "kd" or stage == "combined" for key in keys}
        asked = [(table, rows) for table in map(load_table, names()) if stage_of(table) == stage and (rows := asked_rows(table, study.params))]
        for table, rows in asked:
            for row, _, run, paths in study.runs(table):
                if row not in rows:
                    continue
                key = key_of(run)
                (shared.add(key) if key in before else mine.setdefault(key, run))
                for kind, where in (("route", "teachers"), ("supernet", "supernets")):
                    network = Path(paths[kind]).stem if kind in paths else None
                    if network and network not in (study.params.get(where) or []):
                        lacking.add(f"{where}: in params.yaml lacks {network}, which {table['name']} needs ({row!r})")
        seen[stage] = set(mine)
        counts[stage] = {"runs": list(mine.values()), "tables": len(asked), "shared": len(shared)}
    return counts, sorted({text.partition(", which")[0]: text for text in sorted(lacking)}.values())


def plan():
    """The whole plan of params.yaml as text: per stage its runs, student epochs and hours, measured or estimated."""
    params = parameters_file()
    counts, lacking = plan_counts(params)
    facts, (rates, devices) = data_facts(params), measured_rates(params["profile"])
    estimated = measured = 0.0

    def seconds(run):
        nonlocal estimated, measured
        epochs, kind = student_epochs(run), (student_of(run), method_name(run))
        same_pair = [rate for (pair, _), rate in rates.items() if pair == kind[0]]
        if kind in rates or same_pair:
            spent = epochs * rates.get(kind, sum(same_pair) / max(len(same_pair), 1))
            measured += spent
            return spent
        images, shape, classes = facts
        images = run["images_per_class"] * classes or images
        teacher = size_of(run["teacher"], classes, shape) if run["teacher"] else (0, 0)
        spent = epochs * seconds_on_gpu(images, run["recipe"]["batch_size"], teacher, size_of(run["student"], classes, shape))
        estimated += spent
        return spent

    rows = []
    for stage, networks, widths in (
        ("teacher", params.get("teachers") or [], ()),
        ("supernet", params.get("supernets") or [], tuple(params["supernet"]["widths"])),
    ):
        hours = None
        if facts:
            images, shape, classes = facts
            each = [seconds_on_gpu(images, params["recipe"]["batch_size"], (0, 0), size_of(n, classes, shape, widths)) for n in networks]
            hours = params["teacher"]["epochs"] * sum(each) / 3600
        rows.append([stage, "", len(networks), "", len(networks) * params["teacher"]["epochs"], hours])
    networks = rows[0][5], rows[1][5]
    for stage, found in counts.items():
        hours = sum(map(seconds, found["runs"])) / 3600 if facts or rates else None
        rows.append([stage, found["tables"], len(found["runs"]), found["shared"], sum(map(student_epochs, found["runs"])), hours])
    total = ["total", sum(r[1] or 0 for r in rows), sum(r[2] for r in rows), sum(r[3] or 0 for r in rows), sum(r[4] for r in rows)]
    total.append(sum(r[5] for r in rows) if facts else None)
    what = f"{facts[0]:,} training images of {'x'.join(map(str, facts[1]))}" if facts else "size unknown until `dvc repro data`"
    out = [f"Profile {params['profile']}: {params['data']['name']}, {what}; {params['seeds']} seeds, {params['grid_seeds']} in grids."]
    out += ["", f"{'stage':<10}{'tables':>8}{'runs':>8}{'shared':>8}{'epochs':>12}{'hours':>10}"]
    for name, tables, runs, shared, epochs, hours in [*rows, total]:
        text = "unknown" if hours is None else f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}"
        out.append(f"{name:<10}{tables or '':>8}{runs:>8,}{shared or '':>8}{epochs:>12,}{text:>10}")
    out += ["", "shared: runs that another stage has made already. epochs: of students (and of teachers in their own stages)."]
    if rates:
        out.append(f"Students' hours are scaled from this profile's machine records ({', '.join(devices)}); one process.")
    if facts and (estimated or any(networks)):
        which = "Hours" if not measured else "Teachers' hours and those of pairs not yet run" if estimated else "Teachers' hours"
        out.append(
            f"{which} are an estimate, not a measurement: one GPU that sustains {SUSTAINED / 1e12:.0f} TFLOP/s (airbench's baseline on an A100), "
            f"{LAUNCH * 1e6:.0f} microseconds a kernel start, one run at a time; the methods' own modules, evaluation and start-up are left out."
        )
    if total[5]:
        out.append(f"All of it: about {duration(total[5] * 3600)}.")
    return "\n".join(out + [f"Warning: {text}." for text in lacking])


def cost(profile=None):
    """Markdown: on what and for how long a profile's students trained, a method a line, from the machine records."""
    profile = profile or parameters_file()["profile"]
    machines, records = machine_records(profile)
    rows, devices = defaultdict(lambda: {"runs": 0, "seconds": 0.0, "epochs": 0, "memory": 0}), set()
    for machine in machines:
        if record := records.get(machine["key"]):
            row = rows[method_name(record["run"])]
            row["runs"] += 1
            row["seconds"] += machine["seconds"]
            row["epochs"] += record["epochs"]
            row["memory"] = max(row["memory"], machine["peak_memory_mib"] or 0)
            devices.add(f"{machine['device']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)} a run")
    if not rows:
        raise Problem(f"machine/{profile} holds no record of a run in runs/{profile}; `dvc repro` writes them as it trains")
    plain = rows["kd"]["seconds"] / rows["kd"]["epochs"] if "kd" in rows else math.nan
    lines = []
    for name, row in sorted(rows.items(), key=lambda item: item[1]["seconds"] / item[1]["epochs"]):
        each = row["seconds"] / row["epochs"]
        lines.append([name, row["runs"], f"{each:.2f}", f"{each / plain:.2f}", row["memory"]])
    total, count = sum(row["seconds"] for row in rows.values()), sum(row["runs"] for row in rows.values())
    head = ["method", "runs", "seconds a student epoch", "times KD's", "peak memory of the process, MiB"]
    text = f"{count} runs of students took {duration(total)} of processes' time in all ({'; '.join(sorted(devices))}); several ran side by side."
    return f"# Hardware and time: {profile}\n\n{text} Preparing phases and evaluation are included.\n\n{grid_of(head, lines)}\n"
