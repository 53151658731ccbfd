"""python -m kd COMMAND: the pipeline's stages and a reader's tools. `python -m kd COMMAND --help` says what each takes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from kd import processes
from kd.errors import ConfigError
from kd.places import INSTALLED
from kd.study.paths import ROOT

OF_THE_REPOSITORY = ("repro", "readme", "claims", "lint")


def command_use(options):
    """Write params.yaml from profiles/base.yaml and profiles/PROFILE.yaml."""
    from kd.pipeline.source import prepare
    from kd.study.profiles import use

    use(options.profile, options.archive, prepare=prepare)


def command_fetch(options):
    """Download a raw archive that data.dvc lists, resuming, and verify it."""
    from kd.data.fetch import fetch

    fetch(options.name, options.addresses)


def command_stage(options):
    """Run one stage of dvc.yaml, as dvc does."""
    from kd.pipeline.stage import run_stage

    run_stage(options.name, options.item)


def command_run(options):
    """Execute a notebook under typed parameters; what it trains and draws goes below scratch/."""
    from kd.checkpoints import check_writable
    from kd.pipeline import notebook
    from kd.pipeline.parameters import parameters_from
    from kd.study.settings import check_files_allowed, use_device

    parameters = parameters_from(options.params, options.parameter)
    check_files_allowed()
    use_device()  # says at once if it is not there
    check_writable(options.out)
    notebook.run(options.notebook, options.out, parameters)


def command_search(options):
    """Choose a method's parameters on validation images, from the grid in searches/METHOD.yaml."""
    from kd.study.search import run_search

    print(run_search(options.method, options.out).drop(columns="keys").to_string(index=False))


def command_show(options):
    """Print the records behind a table's cell, or a claim and what every study says of it."""
    from kd.report.show import show, show_claim
    from kd.study.parameters import check_name

    if options.profile:
        check_name(options.profile, "--profile")
    print(show_claim(options.table) if options.row is None else show(options.table, options.row, options.profile))


def command_plan(options):
    """Say what `dvc repro` would run: runs, epochs, and an estimate of the hours."""
    from kd.study.plan import plan

    print(plan())


def command_cost(options):
    """Say on what and for how long the students of a profile trained, a method a line."""
    from kd.checkpoints import write_atomically
    from kd.report.cost import cost
    from kd.study.parameters import check_name

    if options.profile:
        check_name(options.profile, "--profile")
    text = cost(options.profile)
    print(text)
    if options.out:
        write_atomically(Path(options.out), text)


def command_clean(options):
    """Say how large the store of finished runs is; --prune removes what no table or search asks for."""
    from kd.study.clean import clean

    print(clean(options.prune))


def command_readme(options):
    """Write the generated parts of README.md from the records, between their markers."""
    from kd.report.readme import write_readme

    write_readme(check=options.check)


def command_claims(options):
    """Write reports/claims.md, claims.csv and their pictures from all committed results: every claim, in every study."""
    from kd.report.claims_page import write_claims

    write_claims(check=options.check)


def command_lint(options):
    """Check that notebooks are committed without outputs, that README's and the claims' numbers are those of the records, and that
    every finding holds."""
    from kd.pipeline.notebook import check_clean
    from kd.report.claims_page import write_claims
    from kd.report.findings import check_findings
    from kd.report.readme import write_readme

    complaints = [line for path in sorted((ROOT / "notebooks").glob("*.ipynb")) for line in check_clean(path)]
    if complaints:
        raise ConfigError("; ".join(complaints))
    check_findings()
    write_readme(check=True)
    write_claims(check=True)


def command_strip(options):
    """Strip notebooks to the form in which they are committed."""
    from kd.pipeline.notebook import clean, dumps, read, write

    for path in options.notebooks:
        write(path, dumps(clean(read(path))))


