"""What `dvc repro` would run under the parameters in force, and about how long it would take: `python -m kd plan`."""

import math
from collections import defaultdict
from functools import cache, cached_property
from pathlib import Path

from kd.data.stream import open_stream
from kd.errors import ConfigError
from kd.methods import make
from kd.models import Supernet, build, complexity
from kd.study import store
from kd.study.checks import check_runs
from kd.study.executor import duration
from kd.study.group import groups, lessons_of
from kd.study.paths import STAGES, images_path, runs_path
from kd.study.records import method_name, read_records
from kd.study.runs import key_of
from kd.study.settings import settings
from kd.study.study import Study
from kd.study.tables import asked_rows, load_table, table_names

# What a data set, or that of a profile, is before it is there: (images to train and validate on, image shape, classes).
KNOWN_DATA = {
    "digits": (1257, (1, 8, 8), 10),
    "cifar10": (50_000, (3, 32, 32), 10),
    "cifar100": (50_000, (3, 32, 32), 100),
    "imagenet": (1_281_167, (3, 224, 224), 1000),
}
# airbench's plain baseline: 32.3 PFLOP in 7 minutes on an A100 (KellerJordan/cifar10-airbench, README.md)
SUSTAINED = 32.3e15 / (7 * 60)
LAUNCH = (
    8e-6  # seconds to start one GPU kernel from Python; an estimate. Small networks wait for this, not for arithmetic
)
OTHER_KERNELS = 50  # a step's, beside the layers': batch, losses, optimizer


class Planned(Study):
    """A Study whose data and teachers may not be there yet: a placeholder stands for the md5 of what is not."""

    def __init__(self):
        super().__init__("plan")

    @cached_property
    def data_md5(self):
        return open_stream(self.data_path).md5 if self.data_path.exists() else "not yet known"

    @cached_property
    def facts(self):
        """`data_facts` of the parameters in force."""
        return data_facts(self.params)

    @staticmethod
    def md5_of(path):
        return Study.md5_of(path) if Path(path).exists() else f"not yet known: {Path(path).name}"


def data_facts(params):
    """(training images, image shape, classes) of the data in params.yaml, or None when nobody can know yet."""
    name, profile, held_out = params["data"]["name"], params["profile"], params["data"].get("validation") or 0
    if name not in KNOWN_DATA and images_path(profile).exists():
        data = open_stream(images_path(profile))  # looks at the file without reading its images
        return len(data.labels["train"]), data.image_shape, len(data.classes)
    if known := KNOWN_DATA.get(name) or KNOWN_DATA.get(profile):
        if held_out >= known[0]:
            raise ConfigError(f"data.validation: {held_out:,} of {known[0]:,} images held out leave none to train on; hold out fewer")
        return min(known[0] - held_out, (params["data"].get("images_per_class") or known[0]) * known[2]), *known[1:]
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
    """Seconds of an epoch, estimated: the longer of arithmetic and starting the kernels.

    forward, trained: (multiply-adds an image, layers) of what only looks and of what learns. 2 operations a
    multiply-add; learning takes 3 forward passes' worth.
    """
    arithmetic = 2 * images * (forward[0] + 3 * trained[0]) / SUSTAINED
    launches = math.ceil(images / batch_size) * LAUNCH * (forward[1] + 3 * trained[1] + OTHER_KERNELS)
    return max(arithmetic, launches)


def timed_runs(profile):
    """[(record, machine's record), ...] of the runs under runs/PROFILE that were trained here: the store timed them."""
    records = [record for stage in STAGES for record in read_records(runs_path(profile, stage))]
    entries = {record["key"]: store.load(record.get("program", ""), record["key"]) for record in records}
    return [
        (entry["record"], entry["machine"]) for entry in entries.values() if entry and "seconds" in entry["machine"]
    ]


