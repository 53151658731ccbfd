"""From a table's file to records: which runs a table needs, running them side by side, and not running twice what is known.

A run is a dictionary that holds all that determines its result; its key is the md5 of that dictionary. Records carry no time
and no host, so that the same run gives the same bytes; those go into the machine record beside them.
"""

import json
import os
import platform
import resource
import shutil
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from hashlib import md5
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy
import torch
import yaml

from kd import checkpoints
from kd.distill import Checkpoint, distill
from kd.errors import Problem, nearest
from kd.methods import CURRICULA, KNOWLEDGE, Teachers, make, resolved
from kd.models import build, complexity
from kd.notebooks import report
from kd.parameters import check_study, load_parameters
from kd.recipe import Recipe
from kd.source import training_md5
from kd.stream import open_data_for
from kd.teachers import Route, Widths, train_route, train_supernet

ROOT = Path(__file__).resolve().parent.parent
# the stages that run tables, in the order in which the methods are taught; each stage is a notebook's
STAGES = {
    "kd": "Knowledge distillation",
    "kr": "KR: knowledge representing",
    "srm": "SRM: sparse representation matching",
    "rco": "RCO: route constrained optimization",
    "iekd": "IE-KD: inheritance and exploration",
    "pwkd": "PWKD: partial to whole",
    "combined": "All methods, and all together",
}
RESUME = ROOT / ".resume"  # outside of every DVC output, because DVC deletes those before it runs a stage
MACHINE = ROOT / "machine"


def parameters_file():
    """The parameters in force: params.yaml, or the file named by the environment variable KD_PARAMS."""
    path = Path(os.environ.get("KD_PARAMS", ROOT / "params.yaml"))
    if not path.exists():
        raise Problem(f"{path} is missing; write one with `python -m kd use digits`")
    return check_study(load_parameters(str(path)), path.name)


def images_path(profile):
    """Where stage data leaves a profile's images, as tensors."""
    return ROOT / "data" / profile / "images.safetensors"


def teacher_file(profile, kind, network):
    """Where a teacher lies; kind: "route" or "supernet"."""
    return ROOT / "models" / profile / f"{kind}s" / f"{network}.safetensors"


def table_names():
    """The names of the files in tables/, in alphabetical order."""
    return sorted(path.stem for path in (ROOT / "tables").glob("*.yaml"))


def check_tables(asked, place=""):
    """Raise Problem for a name that tables/ lacks; `place` says where it was asked for."""
    names = table_names()
    for name in asked:
        if name not in names:
            raise Problem(f"{place}unknown table {name!r}{nearest(name, names)}; tables/ has {', '.join(names)}")


def load_table(name):
    """The table `name` from tables/NAME.yaml. Unknown names, keys and repeated rows raise Problem."""
    check_tables([name])
    table = yaml.safe_load((ROOT / "tables" / f"{name}.yaml").read_text())
    table["rows"] = [*table.get("rows", []), *grid_rows(table.pop("grid", None))]
    names = [row.get("row") for row in table["rows"]]
    allowed = {"row", "control", "knowledge", "curriculum", "epochs", "seeds", "reported", "recipe", "images_per_class", "not_run", "note", "data"}
    allowed |= {*KNOWLEDGE, *CURRICULA}
    seen = set()
    for row in table["rows"]:
        for key in row:
            if key not in allowed:
                raise Problem(f"tables/{name}.yaml, row {row.get('row')!r}: unknown key {key!r}{nearest(key, allowed)}")
        for control in row["control"] if isinstance(row.get("control"), list) else [row.get("control", row.get("row"))]:
            if control not in names:
                raise Problem(f"tables/{name}.yaml, row {row['row']!r}: no row {control!r} to be its control{nearest(control, names)}")
        if row["row"] in seen:
            raise Problem(f"tables/{name}.yaml: row {row['row']!r} stands there twice")
        seen.add(row["row"])
    return {"name": name, **table}


def stage_of(table):
    """The stage that runs a table: its paper's; what belongs to no single paper is the combined study's."""
    paper = table.get("paper", "").lower().replace("-", "")
    return paper if paper in STAGES else "combined"


