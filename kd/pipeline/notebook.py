"""Notebooks as strict, byte-stable stages of a pipeline.

`run` checks the parameters before anything starts, lets papermill execute the notebook and keeps what two runs have in
common: no times, random ids, addresses or progress bars. `script` and `merge_prose` hold prose and code apart, so that
a corrected sentence trains nothing anew and yet reaches the page.
"""

import base64
import copy
import json
import os
import re
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import v4

from kd.checkpoints import write_atomically
from kd.errors import ConfigError
from kd.pipeline.parameters import checked, tags
from kd.processes import same_environment, temporary_folder, without_python_variables
from kd.progress import relayed
from kd.study.paths import ROOT

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

# --- files


def read(path):
    """The notebook at `path` as nbformat's NotebookNode; ConfigError if there is none."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such notebook") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError):
        raise ConfigError(f"{path} is not a notebook: open it in Jupyter or restore it from git") from None


def dumps(notebook):
    """The text of a notebook's file: JSON with sorted keys, an indent of one, a newline at the end."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def write(path, text):
    """Write `text` atomically; a file that holds it already is left alone, so that its time of change stays."""
    if not (Path(path).is_file() and Path(path).read_bytes() == text.encode()):
        write_atomically(path, text)


def clean(notebook):
    """The form to commit, a new notebook: text, tags and attachments alone, ids by position."""
    return _notebook([cell for cell in notebook.cells if "injected-parameters" not in tags(cell)])


def check_clean(path):
    """What keeps the notebook at `path` from being committed: a list of one line, or an empty one."""
    if Path(path).read_bytes() == dumps(clean(read(path))).encode():
        return []
    return [f"{path} holds outputs, metadata or cell ids of its own: `python -m kd clean {path}` strips them"]


# --- the stable form

# "40%|####  | 4/10 [00:01<00:02]" and "12it [00:03]" of tqdm; matplotlib's first start
NOISE = re.compile(r"\d+%\|.*\||\d+ ?\w* \[\d+:\d\d|Matplotlib is building the font cache")
STYLER = re.compile(r"\bT_[0-9a-f]{5}(?=\b|_)")
WIDGET = "application/vnd.jupyter.widget-view+json"
UNSTABLE = [
    (re.compile(r"(?<= at )0x[0-9a-fA-F]{6,16}\b|\b0x7f[0-9a-f]{10}\b"), "0x..."),
    (re.compile(r"[^\s\"'<>(]*[/\\]ipykernel_\d+[/\\]\d+\.py"), "<cell>"),
    (re.compile(r"[^\s\"'<>(]*[/\\]site-packages[/\\]"), "site-packages/"),
]


def normalise(notebook, root=""):
    """An executed notebook's stable form, a new notebook: the same bytes from every run on one machine.

    Metadata and ids as in `clean`; code cells counted 1, 2, ...; in text outputs, addresses, ids of pandas' Styler and
    paths of `root` (the repository), of installed packages and of the kernel's scratch files are rewritten; progress
    bars and widgets go; what a cell prints between two displays is one stream. PNG pictures get a palette; matplotlib's
    are stable, its SVG only with `svg.hashsalt` set and no date.
    """
    stable, count, styled = _notebook(notebook.cells), 0, {}
    for cell, old in zip(stable.cells, notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs = _outputs(old, str(root).rstrip("/"), styled)
            if old.execution_count is not None:
                cell.execution_count = count = count + 1
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    return stable


def _notebook(cells):
    """A notebook of `cells`: their text, tags and attachments are kept, ids go by position, "cell-03"."""
    new, plain = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}, []
    for number, cell in enumerate(cells, 1):
        metadata = {"tags": list(tags(cell))} if tags(cell) else {}
        plain.append(new[cell.cell_type](cell.source, id=f"cell-{number:02d}", metadata=metadata))
        if cell.get("attachments"):
            plain[-1]["attachments"] = copy.deepcopy(cell.attachments)
    return v4.new_notebook(cells=plain, metadata=copy.deepcopy(METADATA), nbformat_minor=5)


def _outputs(cell, root, styled):
    """The cell's outputs in stable form; `styled`: ids of pandas' Styler met so far -> their number."""
    kept, streams = [], {"stdout": "", "stderr": ""}
    for output in [*copy.deepcopy(cell.outputs), None]:
        if output is not None and output.output_type == "stream":
            streams[output.name] += output.text
            continue
        for name in streams:  # flushed by chance, hence in a fixed order between two displays
            if text := _stable(_printed(streams[name], name), root):
                kept.append(v4.new_output("stream", name=name, text=text))
        streams = dict.fromkeys(streams, "")
        if output is None or WIDGET in output.get("data", {}):
            continue
        data = output.get("data", {})
        for mime, content in data.items():
            if mime.startswith("text/"):
                data[mime] = _stable(content, root)
        if "text/html" in data:
            data["text/html"] = STYLER.sub(
                lambda match: f"T_{styled.setdefault(match[0], len(styled)):05d}", data["text/html"]
            )
        if "image/png" in data:
            data["image/png"] = _with_palette(data["image/png"])
        if output.output_type == "error":
            output.evalue = _stable(output.evalue, root)
            output.traceback = [_stable(line, root) for line in output.traceback]
        kept.append(output)
    return kept


