"""python -m kd COMMAND: the pipeline's stages and a reader's tools. `python -m kd COMMAND --help` says what each takes."""

import argparse
import inspect
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from kd.errors import Problem, nearest

ROOT = Path(__file__).resolve().parent.parent


def params():
    from kd.study import parameters_file

    return parameters_file()


def command_use(options):
    """Write params.yaml from profiles/PROFILE.yaml."""
    profiles = {path.stem: path for path in sorted((ROOT / "profiles").glob("*.yaml"))}
    if options.profile not in profiles:
        raise Problem(f"unknown profile {options.profile!r}{nearest(options.profile, profiles)}; there are {', '.join(profiles)}")
    text, target = profiles[options.profile].read_text(), ROOT / "params.yaml"
    values = yaml.safe_load(text)
    if options.archive:
        archive = Path(options.archive).expanduser()
        if not archive.exists():
            raise Problem(f"{archive} does not exist; give --archive the path of a folder or .tar archive of train/CLASS/* and test/CLASS/*")
        if values["data"]["name"] != "imagefolder":
            raise Problem(f"profile {options.profile} reads no archive of yours; --archive goes with the imagefolder profiles")
        quoted = json.dumps(str(archive.resolve()))  # a path may hold what YAML would read as something else
        text = re.sub(r"(?m)^  (source|watch): \S+", lambda match: f"  {match[1]}: {quoted}", text)
    elif values["data"]["name"] == "imagefolder":
        raise Problem(f"profile {options.profile} reads your images: give --archive PATH, a folder or .tar of train/CLASS/* and test/CLASS/*")
    if target.exists() and target.read_text() != text and target.read_text() not in {p.read_text() for p in profiles.values()}:
        names = (ROOT / f"params.yaml.bak{number or ''}" for number in itertools.count())
        backup = next(path for path in names if not path.exists() or path.read_text() == target.read_text())
        shutil.copy(target, backup)
        print(f"Your edited params.yaml is kept as {backup.name}.")
    from kd.checkpoints import write_atomically

    write_atomically(target, text)
    plannable(options.profile)
    print(f"params.yaml now says: profile {options.profile}. Next: make repro (or: dvc repro)")
    if values["data"]["name"] in ("cifar10", "cifar100"):
        from kd.fetch import archives

        if not archives()[values["data"]["name"]].path.exists():
            print(f"First: python -m kd fetch {values['data']['name']}")


def plannable(profile):
    """Make what `dvc repro --dry` looks into before any stage has run: DVC can plan over an empty folder, not over a missing one."""
    from kd.source import write_programs
    from kd.study import STAGES

    for name in (f"data/{profile}", f"models/{profile}/routes", f"models/{profile}/supernets", *(f"runs/{profile}/{stage}" for stage in (*STAGES, "notebooks"))):
        (ROOT / name).mkdir(parents=True, exist_ok=True)
    write_programs(ROOT / "build" / "code")


def command_fetch(options):
    """Download a raw archive that data.dvc lists, resuming, and verify it."""
    from kd.fetch import fetch

    fetch(options.name, options.addresses)


def command_data(options):
    """Stage data: the archive as tensors, in one file."""
    from kd.data import load_data

    values = {k: v for k, v in params()["data"].items() if k != "watch"}
    known = list(inspect.signature(load_data).parameters)
    for key in values:
        if key not in known:
            raise Problem(f"data.{key}: unknown{nearest(key, known)}; known: {', '.join(known)}")
    data = load_data(values.pop("name"), cache=str(ROOT / "data" / "cache"), **values)
    data.save(options.out)
    counts = ", ".join(f"{len(labels)} {split}" for split, labels in data.labels.items())
    print(f"{options.out}: {counts} images of {'x'.join(map(str, data.image_shape))}, {len(data.classes)} classes")


def command_supernet(options):
    """Stage supernet: nested widths of a network, trained jointly."""
    from kd.study import teach_supernet

    for width, found in teach_supernet(options.network, options.out):
        print(f"{options.network} at width {width:g}: {found['test']:.2f} % test accuracy")


def empty_output(folder):
    """Remove a stage's earlier records. Problem, and nothing is removed, where anything else lies in the folder."""
    strange = [path.name for path in folder.glob("*") if path.suffix != ".safetensors" and path.name not in ("records.jsonl", "rows.json")]
    if strange:
        raise Problem(f"{folder} holds {strange[0]!r}, which no stage wrote; --output is emptied first: give it a folder of its own")
    shutil.rmtree(folder, ignore_errors=True)


def command_run(options):
    """Execute a notebook under typed parameters."""
    from kd import notebooks
    from kd.checkpoints import check_writable
    from kd.parameters import checked, parameters_from
    from kd.study import forget, use_device

    parameters = parameters_from(options.params, options.parameter)
    checked(notebooks.read(options.notebook), parameters, Path(options.notebook).name)  # before anything is removed
    environment = {}
    for name in ("output", "models", "reports"):
        if getattr(options, name):
            environment[f"KD_{name.upper()}"] = str(Path(getattr(options, name)).resolve())
    use_device()  # says at once if it is not there
    check_writable(options.out)
    if options.output:
        empty_output(Path(options.output))
    notebooks.run(options.notebook, options.out, parameters, environment)
    if options.output:
        forget(options.output)


def command_code(options):
    """Stage code: every stage's program without prose, for the stages to depend on."""
    from kd.source import write_programs

    write_programs(options.out)


def command_pages(options):
    """Stage pages: today's prose with the last run's outputs, for every notebook that ran."""
    from kd.notebooks import weave

    executed, out = Path(options.executed), Path(options.out)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for run in sorted(set(executed.glob(f"{notebook.stem}*.ipynb")) - set(executed.glob("*.failed.ipynb"))):
            weave(notebook, run, out / run.name, notebook.stem.partition("_")[2])