def measured_rates(profile):
    """({((teacher, student), method): seconds a student epoch}, devices) from the runs made here so far."""
    spent, epochs, devices = defaultdict(float), defaultdict(int), set()
    for record, machine in timed_runs(profile):
        kind = kind_of(record["run"])
        spent[kind] += machine["seconds"]
        epochs[kind] += record["epochs"]
        devices.add(machine["device"])
    return {kind: spent[kind] / epochs[kind] for kind in spent}, sorted(devices)


def kind_of(run):
    """((teacher, student), method) of a run: what decides how long an epoch takes."""
    return (run["teacher"], run["student"]), method_name(run)


def student_epochs(run):
    """Epochs in which the student learns, those of the method's preparations included."""
    method = make(run["knowledge"], run["curriculum"], run["parameters"])
    spent, taken = method.knowledge.warm_up(run["recipe"]["epochs"])
    return run["recipe"]["epochs"] + spent - taken


def plan_runs(study):
    """What `dvc repro` would run: ({stage: {"runs", "known", "shared", "tables"}}, [what params.yaml lacks]).

    runs: [run, ...] that the store does not have. known: how many it has. shared: how many a stage takes over from an
    earlier one, every stage from kd, combined from all. tables: how many have rows that are asked for.
    """
    seen, stages, lacking = {}, {}, {}
    for stage in STAGES:
        mine, shared = {}, set()
        before = {key for other, keys in seen.items() if other == "kd" or stage == "combined" for key in keys}
        tables = {
            table["name"]: table for table in map(load_table, table_names(stage)) if asked_rows(table, study.params)
        }
        for name, table in tables.items():
            asked = asked_rows(table, study.params)
            for row, _, run, paths in study.runs(table):
                if row not in asked:
                    continue
                key = key_of(run)
                if key in before:
                    shared.add(key)
                else:
                    mine[key] = run
                for kind, where in (("route", "teachers"), ("supernet", "supernets")):
                    network = Path(paths[kind]).stem if kind in paths else None
                    if network and network not in (study.params.get(where) or []):
                        lacking.setdefault(
                            (where, network), f"{where}: in params.yaml lacks {network}, which {name} needs ({row!r})"
                        )
        seen[stage] = set(mine)
        known = study.known({key: (run, None, run["seed"] == 0) for key, run in mine.items()})
        new = [run for key, run in mine.items() if key not in known]
        stages[stage] = {"runs": new, "tables": len(tables), "shared": len(shared), "known": len(known)}
    return stages, [text for _, text in sorted(lacking.items())]


def teacher_lines(study, facts):
    """A line a kind of teacher: [stage, tables, known, shared, runs, epochs, hours]; known: those in models/."""
    params, lines = study.params, []
    for kind, key, widths in (
        ("route", "teachers", ()),
        ("supernet", "supernets", tuple(params["supernet"]["widths"])),
    ):
        networks = params.get(key) or []
        new = [network for network in networks if not study.teacher_path(network, kind).exists()]
        hours, epochs = None, (params["supernet"]["epochs"] if kind == "supernet" else None) or params["teacher"]["epochs"]
        if facts:
            images, shape, classes = facts
            batch = params["recipe"]["batch_size"]
            hours = (
                epochs
                * sum(seconds_on_gpu(images, batch, (0, 0), size_of(n, classes, shape, widths)) for n in new)
                / 3600
            )
        stage = "teacher" if kind == "route" else kind
        lines.append([stage, 0, len(networks) - len(new), 0, len(new), len(new) * epochs, hours])
    return lines


def teacher_passes(runs):
    """(asked for, made): epochs' worth of teachers' forward passes that the lessons of `runs` ask for, and those that are left side by side."""
    asked, made = 0, 0
    for task in groups([(run,) for run in runs], settings()):
        alike = defaultdict(list)
        for (run,) in task:
            if run["teacher"]:
                alike[lessons_of(run)].append(run["recipe"]["epochs"])
        asked += sum(map(sum, alike.values()))
        made += sum(map(max, alike.values()))
    return asked, made


