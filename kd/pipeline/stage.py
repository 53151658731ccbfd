"""The stages of dvc.yaml: `python -m kd stage NAME [NETWORK or SEARCH]`. What a stage reads comes from params.yaml alone."""

import os
import shutil
import sys
from contextlib import contextmanager
from functools import partial

from kd.checkpoints import check_writable
from kd.data import load_data
from kd.errors import ConfigError, nearest
from kd.pipeline import notebook
from kd.pipeline.parameters import checked, declared
from kd.pipeline.source import write_programs
from kd.processes import alone, sweep_files, temporary_folder
from kd.progress import relayed, say
from kd.report.claims import decided
from kd.report.findings import as_published, read_facts, sentences
from kd.report.tables import read_results
from kd.study.checks import check_looked_into, check_runs, smallest_class
from kd.study.metrics import write_metrics
from kd.study.parameters import check_name, study_parameters
from kd.study.paths import (
    FILES,
    ROOT,
    STAGES,
    appendix_paths,
    executed_path,
    images_path,
    notebook_path,
    reports_path,
    runs_path,
)
from kd.study.plan import Planned
from kd.study.search import run_search
from kd.study.settings import check_files_allowed, settings
from kd.study.study import teach_supernet
from kd.study.tables import asked_rows, load_table, table_names
from kd.study.yaml_files import read_yaml
from kd.teachers import SubNetworks


def run_stage(name, item=None):
    """Run one stage of dvc.yaml. item: which network (teacher, supernet) or which search. Raises ConfigError for what does not fit."""
    as_a_whole = {"data": make_data, "code": make_programs, "tables": make_tables, "pages": make_pages}
    of_items = {"teacher": make_teacher, "supernet": make_supernet, "search": make_search}
    known = [*as_a_whole, *of_items, *STAGES]
    if name not in known:
        raise ConfigError(f"unknown stage {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    if (name in of_items) != (item is not None):
        raise ConfigError(f"stage {name} is run {'for one network or search, which must be named' if name in of_items else 'as a whole: no name behind it'}")
    os.environ["KD_PIPELINE"] = "1"  # for this process and the notebook's kernel
    check_name(item or name, "stage")
    title = f"{name}-{item}" if item else name
    check_files_allowed()
    if name in ("teacher", "supernet", "search", *STAGES):
        study = Planned()
        check_runs(study, smallest_class(study.data_path))  # what a later stage would stumble over, before this one has trained for hours
    if name in STAGES:
        check_looked_into(study, name)
    with alone(ROOT / ".dvc" / "tmp" / f"stage-{title}.lock", f"stage {title}"):
        before = inputs_of(name, item)
        for folder in (ROOT / name for name in ("build", "models", "reports", "runs", "store")):
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"{folder} is a file, where a folder of that name is needed; move it away")
            sweep_files(folder)
        if name in STAGES:
            make_runs(name)
        elif item is None:
            as_a_whole[name]()
        else:
            of_items[name](item)
        after = inputs_of(name, item)
        if changed := [what for what in before if after.get(what) != before[what]] + [what for what in after if what not in before]:
            found = f"{', '.join(changed[:3])}{' and more' * (len(changed) > 3)} changed while stage {title} ran"
            raise ConfigError(f"{found}; what it left is of the state before: run the same command again, and what is trained already stays")


EDITED = ("tables", "searches", "claims", "findings", "profiles")  # what people write, besides params.yaml and code


def inputs_of(name, item=None):
    """{parameter or file: its value or bytes} of what a person may edit while a stage runs that depends on it.

    DVC notes what a stage depended on once it has ended: without a second look, results of the former state would count as the new one's.
    Code heals by itself, for stage code looks at it again. {} without a dvc.yaml.
    """
    if not (ROOT / "dvc.yaml").exists():
        return {}
    stage = read_yaml(ROOT / "dvc.yaml", "dvc.yaml")["stages"].get(name) or {}
    stage, params, found = stage.get("do", stage), study_parameters(), {}
    for key in stage.get("params", ()):
        value = params
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[f"{key} in params.yaml"] = value
    for path in (ROOT / dep.replace("${item}", str(item)) for dep in stage.get("deps", ()) if dep.split("/")[0] in EDITED):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= {file.relative_to(ROOT).as_posix(): file.read_bytes() for file in files if file.is_file()}
    return found


@contextmanager
def watched(title):
    """Show what this process reports and counts as `notebook.run` shows a kernel's."""
    with temporary_folder() as folder:
        os.environ["KD_PROGRESS"] = f"{folder}/progress"
        try:
            with relayed(os.environ["KD_PROGRESS"], sys.stderr, title):
                yield
        finally:
            del os.environ["KD_PROGRESS"]


