"""A study under the parameters in force: from tables' rows to runs, from runs to records, training nothing that is known."""

import json
import shutil
from functools import cache, cached_property
from pathlib import Path

import torch

from kd import checkpoints
from kd.errors import ConfigError, nearest
from kd.loggers import logged_or_said, logger_asked
from kd.methods import CURRICULA, KNOWLEDGE, Teachers, make, resolved
from kd.models import build
from kd.progress import count, report
from kd.recipe import Recipe
from kd.study import store
from kd.study.executor import run_parallel
from kd.study.on_ranks import on_ranks
from kd.study.parameters import study_parameters
from kd.study.paths import ROOT, images_path, runs_path, scratch_unless_pipeline, teacher_path
from kd.study.records import frame, method_name, read_json
from kd.study.runs import key_of, open_data, open_teacher
from kd.study.settings import use_device
from kd.study.tables import asked_rows, load_table, table_names
from kd.study.words import class_names
from kd.teachers import Route, adopt_route, train_route, train_supernet


def teach(kind, network, recipe, train, start=None, **values):
    """A teacher's file in its place: from the store, or trained. Returns its path.

    kind: "route" or "supernet". recipe: the teacher's. values: what else determines it, JSON values. train: (network,
    data, recipe, path=, resume=, report=, **values) trains it and writes the file, as kd.train_route does. start: the
    file of the route that it grows from, which `train` then gets as well; its md5 is part of what determines it.
    """
    profile = study_parameters()["profile"]
    data = open_data(str(images_path(profile)), 0, use_device())
    program = store.training_md5(("labels",))
    determines = {kind: network, "data": data.md5, "recipe": recipe.as_dict(), **values}
    if start:
        determines["start"], values["start"] = checkpoints.file_md5(start), start
    digest = key_of(determines)
    key = f"{kind}-{digest}"
    target = scratch_unless_pipeline(teacher_path(profile, kind, network))
    stem, about = store.place(program, key), {"profile": profile, "network": network, "key": key, "program": program}
    kept, resume = Path(f"{stem}.safetensors"), Path(f"{stem}.running")
    if not store.whole(kept):
        store.absorb_teacher(teacher_path(profile, kind, network), about)
    known = store.whole(kept)
    if not known:
        with store.one_at_a_time():
            known = kept.exists()  # meanwhile another process has trained it
            if not known:
                store.whole(resume)  # else the training begins anew
                run = {**determines, "kind": kind, "network": network, "key": digest}
                options = {"path": kept, "resume": resume, **values}
                on_ranks(train_teacher, train, run, network, str(images_path(profile)), recipe, options)
                shutil.rmtree(resume, ignore_errors=True)
    if not store.profile_of([Path(f"{stem}.json")]):  # not there yet, or damaged
        checkpoints.write_atomically(f"{stem}.json", json.dumps(about))
    count(int(not known), int(known))
    checkpoints.write_atomically(target, kept.read_bytes())
    checkpoints.write_atomically(target.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    return target


def train_teacher(train, run, network, data, recipe, values):
    """In a process that trains: train_route or train_supernet of kd.teachers. run: what a logger is told. data: the path of the file."""
    log = logger_asked()  # says at once if it is not there

    def tell(text):
        report(f"{network}: {text}")

    after_epoch = log and logged_or_said(log, tell, **run)
    train(network, open_data(data, 0, use_device()), recipe, report=tell, after_epoch=after_epoch, **values)


def teach_supernet(network):
    """Train the nested widths of the network called so, as params.yaml says, or take them from the store. Returns their file's path."""
    params = study_parameters()
    teacher, supernet, start = params["teacher"], params["supernet"], None
    own = {key: supernet[key] or teacher[key] for key in ("epochs", "learning_rate")}
    recipe = changed(Recipe.of(params["recipe"]), milestones=teacher["milestones"], **own)
    if supernet["start"] == "teacher":
        start = teacher_path(params["profile"], "route", network)
        if not start.exists():
            remedy = f"run `dvc repro teacher@{network}`, or take supernet.start: scratch"
            raise ConfigError(f"supernet {network} grows from its teacher, and {start} is missing; {remedy}")
    values = {"widths": tuple(supernet["widths"]), "seed": teacher["seed"], "distil_in_place": supernet["distil_in_place"]}
    return teach("supernet", network, recipe, train_supernet, start, **values)


def found_in_root(file):
    """The path of a file that params.yaml names, whose relative paths begin at its own folder. ConfigError if it is not there."""
    path = ROOT / Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"teacher.weights: {path} is not there; correct it, or leave the network out and it is trained")
    return path


def changed(recipe, **changes):
    """The recipe with those of the changes that are not None."""
    return recipe.replace(**{key: value for key, value in changes.items() if value is not None})