def _printed(text, name):
    """A stream as a terminal shows it: of a line, what follows the last \\r; stderr without progress bars."""
    parts = re.split(r"(?<=[\r\n])", text)
    text = "".join(part for part in parts if name == "stdout" or not NOISE.search(part))
    text = re.sub(r"[^\n]*\r(?=[^\n])", "", text.replace("\r\n", "\n")).replace("\r", "")
    return text if name == "stdout" or text.strip() else ""


def _stable(text, root):
    if len(root) > 1:
        text = re.sub(re.escape(root) + r"(/|(?![\w.-]))", lambda match: "" if match[1] else ".", text)
    for pattern, replacement in UNSTABLE:
        text = pattern.sub(replacement, text)
    return text


def _with_palette(picture):
    """A picture (PNG in base64) with 128 colours where that is smaller: to the eye the same, a third of the bytes."""
    from kd.report.figures import with_palette  # late: it brings matplotlib, which nothing else here needs

    try:
        before = base64.b64decode(picture)
    except ValueError:
        return picture
    after = with_palette(before, 128)
    return picture if after == before else base64.b64encode(after).decode()


# --- execution


def run(notebook, out, parameters, environment=None, progress=None, title=None, without=()):
    """Execute `notebook` with `parameters` (a dict) in the repository's root; its stable form becomes `out`.

    without: tags of cells that are left out.

    environment: more variables for the kernel. progress: the stream that shows what kd.progress says, default
    sys.stderr. title: begins the line with the counts of runs, default the notebook's stem without its number.
    ConfigError for parameters the notebook lacks, needs or takes otherwise, before anything runs.
    ConfigError if a cell fails: `out` is as it was, the notebook up to there lies beside it as `.failed.ipynb`.
    """
    notebook, out = Path(notebook), Path(out).resolve()
    if out == notebook.resolve():
        raise ConfigError(f"{out.name}: the result would overwrite the notebook itself: choose another --out")
    source, failed = read(notebook), out.with_suffix(".failed.ipynb")
    source, parameters = clean(left(source, without)), checked(source, parameters, notebook.name)
    if parameters:
        lines = ["# Parameters of this run", *(f"{key} = {value!r}" for key, value in parameters.items())]
        injected = v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
        declares = ["parameters" in tags(cell) and cell.cell_type == "code" for cell in source.cells]
        source.cells.insert(declares.index(True) + 1, injected)

    # imported here: slow, and needed by nothing else
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    title, progress = title or notebook.stem.partition("_")[2] or notebook.stem, progress or sys.stderr
    with _stoppable(), _kernel(environment or {}) as folder, relayed(folder / "progress", progress, title):
        executed = folder / "executed.ipynb"
        quiet = {"progress_bar": False, "log_output": False, "record_timing": False}
        try:
            execute_notebook(source, str(executed), kernel_name="python3", cwd=str(ROOT), **quiet)
            write(out, dumps(normalise(read(executed), ROOT)))
            failed.unlink(missing_ok=True)
            return
        except PapermillExecutionError as error:
            number, text = error.exec_count, error.source
            reason = error.evalue if error.ename == "ConfigError" else f"{error.ename}: {error.evalue}"
            if not error.evalue.strip() and error.ename == "CellExecutionError":  # IPython itself failed while it was telling
                reason = "a cell failed and could not say why, as when memory is short; allow more (`ulimit -v`) and see its output"
        except RuntimeError as error:  # of nbclient: the kernel died, or did not start
            cells = read(executed).cells if executed.exists() else []
            cells = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
            begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
            number, text = len(begun), begun[-1].source if begun else ""
            reason = f"the kernel died, out of memory? ({error})"
        if executed.exists():
            write(failed, dumps(normalise(read(executed), ROOT)))
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    place = f"{notebook.name}, code cell {number}: `{first}`; see {os.path.relpath(failed)}"
    raise ConfigError(f"{' '.join(reason.split())} [{place}]")