def command_repro(options):
    """dvc repro, then the main table, what it says, and where the reports are; of single stages, how the tables are made from them."""
    from kd.study.checks import check_runs
    from kd.study.plan import Planned

    study = Planned()
    check_runs(study)
    profile = study.profile
    # stages call `python`: it must be this one, also when no environment is activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with processes.alone(ROOT / ".dvc" / "tmp" / "repro.lock", "another repro"):
        arguments = [sys.executable, "-m", "dvc", "repro", *options.targets]
        dvc = subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, "PATH": path}, preexec_fn=processes.end_with_parent_gently)
        try:
            code = dvc.wait()
        except KeyboardInterrupt:
            processes.end_children(lowest_first=True)
            raise
    if code:
        sys.exit(code if code > 0 else 128 - code)
    if options.targets and not {"tables", "pages"} & set(options.targets):
        print(f"\nThe tables of the study are made, from these stages and all others, by `python -m kd repro`; executed notebooks lie in runs/{profile}/notebooks/.")
    else:
        from kd.report.show import summary_screen  # late: it brings scipy and matplotlib

        print(f"\n{summary_screen(profile)}")


def parser():
    main = argparse.ArgumentParser(prog="python -m kd", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(function):
        name = function.__name__.removeprefix("command_")
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    use = add(command_use)
    use.add_argument("profile")
    use.add_argument("--archive", help="imagefolder profiles and imagenet: the folder or archive to read")
    fetch = add(command_fetch)
    fetch.add_argument("name", help="cifar10 or cifar100")
    fetch.add_argument("--from", dest="addresses", nargs="+", metavar="ADDRESS", help="where from, in order; default: data.dvc's, or KD_MIRRORS")
    repro = add(command_repro)
    repro.add_argument("targets", nargs="*", help="stages; default: all")
    stage = add(command_stage)
    stage.add_argument("name")
    stage.add_argument("item", nargs="?", help="teacher and supernet: the network; search: which one")
    run = add(command_run)
    run.add_argument("notebook")
    run.add_argument("--out", required=True, help="the executed notebook")
    run.add_argument("--params", action="append", default=[], metavar="FILE[:SECTION]", help="a YAML mapping of parameters")
    run.add_argument("-p", dest="parameter", action="append", default=[], metavar="name=value", help="one parameter; wins over --params")
    search = add(command_search)
    search.add_argument("method")
    search.add_argument("--out", help="folder for the table; default: reports/PROFILE/searches")
    show = add(command_show)
    show.add_argument("table", metavar="TABLE or CLAIM")
    show.add_argument("row", nargs="?")
    show.add_argument("--profile", help="default: the one in params.yaml")
    add(command_plan)
    cost = add(command_cost)
    cost.add_argument("--profile", help="default: the one in params.yaml")
    cost.add_argument("--out", help="also write it there, e.g. reports/digits/cost.md")
    clean = add(command_clean)
    clean.add_argument("--prune", action="store_true", help="remove what no table or search asks for")
    readme = add(command_readme)
    readme.add_argument("--check", action="store_true", help="change nothing; fail if README.md does not hold the records' numbers")
    claims = add(command_claims)
    claims.add_argument("--check", action="store_true", help="change nothing; fail if the files are not those of the results")
    add(command_lint)
    strip = add(command_strip)
    strip.add_argument("notebooks", nargs="+")
    return main


def check_folder():
    """ConfigError in a folder that is there no longer; libraries would find no parts of theirs, and say something else."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the folder in which this was started is gone; change into another one and run the same command again") from None


def main():
    options = parser().parse_args()
    try:
        check_folder()
        if INSTALLED and options.command in OF_THE_REPOSITORY:
            reason = "works on the repository's own files, which a package does not bring"
            remedy = "run it in a clone; here run single stages, such as `python -m kd stage data`"
            raise ConfigError(f"{options.command} {reason}: {remedy}")
        options.function(options)
    except ConfigError as problem:
        print(f"kd: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        processes.end_children()
        print("kd: stopped; the same command goes on from here", file=sys.stderr, flush=True)
        code = 128 + getattr(stopped, "number", 2)  # as shells say it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP
        # a library that was broken off in the middle has much to say at Python's own end, and nothing is left to do there
        os._exit(code) if hasattr(stopped, "number") else sys.exit(code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, ImportError) as error:  # ImportError: a library that finds no room for its code, or is not installed
        what = " ".join(str(error).split()) or "no memory is left"
        print(f"kd: {what}; allow more memory (`ulimit -v`), or install anew with `make setup`", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"kd: {error.filename or 'input or output'}: {error.strerror or error}; mend that and run the same command again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    processes.begin_alike()
    processes.end_on_signals()
    if os.environ.get("DVC_STAGE"):  # so that DVC is the parent: the variable is its own
        processes.end_with_dvc()
    main()