def command_search(options):
    """Choose a method's parameters on validation images, from the grid in searches/METHOD.yaml."""
    from kd.search import run_search

    table = run_search(options.method, options.out)
    print(table.drop(columns="keys").to_string(index=False))


def command_show(options):
    """Print the records behind a table's cell."""
    from kd.show import show

    print(show(options.table, options.row, options.profile))


def command_plan(options):
    """Say what `dvc repro` would run: runs, epochs, and an estimate of the hours."""
    from kd.plan import plan

    print(plan())


def command_cost(options):
    """Say on what and for how long the students of a profile trained, a method a line."""
    from kd.checkpoints import write_atomically
    from kd.plan import cost

    text = cost(options.profile)
    print(text)
    if options.out:
        write_atomically(Path(options.out), text)


def command_readme(options):
    """Write the generated parts of README.md from the records, between their markers."""
    from kd.readme import write_readme

    write_readme(check=options.check)


def command_lint(options):
    """Check that notebooks are committed without outputs and README's numbers are those of the records."""
    from kd.notebooks import check_clean

    complaints = [line for path in sorted((ROOT / "notebooks").glob("*.ipynb")) for line in check_clean(path)]
    if complaints:
        raise Problem("; ".join(complaints))
    from kd.readme import write_readme

    write_readme(check=True)


def command_clean(options):
    """Strip notebooks to the form in which they are committed."""
    from kd.notebooks import clean, dumps, read, write

    for path in options.notebooks:
        write(path, dumps(clean(read(path))))


def command_bench(options):
    """Measure the training step."""
    from kd.bench import bench

    bench(options)


def command_repro(options):
    """dvc repro, then the tables and where the reports are."""
    # stages call `python`: it must be this one, also when no environment is activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run([sys.executable, "-m", "dvc", "repro", *options.targets], cwd=ROOT, env={**os.environ, "PATH": path})
    if done.returncode:
        sys.exit(done.returncode)
    folder = ROOT / "reports" / params()["profile"]
    print()
    if (folder / "tables.md").exists():
        print((folder / "tables.md").read_text())
    print(f"Reports: {folder.relative_to(ROOT)}/ (executed notebooks, tables.md, results.csv, figures/)")


def parser():
    main = argparse.ArgumentParser(prog="python -m kd", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function):
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    use = add("use", command_use)
    use.add_argument("profile")
    use.add_argument("--archive", help="imagefolder profiles: the folder or archive to read")
    fetch = add("fetch", command_fetch)
    fetch.add_argument("name", help="cifar10 or cifar100")
    fetch.add_argument("--from", dest="addresses", nargs="+", metavar="ADDRESS", help="where from, in order; default: data.dvc's, or KD_MIRRORS")
    run = add("run", command_run)
    run.add_argument("notebook")
    run.add_argument("--out", required=True, help="the executed notebook")
    run.add_argument("--params", action="append", default=[], metavar="FILE[:SECTION]", help="a YAML mapping of parameters")
    run.add_argument("-p", dest="parameter", action="append", default=[], metavar="name=value", help="one parameter; wins over --params")
    for name, what in (("output", "the records"), ("models", "a teacher's route"), ("reports", "tables and figures")):
        run.add_argument(f"--{name}", metavar="FOLDER", help=f"folder for {what}; default: below scratch/")
    code = add("code", command_code)
    code.add_argument("--out", required=True)
    for name, function in (("data", command_data), ("supernet", command_supernet)):
        command = add(name, function)
        if name == "supernet":
            command.add_argument("network")
        command.add_argument("--out", required=True)
    pages = add("pages", command_pages)
    pages.add_argument("executed", help="folder of executed notebooks")
    pages.add_argument("--out", required=True)
    search = add("search", command_search)
    search.add_argument("method")
    search.add_argument("--out", help="folder for the table; default: reports/PROFILE/searches")
    show = add("show", command_show)
    show.add_argument("table")
    show.add_argument("row")
    show.add_argument("--profile", help="default: the one in params.yaml")
    add("plan", command_plan)
    cost = add("cost", command_cost)
    cost.add_argument("--profile", help="default: the one in params.yaml")
    cost.add_argument("--out", help="also write it there, e.g. reports/digits/cost.md")
    readme = add("readme", command_readme)
    readme.add_argument("--check", action="store_true", help="change nothing; fail if README.md does not hold the records' numbers")
    add("lint", command_lint)
    clean = add("clean", command_clean)
    clean.add_argument("notebooks", nargs="+")
    repro = add("repro", command_repro)
    repro.add_argument("targets", nargs="*")
    bench = add("bench", command_bench)
    bench.add_argument("--peer", help="a checkout of RepDistiller, whose own loop is then timed beside ours")
    bench.add_argument("--repeats", type=int, default=5, help="turns")
    bench.add_argument("--steps", type=int, default=20, help="steps a turn")
    bench.add_argument("--compile", type=int, default=0, metavar="SECONDS", help="also torch.compile, given up after that long")
    bench.add_argument("--neutrality", type=int, default=0, metavar="SEEDS", help="also accuracy on the digits, over paired seeds")
    bench.add_argument("--no-methods", dest="methods", action="store_false", help="leave out the cost of each method's step")
    bench.add_argument("--reports", metavar="FOLDER", help="where the page, its figure and the CSV go; default: reports/")
    return main


def main():
    # a stage that DVC or a batch system terminates must stop its workers and kernels as Ctrl-C does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parser().parse_args()
    try:
        options.function(options)
    except Problem as problem:
        print(f"kd: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("kd: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"kd: {error.filename or 'input or output'}: {error.strerror or error}; mend that and run the same command again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