@contextmanager
def _kernel(environment):
    """Make `python3` a kernel of this very Python, whatever is installed, which takes nothing from the user's settings.

    Yields a temporary folder; the kernel's environment is ours, the given one and what is here, the later first.
    """
    with temporary_folder() as folder:
        # matplotlib says so, in the page, where it can keep nothing in the user's folder; in this process it would clear away too late
        own = {} if os.access(Path.home(), os.W_OK) else {"MPLCONFIGDIR": f"{folder}/matplotlib"}
        variables = {
            **without_python_variables(os.environ),
            **same_environment(),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "IPYTHONDIR": f"{folder}/ipython",
            "MATPLOTLIBRC": os.devnull,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "TMPDIR": str(folder),
            **own,
            **environment,
            "KD_PROGRESS": f"{folder}/progress",
        }
        kernel = {
            "display_name": "Python 3",
            "language": "python",
            "argv": [sys.executable, "-m", "kd.pipeline.kernel", "--log-level=CRITICAL", "-f", "{connection_file}"],
            # doubled, because Jupyter expands $NAME
            "env": {key: str(value).replace("$", "$$") for key, value in variables.items()},
        }
        write_atomically(f"{folder}/kernels/python3/kernel.json", json.dumps(kernel))
        # where Jupyter finds that kernel, and keeps the file by which the two talk
        with _variables(JUPYTER_PATH=str(folder), JUPYTER_RUNTIME_DIR=f"{folder}/runtime", **own):
            before, tempfile.tempdir = tempfile.tempdir, str(folder)
            try:
                yield folder
            finally:
                tempfile.tempdir = before


@contextmanager
def _variables(**values):
    """Environment variables for as long as the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _stoppable():
    """SIGTERM stops as Ctrl-C does, so that the kernel ends too and nothing half written stays."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # Python lets only the main thread choose; the command line has chosen already
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- code without prose, prose without code


def _is_code(cell):
    """Whether a stage depends on the cell: code, but no injected cell, none tagged `prose` and no empty one."""
    return cell.cell_type == "code" and cell.source.strip() and not {"prose", "injected-parameters"} & set(tags(cell))


def left(notebook, without):
    """The notebook without the cells that have one of the tags `without`, a new one."""
    return v4.new_notebook(cells=[cell for cell in notebook.cells if not set(without) & set(tags(cell))], metadata=notebook.metadata)


def script(notebook):
    """The code cells alone, as one text: what a stage depends on, so that editing prose re-runs nothing."""
    marks = ((" parameters" if "parameters" in tags(cell) else "", cell) for cell in notebook.cells if _is_code(cell))
    return "\n".join(f"# %%{mark}\n{cell.source.rstrip()}\n" for mark, cell in marks)


def merge_prose(notebook, executed, out, stage="", said=str, without=(), findings=()):
    """Write the prose of `notebook` as it is now around the outputs of `executed`: the page to read.

    ConfigError if their code differs; `stage` is what it tells to reproduce. A code cell tagged `prose` keeps its
    output while its text stays the same. said: applied to every output in Markdown. without: tags of cells that are left out. findings:
    sentences that stand at the cell tagged `findings`. Cells tagged `hide-input` show their code only when they are opened. Links that
    lead out of the notebook's folder are written as seen from `out`.
    """
    path, executed = Path(notebook).resolve(), read(executed)
    notebook = left(read(notebook), without)
    if script(notebook) != script(executed):
        raise ConfigError(f"{path.name}'s code changed since it ran: run `{f'dvc repro {stage}'.strip()}`")
    cells = [v4.new_markdown_cell(f"*generated from {path.parent.name}/{path.name}; edit there*")]
    ran = [cell for cell in executed.cells if _is_code(cell)]
    for data in (output.data for cell in ran for output in cell.outputs if "data" in output):
        if "text/markdown" in data:
            data["text/markdown"] = said(data["text/markdown"])
    asides = {cell.source: cell for cell in executed.cells if "prose" in tags(cell)}
    for cell in notebook.cells:
        if "findings" in tags(cell):
            if findings:
                cells.append(v4.new_markdown_cell("## What we saw\n\n" + "\n".join(f"- {sentence}" for sentence in findings)))
            continue
        if cell.cell_type == "markdown":
            cell.source = relinked(cell.source, path.parent, Path(out).resolve().parent)
        cells.append(ran.pop(0) if _is_code(cell) else asides.get(cell.source, cell))
        if _is_code(cell) and "parameters" in tags(cell):
            cells += [other for other in executed.cells if "injected-parameters" in tags(other)]
    page = normalise(nbformat.from_dict({"cells": cells}))
    for cell in page.cells:
        if "hide-input" in tags(cell):
            cell.metadata["jupyter"] = {"source_hidden": True}
    write(out, dumps(page))


def relinked(text, folder, other):
    """Markdown of a file in `folder` with its links as a file in the folder `other` must have them.

    Links to files beside it stay. A folder of pages may hold a notebook under a longer name, "00_teacher-cnn6x16.ipynb".
    """

    def link(match):
        target, hash_, anchor = match[1].partition("#")
        if "://" in target or not target or target.startswith("mailto:"):
            return match[0]
        if not target.startswith("../"):
            pages = sorted(other.glob(f"{Path(target).stem}-*.ipynb"))
            return f"]({pages[0].name}{hash_}{anchor})" if pages else match[0]
        return f"]({Path(os.path.relpath(folder / target, other)).as_posix()}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)
