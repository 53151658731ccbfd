"""What a stage's page depends on, for DVC to watch; and code to show beside a formula."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

from kd import WHERE
from kd.checkpoints import write_atomically
from kd.methods import CURRICULA, KNOWLEDGE
from kd.pipeline.notebook import read, script
from kd.program import closure, file_of, imports, program
from kd.report.claims import load_claims
from kd.study.paths import STAGES, appendix_paths, notebook_path
from kd.study.store import module_of
from kd.study.tables import load_table, table_names


def program_of_stage(stage):
    """All that a stage's page is drawn by, as text: the notebook's code, what it imports, and the methods of its tables."""
    code = "".join(script(read(path)) for path in (notebook_path(stage), *appendix_paths(stage)))
    names = set(re.findall(r"\bkd\.([A-Za-z]\w*)", code))
    shown = [(module, name) for module, held in WHERE.items() if file_of(module) for name in held if name in names]
    # kd.figures and kd.schematics are modules themselves
    modules = imports(code) + [f"{module}.{name}" if file_of(f"{module}.{name}") else module for module, name in shown]
    rows = [row for name in table_names(stage) for row in load_table(name)["rows"]]
    methods = {method for row in rows for method in (*row.get("knowledge", ["kd"]), row.get("curriculum", "fixed"))}
    compared = {name: claim["contrast"] for name, claim in load_claims().items()}
    return f"# {stage}\n{code}# claims\n{compared}\n" + program(closure(["kd.study.study", "kd.study.metrics", *modules, *map(module_of, sorted(methods))]))


def write_programs(folder):
    """Write folder/STAGE.py, the program of every stage that DVC runs."""
    for stage in ("teacher", *STAGES, "tables"):
        write_atomically(Path(folder) / f"{stage}.py", program_of_stage(stage))
    everything = map(module_of, (*KNOWLEDGE, *CURRICULA))
    write_atomically(Path(folder) / "supernet.py", program(closure(["kd.study.study"])))
    write_atomically(Path(folder) / "search.py", program(closure(["kd.study.search", *everything])))


def prepare(root, profile):
    """Make what `dvc repro --dry` looks into before any stage has run: DVC can plan over an empty folder, not over a missing one."""
    folders = [f"data/{profile}", f"models/{profile}/routes", f"models/{profile}/supernets"]
    for name in folders + [f"runs/{profile}/{stage}" for stage in (*STAGES, "notebooks")]:
        (root / name).mkdir(parents=True, exist_ok=True)
    write_programs(root / "build" / "code")


def show_source(*things):
    """Display the source of functions or classes in a notebook, as highlighted code, without their docstrings."""
    from IPython.display import Markdown, display

    for thing in things:
        source = textwrap.dedent(inspect.getsource(thing))
        node, lines = ast.parse(source).body[0], source.splitlines()
        if ast.get_docstring(node) is not None:
            del lines[node.body[0].lineno - 1 : node.body[0].end_lineno]
        text = "\n".join(lines).strip("\n")
        display(Markdown(f"```python\n{text}\n```"))
