"""Code without prose, for what must notice a changed program and not a corrected sentence; and code to show beside a formula."""

import ast
import inspect
import textwrap
from functools import cache
from hashlib import md5
from pathlib import Path

from kd.errors import Problem

# What a stage's results depend on besides data, weights and parameters: what trains, and what a notebook shows of it.
TRAINING = [f"kd/{name}" for name in ("checkpoints.py", "data.py", "distill.py", "fetch.py", "graphs.py", "models", "recipe.py", "stream.py")]
TRAINING += ["kd/study.py", "kd/teachers.py", "kd/methods/__init__.py", "kd/methods/kd.py"]
CORE = [*TRAINING, "kd/figures.py", "kd/records.py", "kd/source.py", "kd/tables.py"]
HINTS = ["kd/methods/hints.py", "kd/methods/attention.py"]
STAGES = {
    "core": CORE,
    "teacher": ["notebooks/00_teacher.ipynb"],
    "supernet": TRAINING,
    "search": [*TRAINING, "kd/records.py", "kd/search.py", "kd/methods"],
    "kd": ["notebooks/01_kd.ipynb"],
    "kr": ["notebooks/02_kr.ipynb", "kd/methods/kr.py"],
    "srm": ["notebooks/03_srm.ipynb", "kd/methods/srm.py", *HINTS],
    "rco": ["notebooks/04_rco.ipynb", "kd/methods/rco.py", *HINTS],
    "iekd": ["notebooks/05_iekd.ipynb", "kd/methods/iekd.py", "kd/methods/factor.py", "kd/methods/dml.py", *HINTS],
    "pwkd": ["notebooks/06_pwkd.ipynb", "kd/methods/pwkd.py", *HINTS],
    "combined": ["notebooks/07_combined.ipynb", "kd/effects.py", "kd/methods"],
    "tables": ["notebooks/08_tables.ipynb", "kd/effects.py", "kd/methods"],
}


def without_prose(path):
    """The program in a file as text: a python file without comments and docstrings, a notebook's code cells.

    A file that does not parse raises Problem.
    """
    path = Path(path)
    if path.suffix == ".ipynb":
        from kd.notebooks import read, script

        return script(read(path))
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as error:
        raise Problem(f"{path}, line {error.lineno}: {error.msg}; mend it first") from None
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree) + "\n"


def program(paths):
    """The programs of python files, notebooks and folders of python files as one text, each under its name."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise Problem(f"{path} does not exist; run this in the repository's root")
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return "".join(f"# {file.name}\n{without_prose(file)}\n" for file in files)


def imported(path):
    """The method files that a method file imports, directly or through others, itself first."""
    found = [path]
    for file in found:  # grows while it is walked
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kd.methods."):
                other = path.with_name(f"{node.module.rpartition('.')[2]}.py")
                found += [other] if other not in found else []
    return found


@cache
def training_md5(methods):
    """md5 of the program that trains with the named methods: what a half-finished run must not have changed under it.

    methods: a tuple of the names of kd.methods.KNOWLEDGE and CURRICULA.
    """
    from kd.methods import CURRICULA, KNOWLEDGE

    package = Path(__file__).parent
    files = [package.parent / name for name in TRAINING]
    for name in methods:
        module = {**KNOWLEDGE, **CURRICULA}[name].rpartition(".")[0]
        if module:  # Labels and Fixed stand in __init__.py
            files += [file for file in imported(package / "methods" / f"{module}.py") if file not in files]
    return md5(program(files).encode()).hexdigest()[:12]


def write_programs(folder):
    """Write the program of every stage as folder/STAGE.py."""
    from kd.checkpoints import write_atomically

    for stage, paths in STAGES.items():
        write_atomically(Path(folder) / f"{stage}.py", program(paths))


def show_source(*things):
    """Display the source of functions or classes in a notebook, as highlighted code, without their docstrings."""
    from IPython.display import Markdown, display

    for thing in things:
        lines = textwrap.dedent(inspect.getsource(thing))
        node = ast.parse(lines).body[0]
        if ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno
            kept = lines.splitlines()
            lines = "\n".join(kept[: first - 1] + kept[last:])
        lines = lines.strip("\n")
        display(Markdown(f"```python\n{lines}\n```"))