def asked_rows(table, params):
    """Names of the table's rows that the parameters have run, under `run:`."""
    rows, stage = [row["row"] for row in table["rows"] if "not_run" not in row], stage_of(table)
    chosen = (params.get("run") or {}).get(stage, "all")
    if chosen != "all":
        check_tables(chosen, f"run.{stage}: ")
        chosen = chosen.get(table["name"], [])
    if chosen == "all":
        return rows
    for row in chosen:
        if row not in rows:
            raise Problem(f"run.{stage}.{table['name']}: no row {row!r}{nearest(row, rows)}; there are {', '.join(rows)}")
    return [row for row in rows if row in chosen]


def grid_rows(grid):
    """The rows of a table's `grid: {curricula: [...], knowledge: [[...], ...]}`: every curriculum times every set of knowledge."""
    from kd.records import method_name

    methods = [{"knowledge": k, "curriculum": c} for c in grid["curricula"] for k in grid["knowledge"]] if grid else []
    return [{"row": method_name(method), **method} for method in methods]


def key_of(run):
    return md5(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


def resume_folder(run):
    """Where a run is kept until its stage is done: runs of another program are never resumed."""
    return RESUME / training_md5((*run["knowledge"], run["curriculum"]))


@cache
def open_data(path, images_per_class, seed, device):
    data = open_data_for(path, setting("KD_MEMORY_SHARE", float, 0.5), device)
    return data.few(images_per_class, seed) if images_per_class else data


@cache
def open_teacher(kind, path, device, **expected):
    return {"route": Route, "supernet": Widths}[kind](path, device, **expected)


def setting(name, kind, default):
    """The environment variable `name` as a number above 0 of that kind; unset or empty, the default. Else Problem."""
    text = os.environ.get(name)
    try:
        value = kind(text) if text else default
    except ValueError:
        value = 0
    if value <= 0:
        raise Problem(f"{name}={text}: give a number above 0")
    return value


def workers_and_device():
    """(processes side by side, device): KD_WORKERS and KD_DEVICE, else a process a core on the CPU, one on a GPU."""
    device = os.environ.get("KD_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise Problem(f"KD_DEVICE={device}: there is no such device here; cpu always is, cuda where torch sees a GPU") from None
    return setting("KD_WORKERS", int, os.cpu_count() if device == "cpu" else 1), device


def use_device():
    """The device for training in this process; on the CPU with KD_THREADS threads, one by default."""
    device = workers_and_device()[1]
    if device == "cpu":
        torch.set_num_threads(threads())
    return device


def threads():
    """Threads a process computes with on the CPU: KD_THREADS, else one, so that no result depends on the number of cores."""
    return setting("KD_THREADS", int, 1)


def work(run, paths, keep_weights, device, folder):
    """Train one run to its end, resuming what an interrupted one left in `folder`. Returns (record, machine record)."""
    key = key_of(run)
    finished, weights = folder / f"{key}.json", folder / f"{key}.weights"
    if finished.exists() and (weights.exists() or not keep_weights):
        saved = json.loads(finished.read_text())
        return saved["record"], saved["machine"]
    data = open_data(paths["data"], run["images_per_class"], 0, device)
    expected = {"network": run["teacher"], "data": run["data_md5"]}
    sources = {kind: open_teacher(kind, paths[kind], device, **expected) for kind in ("route", "supernet") if kind in paths}
    torch.manual_seed(run["seed"])
    student = build(run["student"], len(data.classes), data.image_shape[0]).to(device)
    recipe, method = Recipe.of(run["recipe"]), make(run["knowledge"], run["curriculum"], run["parameters"])
    checkpoint = Checkpoint(folder / f"{key}.safetensors", run=key)

    def tell(text):
        if MESSAGES is not None:
            MESSAGES.put((key, text))

    began = time.monotonic()
    teacher = Teachers(**sources) if sources else None
    result = distill(student, method, teacher, data, recipe, run["seed"], checkpoint, tell)
    parameters, operations = complexity(student, data.image_shape)
    epochs = [entry for entry in result.curve if "test" in entry]
    record = {
        "key": key,
        "run": run,
        "epochs": len(epochs),
        "top1_last": epochs[-1]["test"],
        "top1_val": epochs[-1]["validation"],
        "top1_best_test": max(entry["test"] for entry in epochs),
        "parameters": parameters,
        "multiply_adds": operations,
        "extra_parameters": result.extra_parameters,
        "teacher_epochs": round(result.teacher_images / len(data.labels["train"]), 3),
        "lessons": [vars(lesson) for lesson in result.lessons],
        "curve": result.curve,
        "measured": result.measured,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
    }
    record = json.loads(json.dumps(rounded(record)))
    seconds = time.monotonic() - began
    machine = {"key": key, "seconds": round(seconds, 3), "device": device_name(device), "threads": torch.get_num_threads()}
    images = len(result.curve) * len(data.labels["train"])
    machine |= {"images_per_second": round(images / result.seconds, 1), "peak_memory_mib": peak_memory(device)}
    if keep_weights:
        state = {"student": student.state_dict(), "knowledge": method.knowledge.state_dict()}
        checkpoints.save_state(weights, state, run=key, network=run["student"])
    checkpoints.write_atomically(finished, json.dumps({"record": record, "machine": machine}))
    checkpoint.remove()
    return record, machine


def rounded(value):
    """Floats to nine significant digits: below that lies noise of no interest, and the files become half as long."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if value == value else None
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return value


def device_name(device):
    """The GPU's name; of a CPU what it calls itself, and the number of its cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def peak_memory(device):
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated() / 2**20)
    if Path("/proc/self/status").exists():  # Linux's ru_maxrss is no less than that of the process which started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


MESSAGES = None  # in a worker process: where it tells its progress


def begin_worker(messages, threads):
    """What a worker process does first."""
    global MESSAGES
    MESSAGES = messages
    torch.set_num_threads(threads)

    def leave_with_parent():
        parent_process().join()
        os._exit(1)  # a parent that was killed cannot say goodbye; without this its workers would stay for ever

    threading.Thread(target=leave_with_parent, daemon=True).start()


def execute(runs, title):
    """Run the (run, paths, keep weights) triples side by side. Returns {key: record} and {key: machine record}.

    Every process computes with one thread, so that a result does not depend on how many run side by side.
    """
    count, device = workers_and_device()
    count = max(1, min(count, len(runs)))
    total = sum(run["recipe"]["epochs"] for run, _, _ in runs)
    records, machines, seen, began = {}, {}, {}, time.monotonic()
    context = get_context("spawn")
    messages = context.Queue()

    def watch():
        while (item := messages.get()) is not None:
            key, text = item
            seen[key] = seen.get(key, 0) + 1
            share = min(sum(seen.values()) / max(total, 1), 1.0)
            left = (time.monotonic() - began) * (1 - share) / max(share, 1e-9)
            report(f"{title}: {len(records)}/{len(runs)} runs, {100 * share:.0f} %, {duration(left)} left ({text})")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with ProcessPoolExecutor(count, context, begin_worker, (messages, threads())) as pool:
            order = sorted(runs, key=lambda item: -item[0]["recipe"]["epochs"])  # the longest first: no straggler at the end
            futures = [pool.submit(work, run, paths, keep, device, resume_folder(run)) for run, paths, keep in order]
            try:
                for future in as_completed(futures):
                    record, machine = future.result()
                    records[record["key"]], machines[record["key"]] = record, machine
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        messages.put(None)
        watcher.join(timeout=2)
    return records, machines


def duration(seconds):
    """90 -> '1 min 30 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def forget(folder):
    """Let go of what was kept for resuming the runs recorded in `folder`: their stage is done.

    With KD_KEEP_RUNS=1 it stays, so that a stage whose pictures alone changed draws them from the runs it knows.
    """
    from kd.records import read_records

    if os.environ.get("KD_KEEP_RUNS") == "1":
        return
    for record in read_records(folder):
        for kind in ("json", "weights", "safetensors"):
            (resume_folder(record["run"]) / f"{record['key']}.{kind}").unlink(missing_ok=True)


def teach_supernet(network, path):
    """Train the nested widths of the network called so, as params.yaml says, and save them. Returns [(width, its accuracies), ...]."""
    values, device = parameters_file(), use_device()
    data, teacher, supernet = open_data(str(images_path(values["profile"])), None, 0, device), values["teacher"], values["supernet"]
    recipe = Recipe.of(values["recipe"]).but(epochs=teacher["epochs"], learning_rate=teacher["learning_rate"])
    key = key_of({"supernet": [network, supernet, teacher], "data": data.md5, "recipe": recipe.as_dict()})
    resume = RESUME / training_md5(("labels",)) / f"supernet-{key}"
    more = {"distil_in_place": supernet["distil_in_place"], "seed": teacher["seed"], "resume": resume, "report": report}
    accuracy = train_supernet(network, data, recipe, tuple(supernet["widths"]), path, **more)
    shutil.rmtree(resume, ignore_errors=True)
    return list(zip(supernet["widths"], accuracy, strict=True))


class Study:
    """One stage's part of the study: its tables' runs under the parameters in force.

        study = Study("rco", seeds=5, rco={"delta": 0.8})
        records = study.run("rco_table7")

    stage: names the folder the records go to. seeds, grid_seeds: runs a row of main comparisons and of grids.
    parameters: values for methods by name, over those of params.yaml. Reuses records of the stages named in `after`.
    """

    def __init__(self, stage, seeds=None, grid_seeds=None, after=("kd",), **parameters):
        self.stage, self.params = stage, parameters_file()
        self.profile = self.params["profile"]
        self.seeds = {"main": seeds or self.params["seeds"], "grid": grid_seeds or self.params["grid_seeds"]}
        methods = {**KNOWLEDGE, **CURRICULA}
        self.parameters = {name: dict(self.params.get(name) or {}) for name in methods}
        for name, values in parameters.items():
            if name not in methods:
                raise Problem(f"unknown method {name!r}{nearest(name, methods)}")
            self.parameters[name] |= values
        # a notebook opened by hand writes to scratch/: only the pipeline writes the pipeline's outputs
        self.folder = Path(os.environ.get("KD_OUTPUT") or ROOT / "scratch" / self.profile / stage)
        self.after = [ROOT / "runs" / self.profile / name for name in after if name != stage]
        self.data_path = images_path(self.profile)
        self.records, self.rows = {}, []

    @property
    def data(self):
        return open_data(str(self.data_path), None, 0, "cpu")

    def teacher_path(self, network, kind="route"):
        return teacher_file(self.profile, kind, network)

    def teachers(self, pair=None):
        """The Teachers of a pair (default: this stage's first), with route and, where trained, supernet, on the CPU."""
        network = (pair or self.pairs(self.stage)[0])[0]
        paths = {kind: self.teacher_path(network, kind) for kind in ("route", "supernet")}
        expected = {"network": network, "data": self.data_md5}
        return Teachers(**{kind: open_teacher(kind, str(path), "cpu", **expected) for kind, path in paths.items() if path.exists()})

    def teach(self, network, seed=0, every=1, **recipe):
        """Train a teacher, save its route and return it. recipe: changes to params.yaml's recipe (epochs, learning_rate)."""
        folder = Path(os.environ.get("KD_MODELS") or ROOT / "scratch" / self.profile / "routes")
        data, recipe = open_data(str(self.data_path), None, 0, use_device()), Recipe.of(self.params["recipe"]).but(**recipe)
        key = key_of({"route": network, "data": data.md5, "recipe": recipe.as_dict(), "every": every, "seed": seed})
        path, resume = folder / f"{network}.safetensors", RESUME / training_md5(("labels",)) / f"route-{key}"
        train_route(network, data, recipe, every, path, seed, resume, report)
        shutil.rmtree(resume, ignore_errors=True)
        return Route(path)

    def pairs(self, name):
        """The (teacher, student) pairs that params.yaml gives to a table or paper, else the default one."""
        chosen = self.params["pairs"].get(name, self.params["pairs"]["default"])
        return [tuple(p) for p in (chosen if isinstance(chosen[0], list) else [chosen])]

    def pairs_of(self, table):
        """The pairs a table runs on: those under its own name in params.yaml, else its paper's."""
        return self.pairs(table["name"] if table["name"] in self.params["pairs"] else table.get("paper", self.stage).lower())

    def runs(self, table):
        """The runs of a table: a list of (row name, pair, run, paths), rows that params.yaml does not ask for included."""
        found = []
        for pair in self.pairs_of(table):
            for row in table["rows"]:
                if "not_run" not in row:
                    found += [(row["row"], pair, *self.run_of(table, row, pair, seed)) for seed in range(self.seeds[row.get("seeds", table.get("seeds", "main"))])]
        return found

    def run_of(self, table, row, pair, seed):
        """The dictionary that determines one run, and the files it reads."""
        paper = table.get("paper", self.stage).lower()
        # in one order, so that a sum is one run however a table writes it
        knowledge = sorted(row.get("knowledge", ["kd"]), key=list(KNOWLEDGE).index)
        curriculum = row.get("curriculum", "fixed")
        names = [*knowledge, curriculum]
        layers = {name: {**self.parameters.get(name, {}), **(table.get("parameters", {}).get(name) or {}), **row.get(name, {})} for name in names}
        recipes = self.params.get("recipes") or {}
        recipe = {**self.params["recipe"], **(recipes.get(paper) or {}), **(recipes.get(pair[1]) or {}), **row.get("recipe", {})}
        recipe = Recipe.of(recipe)
        recipe = recipe.but(epochs=max(1, round(recipe.epochs * row.get("epochs", 1))))
        parameters = json.loads(json.dumps(resolved(names, layers)))
        paths, teacher = {"data": str(self.data_path)}, {}
        method = make(knowledge, curriculum, layers)
        if method.knowledge.needs_teacher:
            kinds = {"supernet"} if curriculum == "pwkd" or parameters[curriculum].get("source") == "supernet" else {"route"}
            for kind in sorted(kinds):
                path = self.teacher_path(pair[0], kind)
                paths[kind] = str(path)
                teacher[kind] = self.md5_of(path)
        run = {"profile": self.profile, "data": self.params["data"]["name"], "data_md5": self.data_md5}
        run |= {"images_per_class": row.get("images_per_class", 0), "teacher": pair[0] if teacher else "", "teacher_md5": teacher}
        run |= {"student": pair[1], "knowledge": list(knowledge), "curriculum": curriculum, "parameters": parameters}
        return run | {"recipe": recipe.as_dict(), "seed": seed}, paths

    @property
    def data_md5(self):
        return self.data.md5

    @staticmethod
    @cache
    def md5_of(path):
        if not Path(path).exists():
            raise Problem(f"{path} is missing; run `dvc repro teacher supernet` (or list the network under teachers: in params.yaml)")
        return checkpoints.file_md5(path)

    def run(self, *names, only=()):
        """Run what the tables need and is not known yet. Returns the tables' records as a DataFrame (kd.records.frame).

        only: names of methods as in "rco * (kd + srm)"; rows of other methods are left out. Empty: all rows.
        """
        from kd.records import frame, method_name

        known, wanted, rows = self.known(), {}, []
        for table in map(load_table, names):
            asked = asked_rows(table, self.params)
            for row, pair, run, paths in self.runs(table):
                if only and method_name(run) not in only:
                    continue
                key = key_of(run)
                rows.append({"table": table["name"], "row": row, "pair": " -> ".join(pair), "seed": run["seed"], "key": key})
                if row in asked and key not in known:
                    wanted[key] = (run, paths, run["seed"] == 0)
        machines = {}
        if wanted:
            fresh, machines = execute(list(wanted.values()), self.stage)
            self.records |= fresh
        known |= self.records
        rows = [row for row in rows if row["key"] in known]  # a row that is not asked for may be known from another table
        self.rows += [row for row in rows if row not in self.rows]
        self.save(machines)
        return frame([known[row["key"]] | row for row in rows], self.profile)

    def known(self):
        """{key: record} of all runs made by this stage and by those it may take records from."""
        from kd.records import read_records

        return {record["key"]: record for folder in self.after for record in read_records(folder)} | self.records

    def save(self, machines):
        """Write this stage's records, rows and weights, each file whole."""
        lines = [json.dumps(self.records[key], sort_keys=True) for key in sorted(self.records)]
        for key, record in self.records.items():
            weights = resume_folder(record["run"]) / f"{key}.weights"
            if weights.exists() and not (self.folder / f"{key}.safetensors").exists():
                checkpoints.write_atomically(self.folder / f"{key}.safetensors", weights.read_bytes())
        checkpoints.write_atomically(self.folder / "records.jsonl", "".join(line + "\n" for line in lines))
        checkpoints.write_atomically(self.folder / "rows.json", json.dumps(self.rows, indent=0, sort_keys=True))
        if machines:
            path = MACHINE / self.profile / f"{self.stage}.jsonl"
            old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            merged = {m["key"]: m for m in [*old, *machines.values()]}
            checkpoints.write_atomically(path, "".join(json.dumps(m, sort_keys=True) + "\n" for m in merged.values()))

    def row_of(self, table, row, seed=0, pair=None):
        """(run, pair) of a table's row."""
        table = load_table(table)
        chosen = next((r for r in table["rows"] if r["row"] == row), None)
        if chosen is None:
            raise Problem(f"table {table['name']} has no row {row!r}{nearest(row, [r['row'] for r in table['rows']])}")
        pair = pair or self.pairs_of(table)[0]
        return self.run_of(table, chosen, pair, seed)[0], pair

    def record(self, table, row, seed=0, pair=None):
        """The record of one run of a row, here or in the stages before."""
        key, known = key_of(self.row_of(table, row, seed, pair)[0]), self.known()
        if key not in known:
            raise Problem(f"{table}, {row!r}, seed {seed} has not run; run the table first")
        return known[key]

    def ran(self, table, *rows):
        """Whether the first seeds of these rows have run: a profile may leave rows out (`run:` in params.yaml)."""
        known = self.known()
        return all(key_of(self.row_of(table, row)[0]) in known for row in rows)

    def curves(self, table, row, pair=None):
        """Test accuracy in percent after each student epoch, (seeds, epochs)."""
        definition = load_table(table)
        chosen = next(r for r in definition["rows"] if r["row"] == row)
        count = self.seeds[chosen.get("seeds", definition.get("seeds", "main"))]
        return [[e["test"] for e in self.record(table, row, seed, pair)["curve"] if "test" in e] for seed in range(count)]

    def trained(self, table, row, seed=0, pair=None):
        """(student, knowledge) of a row's first seed, as trained, in eval mode."""
        run, pair = self.row_of(table, row, seed, pair)
        name = f"{key_of(run)}.safetensors"
        path = next((folder / name for folder in (self.folder, *self.after) if (folder / name).exists()), self.folder / name)
        state = checkpoints.load_state(path, run=key_of(run))
        student = build(run["student"], len(self.data.classes), self.data.image_shape[0])
        method = make(run["knowledge"], run["curriculum"], run["parameters"])
        student = checkpoints.load_weights(student, state["student"], path).eval()
        if state["knowledge"]:
            teacher = self.teachers(pair)
            example = next(iter(self.data.chunks("train", 8))).images
            lesson = self.record(table, row, seed, pair)["lessons"][-1]  # the teacher whose shapes the method last saw
            source = teacher[lesson["source"]][lesson["indices"][-1]]
            with torch.no_grad():
                method.knowledge.start(student, source, student(example), source(example))
            checkpoints.load_weights(method.knowledge, state["knowledge"], path)
        return student, method.knowledge.eval()