def make_data():
    """Stage data: the archive as tensors, in one file."""
    params = study_parameters()
    values = {key: value for key, value in params["data"].items() if key != "watch"}
    data = load_data(values.pop("name"), cache=str(ROOT / "data" / "cache"), **values)
    data.save(images_path(params["profile"]))
    counts = ", ".join(f"{len(labels)} {split}" for split, labels in data.labels.items())
    say(f"data: {counts} images of {'x'.join(map(str, data.image_shape))}, {len(data.classes)} classes")


def make_programs():
    """Stage code: every stage's program without prose, for the stages to depend on."""
    write_programs(ROOT / "build" / "code")


def make_teacher(network):
    """Stage teacher: a network trained on the labels, and its route, in notebook 0."""
    params = study_parameters()
    source = notebook_path("teacher")
    execute(source, params["teacher"] | {"network": network}, f"{source.stem}-{network}", f"teacher {network}")


def make_supernet(network):
    """Stage supernet: nested widths of a network, trained jointly."""
    with watched(f"supernet {network}"):
        found = SubNetworks(teach_supernet(network))
    accuracy = (f"{width:g}: {entry['test']:.2f} %" for width, entry in zip(found.widths, found.accuracy, strict=True))
    say(f"supernet {network}: test accuracy by width, {', '.join(accuracy)}")


def make_search(name):
    """Stage search: a stated grid of parameters, judged on validation images alone."""
    with watched(f"search {name}"):
        table = run_search(name)
    say(f"search {name}: best of {len(table)} on validation images: line {int(table['best'].idxmax()) + 1} of reports/{study_parameters()['profile']}/searches/{name}.csv")


def make_runs(stage):
    """Stage kd, kr, ...: a method's tables, in its notebook."""
    params = study_parameters()
    source = notebook.read(notebook_path(stage))
    seeds = {key: params[key] for key in ("seeds", "grid_seeds") if key in declared(source)}
    values = {**params[stage], **seeds}
    checked(source, values, notebook_path(stage).name)  # before anything is removed
    settings()  # says at once if a device is not there
    shutil.rmtree(runs_path(params["profile"], stage), ignore_errors=True)  # records of an earlier run; the store has them all
    without = unasked(params)
    execute(notebook_path(stage), values, title=stage, without=without)
    for path in appendix_paths(stage):
        known = declared(notebook.read(path))
        execute(path, {key: value for key, value in values.items() if key in known}, title=path.stem.partition("_")[2], without=without)
    write_metrics(params["profile"], stage)


def make_tables():
    """Stage tables: results.csv, tables.md and figures, in notebook 8."""
    params = study_parameters()
    without, records = unasked(params), runs_path(params["profile"], "kd") / "records.jsonl"
    if "needs-kd_main" not in without and not records.exists():  # of which the notebook tells how a table is read
        raise ConfigError(f"{records} is missing; run `python -m kd repro tables`, which trains what is missing first")
    execute(notebook_path("tables"), {}, title="tables", without=without)


def execute(path, values, name=None, title="", without=()):
    """Run a notebook as the pipeline does. name: of the executed one, where it differs."""
    out = executed_path(study_parameters()["profile"], name or path.stem)
    check_writable(out)
    notebook.run(path, out, values, title=title, without=without)


def unasked(params):
    """The tags of cells that speak of a table which the parameters do not ask for, "needs-TABLE"."""
    return {f"needs-{name}" for name in table_names() if not asked_rows(load_table(name), params)}


def make_pages():
    """Stage pages: today's prose with the last run's outputs, for every notebook that ran, the claims' verdicts in its tables, and on
    top what was seen."""
    params = study_parameters()
    profile = params["profile"]
    verdicts = partial(decided, lines=read_results(reports_path(profile) / "claims.csv"))
    runs, facts, strict = read_results(reports_path(profile) / "results.csv"), read_facts(profile), as_published()
    for path in sorted((FILES / "notebooks").glob("*.ipynb")):
        stage = path.stem.split("_")[1]
        saw = sentences(profile, path.stem.partition("_")[2], runs, facts, strict)
        executed = executed_path(profile, path.stem).parent.glob(f"{path.stem}*.ipynb")
        for run in sorted(run for run in executed if not run.name.endswith(".failed.ipynb")):
            notebook.merge_prose(path, run, reports_path(profile) / "notebooks" / run.name, stage, verdicts, unasked(params), saw)