def rounded(value):
    """A nest of JSON values whose floats have six digits; tensors and NumPy's numbers become Python's."""
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


class Study:
    """One stage's part of the study: its tables' runs under the parameters in force.

        study = Study("rco", seeds=5, rco={"delta": 0.8})
        runs = study.run("rco_table7")

    stage: names the folder that the records go to. seeds, grid_seeds: runs a row of main comparisons and of grids.
    after: stages whose runs this study's tables show too where they hold them, asked for here or not.
    parameters: values for methods by name, over those of params.yaml.
    """

    def __init__(self, stage, seeds=None, grid_seeds=None, after=("kd",), **parameters):
        self.stage, self.params = stage, study_parameters()
        self.profile = self.params["profile"]
        self.seeds = {"main": seeds or self.params["seeds"], "grid": grid_seeds or self.params["grid_seeds"]}
        methods = {**KNOWLEDGE, **CURRICULA}
        self.parameters = {name: dict(self.params.get(name) or {}) for name in methods}
        for name, values in parameters.items():
            if name not in methods:
                raise ConfigError(f"unknown method {name!r}{nearest(name, methods)}")
            self.parameters[name] |= values
        self.folder, self.data_path = scratch_unless_pipeline(runs_path(self.profile, stage)), images_path(self.profile)
        self.after = [name for name in after if name != stage]
        self.records, self.rows, self.counted = {}, [], set()

    @property
    def data(self):
        return open_data(str(self.data_path))

    @property
    def class_names(self):
        """The classes' names, in words where the data call them by WordNet's numbers."""
        return class_names(self.data.classes)

    @property
    def data_md5(self):
        return self.data.md5

    def teacher_path(self, network, kind="route"):
        return teacher_path(self.profile, kind, network)

    def teachers(self, pair=None):
        """The Teachers of a pair (default: this stage's first), with route and, where trained, supernet, on the CPU."""
        network = (pair or self.pairs(self.stage)[0])[0]
        paths = {kind: self.teacher_path(network, kind) for kind in ("route", "supernet")}
        expected = {"network": network, "data": self.data_md5}
        return Teachers(**{kind: open_teacher(kind, str(path), "cpu", **expected) for kind, path in paths.items() if path.exists()})

    def teach(self, network, seed=0, every=1, weights=None, **recipe):
        """Train a teacher, or take it from the store, and return its Route.

        weights: {network: file} of what is not trained here: the file is its route's one state. recipe: changes to params.yaml's recipe;
        None changes nothing.
        """
        recipe = changed(Recipe.of(self.params["recipe"]), **recipe)
        if file := (weights or {}).get(network):
            return Route(teach("route", network, recipe, adopt_route, start=str(found_in_root(file))))
        return Route(teach("route", network, recipe, train_route, every=every, seed=seed))

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
        recipe = recipe.replace(epochs=max(1, round(recipe.epochs * row.get("epochs", 1))))
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
        images = row.get("images_per_class") or self.params["student_images_per_class"] or 0
        run |= {"images_per_class": images, "teacher": pair[0] if teacher else "", "teacher_md5": teacher}
        run |= {"student": pair[1], "knowledge": list(knowledge), "curriculum": curriculum, "parameters": parameters}
        return run | {"recipe": recipe.as_dict(), "seed": seed}, paths

    @staticmethod
    @cache
    def md5_of(path):
        if not Path(path).exists():
            raise ConfigError(f"{path} is missing; run `dvc repro teacher supernet` (or list the network under teachers: in params.yaml)")
        return checkpoints.file_md5(path)

    def run(self, *names, only=()):
        """Train what the tables need and the store does not have. Returns the tables' records as a DataFrame (kd.study.records.frame).

        names: of tables; none: all of this stage. only: names of methods as in "rco * (kd + srm)"; rows of other methods are left out.
        Empty: all rows.
        """
        wanted, rows = {}, []
        for table in map(load_table, names or table_names(self.stage)):
            asked = asked_rows(table, self.params)
            for row, pair, run, paths in self.runs(table):
                key = key_of(run)
                if (row in asked or key in self.keys_asked) and (not only or method_name(run) in only):
                    wanted[key] = (run, paths, run["seed"] == 0)
                    rows.append({"table": table["name"], "row": row, "pair": " -> ".join(pair), "seed": run["seed"], "key": key})
        self.records |= self.train_missing(wanted)
        self.rows += [row for row in rows if row not in self.rows]
        self.save()
        return frame([self.records[row["key"]] | row for row in rows], self.profile)

    @cached_property
    def keys_asked(self):
        """Keys of all runs that this stage and those in `after` are asked for: a row that is not asked for shows them if it has them."""
        return {key_of(run) for run in self.asked(*self.after, self.stage)}

    def asked(self, *stages):
        """All runs that the parameters in force ask for in the tables of these stages."""
        tables = [load_table(name) for stage in stages for name in table_names(stage)]
        asked = {table["name"]: asked_rows(table, self.params) for table in tables}
        return [run for table in tables for row, _, run, _ in self.runs(table) if row in asked[table["name"]]]

    def train_missing(self, wanted):
        """{key: record} of `wanted`, {key: (run, paths, keep the weights?)}: from the store, after training what it does not have."""
        found = self.known(wanted)
        if len(found) < len(wanted) and store.absorb(self.profile):
            found = self.known(wanted)
        missing = {key: item for key, item in wanted.items() if key not in found}
        if missing:
            with store.one_at_a_time():
                found |= self.known(missing)  # of another process, which has trained them meanwhile
                missing = {key: item for key, item in missing.items() if key not in found}
                if missing:
                    timed = [(entry["record"], entry["machine"]["seconds"]) for entry in found.values() if "seconds" in entry["machine"]]
                    known = [(record["run"], len(record["curve"]), seconds) for record, seconds in timed]
                    run_parallel(list(missing.values()), self.stage, known)
                found |= self.known(missing)
        fresh = {key for key in wanted if key not in self.counted}
        count(len(fresh & missing.keys()), len(fresh - missing.keys()))
        self.counted |= fresh
        return {key: entry["record"] for key, entry in found.items()}

    @staticmethod
    def known(wanted):
        """{key: entry of the store} of those of `wanted` that it has."""
        entries = {key: store.load(store.program_of_run(run), key, keep) for key, (run, _, keep) in wanted.items()}
        return {key: entry for key, entry in entries.items() if entry}

    def save(self):
        """Write this stage's records, rows and weights, each file whole."""
        for key, record in self.records.items():
            weights, target = Path(f"{store.place(record['program'], key)}.weights.safetensors"), self.folder / f"{key}.safetensors"
            if record["run"]["seed"] == 0 and weights.exists() and checkpoints.fault(target):
                checkpoints.write_atomically(target, weights.read_bytes())
        lines = [json.dumps(self.records[key], sort_keys=True) for key in sorted(self.records)]
        checkpoints.write_atomically(self.folder / "records.jsonl", "".join(line + "\n" for line in lines))
        checkpoints.write_atomically(self.folder / "rows.json", json.dumps(self.rows, indent=0, sort_keys=True))

    def saw(self, **facts):
        """Keep what a notebook saw, numbers, texts or lists of them, beside this stage's records, for sentences about the study.

        Numbers are kept with six digits. What a stage's notebook and its appendices saw stands in one file.
        """
        path = self.folder / "facts.json"
        known = read_json(path, {})
        checkpoints.write_atomically(path, json.dumps({**known, **rounded(facts)}, indent=1, sort_keys=True) + "\n")

    def row_of(self, table, row, seed=0, pair=None):
        """(run, pair) of a table's row."""
        table = load_table(table)
        chosen = next((r for r in table["rows"] if r["row"] == row), None)
        if chosen is None:
            raise ConfigError(f"table {table['name']} has no row {row!r}{nearest(row, [r['row'] for r in table['rows']])}")
        pair = pair or self.pairs_of(table)[0]
        return self.run_of(table, chosen, pair, seed)[0], pair

    def record(self, table, row, seed=0, pair=None):
        """The record of one run of a row that this study has run."""
        key = key_of(self.row_of(table, row, seed, pair)[0])
        if key not in self.records:
            raise ConfigError(f"{table}, {row!r}, seed {seed} has not run; ask for it under run: in params.yaml, and run the table first")
        return self.records[key]

    def ran(self, table, *rows):
        """Whether the first seeds of these rows have run: a profile may leave rows out (`run:` in params.yaml)."""
        return all(key_of(self.row_of(table, row)[0]) in self.records for row in rows)

    def curves(self, table, row, pair=None):
        """Test accuracy in percent after each student epoch, (seeds, epochs)."""
        definition = load_table(table)
        chosen = next(r for r in definition["rows"] if r["row"] == row)
        count = self.seeds[chosen.get("seeds", definition.get("seeds", "main"))]
        return [[e["test"] for e in self.record(table, row, seed, pair)["curve"] if "test" in e] for seed in range(count)]

    def trained(self, table, row, seed=0, pair=None):
        """(student, knowledge) of a row's first seed, as trained, in eval mode."""
        run, pair = self.row_of(table, row, seed, pair)
        self.record(table, row, seed, pair)  # says if it has not run
        path = self.folder / f"{key_of(run)}.safetensors"
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
                method.knowledge.build(student, source, student(example), source(example))
            checkpoints.load_weights(method.knowledge, state["knowledge"], path)
        return student, method.knowledge.eval()