class Clock:
    """Seconds of a run: measured, where runs of its pair were made here, else estimated from the networks' sizes."""

    def __init__(self, rates, facts):
        self.rates, self.facts, self.measured, self.estimated = rates, facts, False, False

    def seconds(self, run):
        epochs, kind = student_epochs(run), kind_of(run)
        if same_pair := [rate for (pair, _), rate in self.rates.items() if pair == kind[0]]:
            self.measured = True
            return epochs * self.rates.get(kind, sum(same_pair) / len(same_pair))
        self.estimated = True
        images, shape, classes = self.facts
        images = run["images_per_class"] * classes or images
        teacher = size_of(run["teacher"], classes, shape) if run["teacher"] else (0, 0)
        student = size_of(run["student"], classes, shape)
        return epochs * seconds_on_gpu(images, run["recipe"]["batch_size"], teacher, student)


def plan():
    """The whole plan of params.yaml as text: per stage its runs, student epochs and hours, measured or estimated."""
    study = Planned()
    check_runs(study)
    params, facts, (rates, devices) = study.params, study.facts, measured_rates(study.profile)
    (stages, lacking), clock, lines = plan_runs(study), Clock(rates, facts), teacher_lines(study, facts)
    estimated_teachers = any(line[-1] for line in lines)
    for stage, found in stages.items():
        hours = sum(map(clock.seconds, found["runs"])) / 3600 if facts else None
        epochs = sum(map(student_epochs, found["runs"]))
        lines.append([stage, found["tables"], found["known"], found["shared"], len(found["runs"]), epochs, hours])
    *sums, hours = zip(*lines, strict=True)
    lines.append(["total", *map(sum, sums[1:]), sum(hours) if facts else None])
    size = f"{facts[0]:,} training images of {'x'.join(map(str, facts[1]))}" if facts else "size not known yet"
    out = [
        f"Profile {study.profile}: {params['data']['name']}, {size}; "
        f"{params['seeds']} seeds, {params['grid_seeds']} in grids.",
        "",
        f"{'stage':<10}{'tables':>8}{'known':>8}{'shared':>8}{'runs':>8}{'epochs':>12}{'hours':>10}",
    ]
    for name, tables, known, shared, runs, epochs, hours in lines:
        text = "unknown" if hours is None else f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}"
        out.append(f"{name:<10}{tables or '':>8}{known or '':>8}{shared or '':>8}{runs:>8,}{epochs:>12,}{text:>10}")
    out += [
        "",
        "known: in the store already (teachers: in models/), not trained again. shared: made by an earlier stage.",
        "runs: what is left to train. epochs: of students, and of teachers in their own stages.",
    ]
    asked, made = map(sum, zip(*(teacher_passes(found["runs"]) for found in stages.values()), strict=True))
    if asked:
        side = f"side by side their runs make {made:,} of them, {100 * (asked - made) / asked:.0f} % fewer"
        out.append(f"Teachers' passes over the training images: lessons ask for {asked:,}; {side}.")
    if not facts:
        out.append("Hours are known once `dvc repro data` has read the images.")
    if clock.measured:
        out.append(f"Students' hours are scaled from runs measured here ({', '.join(devices)}); one process.")
    if clock.estimated or estimated_teachers:
        files = params["data"]["name"] == "jpegfolder"  # whose decoding may be what a training waits for
        pairs = "Teachers' hours and those of pairs not yet run" if clock.estimated else "Teachers' hours"
        out.append(
            f"{pairs if clock.measured else 'Hours'} are an estimate, not a measurement: one GPU that sustains "
            f"{SUSTAINED / 1e12:.0f} TFLOP/s (airbench's baseline on an A100), {LAUNCH * 1e6:.0f} microseconds a "
            f"kernel start, one run at a time; the methods' own modules, evaluation{', decoding' * files} and start-up are left out."
        )
    if hours := lines[-1][-1]:
        here = "; this machine trains on its CPU, which takes many times as long" if settings().device == "cpu" else ""
        where = f" on such a GPU{here}" if clock.estimated or estimated_teachers else ""
        out.append(f"All of it: about {duration(hours * 3600)}{where}.")
    return "\n".join(out + [f"Warning: {text}." for text in lacking])
