"""Notebooks as strict, byte-stable stages of a pipeline.

A stage's notebook has one code cell tagged `parameters`, of lines `name: type = default  # unit; reason`.
`run` checks the given parameters against it before anything starts, lets papermill execute the notebook and
keeps only what two runs have in common: no times, random ids, addresses or progress bars. `code` and `weave`
hold prose and code apart, so that correcting a sentence trains nothing anew and yet reaches the page.
"""

import base64
import copy
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import v4
from PIL import Image, UnidentifiedImageError

from kd.errors import Problem
from kd.parameters import checked, tags

METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}
# Files

def read(path):
    """The notebook at `path` as nbformat's NotebookNode; Problem if there is none."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise Problem(f"{path}: no such notebook") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError):
        raise Problem(f"{path} is not a notebook: open it in Jupyter or restore it from git") from None


def dumps(notebook):
    """How our notebooks are written: JSON with sorted keys, an indent of one, a newline at the end."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def write(path, text):
    """`text` into `path`, whole or not at all; a file that holds it already is left alone."""
    path, content = Path(path), text.encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


# The stable form

# "40%|####  | 4/10 [00:01<00:02]" and "12it [00:03]" of tqdm; matplotlib's first start; tqdm.notebook
NOISE = re.compile(r"\d+%\|.*\||\d+ ?\w* \[\d+:\d\d|Matplotlib is building the font cache")
STYLER = re.compile(r"\bT_[0-9a-f]{5}(?=\b|_)")
WIDGET = "application/vnd.jupyter.widget-view+json"
UNSTABLE = [(re.compile(r"(?<= at )0x[0-9a-fA-F]{6,16}\b|\b0x7f[0-9a-f]{10}\b"), "0x..."),
            (re.compile(r"[^\s\"'<>(]*[/\\]ipykernel_\d+[/\\]\d+\.py"), "<cell>"),
            (re.compile(r"[^\s\"'<>(]*[/\\]site-packages[/\\]"), "site-packages/")]


def _stable(text, root):
    if len(root) > 1:
        text = re.sub(re.escape(root) + r"(/|(?![\w.-]))", lambda match: "" if match[1] else ".", text)
    for pattern, replacement in UNSTABLE:
        text = pattern.sub(replacement, text)
    return text


def _printed(text, name):
    """A stream as a terminal shows it: of a line, what follows the last \\r; stderr without progress bars."""
    parts = re.split(r"(?<=[\r\n])", text)
    text = "".join(part for part in parts if name == "stdout" or not NOISE.search(part))
    text = re.sub(r"[^\n]*\r(?=[^\n])", "", text.replace("\r\n", "\n")).replace("\r", "")
    return text if name == "stdout" or text.strip() else ""


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
        for mime, content in output.get("data", {}).items():
            if mime.startswith("text/"):
                output.data[mime] = _stable(content, root)
        if "text/html" in output.get("data", {}):
            output.data["text/html"] = STYLER.sub(
                lambda match: f"T_{styled.setdefault(match[0], len(styled)):05d}", output.data["text/html"])
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = _smaller(output.data["image/png"])
        if output.output_type == "error":
            output.evalue = _stable(output.evalue, root)
            output.traceback = [_stable(line, root) for line in output.traceback]
        kept.append(output)
    return kept


def _smaller(picture):
    """A PNG (base64) with 128 colours, if that is smaller: to the eye the same, and a third of the bytes in git."""
    try:
        before = base64.b64decode(picture)
        image = Image.open(io.BytesIO(before))
    except (ValueError, UnidentifiedImageError):
        return picture  # whoever made it knows what it is
    with image:
        if image.mode == "P":
            return picture
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    after = io.BytesIO()
    flat.quantize(128, dither=Image.Dither.NONE).save(after, "PNG", optimize=True)
    return base64.b64encode(after.getvalue()).decode() if len(after.getvalue()) < len(before) else picture


def _notebook(cells):
    """A notebook of `cells`: their text, tags and attachments are kept, ids go by position, "cell-03"."""
    new, plain = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}, []
    for number, cell in enumerate(cells, 1):
        metadata = {"tags": list(tags(cell))} if tags(cell) else {}
        plain.append(new[cell.cell_type](cell.source, id=f"cell-{number:02d}", metadata=metadata))
        if cell.get("attachments"):
            plain[-1]["attachments"] = copy.deepcopy(cell.attachments)
    return v4.new_notebook(cells=plain, metadata=copy.deepcopy(METADATA), nbformat_minor=5)


def clean(notebook):
    """The form to commit, a new notebook: text, tags and attachments alone, ids by position."""
    return _notebook([cell for cell in notebook.cells if "injected-parameters" not in tags(cell)])


def normalise(notebook, root=""):
    """An executed notebook's stable form, a new notebook: the same bytes from every run on one machine.

    Metadata and ids as in `clean`; code cells counted 1, 2, ...; in text outputs, addresses, ids of pandas'
    Styler and paths of `root` (the repository), of installed packages and of the kernel's scratch files are
    rewritten; progress bars and widgets go; what a cell prints between two displays is one stream. PNG
    pictures get a palette; matplotlib's are stable, its SVG only with `svg.hashsalt` set and no date.
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


def check_clean(path):
    """What keeps the notebook at `path` from being committed: a list of lines, empty if nothing does."""
    notebook, faults = read(path), []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.get("outputs") or cell.get("execution_count"):
            faults.append(f"{path}: cell {number} holds outputs or a count")
        if set(cell.metadata) - {"tags"} or "injected-parameters" in tags(cell):
            extra = ", ".join(sorted(set(cell.metadata) - {"tags"}))
            faults.append(f"{path}: cell {number} holds {extra or 'the parameters of a run'}")
    if notebook.metadata != METADATA:
        faults.append(f"{path}: the metadata hold more than the kernel python3 and its language")
    if not faults and Path(path).read_bytes() != dumps(clean(notebook)).encode():
        faults.append(f"{path}: cell ids or layout are not those of kd.notebooks.clean")
    return faults


# Execution

_last_line = -math.inf  # when `report` last wrote a line of its own


def report(text):
    """One line on how far a long computation is: to the terminal or log of the run, never into the notebook."""
    global _last_line
    line = " ".join(str(text).split())
    if path := os.environ.get("KD_PROGRESS"):
        Path(path).write_text(line, encoding="utf-8")
    elif sys.stderr.isatty():
        print(f"\r\x1b[K{line[:100]}", end="", file=sys.stderr, flush=True)
    elif "ipykernel" not in sys.modules and time.monotonic() - _last_line >= 10:  # a log file: a line every 10 s at most
        _last_line = time.monotonic()
        print(line, file=sys.stderr, flush=True)


@contextmanager
def _relayed(path, stream, seconds=10.0):
    """Shows what `report` wrote to `path`: on a terminal one line rewritten, else every 10 s at most."""
    done, terminal = threading.Event(), stream.isatty()

    def watch():
        shown, last = "", -math.inf
        while not done.wait(0.5):
            line = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            if line and line != shown and (terminal or time.monotonic() - last >= seconds):
                stream.write(f"\r\x1b[K{line[:100]}" if terminal else f"{line}\n")
                stream.flush()
                shown, last = line, time.monotonic()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if terminal:
            stream.write("\r\x1b[K")
            stream.flush()


@contextmanager
def _kernel(environment):
    """Makes `python3` a kernel of this very Python, whatever is installed, without the user's profile."""
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        environment = {"PYTHONHASHSEED": "0", "PYTHONPATH": path, "IPYTHONDIR": f"{folder}/ipython",
                       "MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment,
                       "KD_PROGRESS": f"{folder}/progress"}
        kernel = Path(folder, "kernels/python3/kernel.json")
        kernel.parent.mkdir(parents=True)
        kernel.write_text(json.dumps({
            "display_name": "Python 3", "language": "python",
            "argv": [sys.executable, "-m", "ipykernel_launcher", "--log-level=CRITICAL",
                     "-f", "{connection_file}"],
            "env": {key: str(value).replace("$", "$$") for key, value in environment.items()}}))
        os.environ["JUPYTER_PATH"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["JUPYTER_PATH"]
            os.environ.update({"JUPYTER_PATH": before} if before is not None else {})


@contextmanager
def _stoppable():
    """SIGTERM stops as Ctrl-C does, so that the kernel ends too and nothing half written stays."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread choose
        return

    def stop(*_):
        raise KeyboardInterrupt
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def repository(path):
    """The nearest folder above `path` with a dvc.yaml, pyproject.toml or .git, else the current folder."""
    for folder in Path(path).resolve().parents:
        if any((folder / mark).exists() for mark in ("dvc.yaml", "pyproject.toml", ".git")):
            return folder
    return Path.cwd()


def run(notebook, out, parameters, environment=None, progress=None):
    """Executes `notebook` with `parameters` (a dict) in the repository's root; its stable form becomes `out`.

    `environment`: more variables for the kernel; `progress`: the stream that shows lines of `report`, default
    sys.stderr. Problem for parameters the notebook lacks, needs or takes otherwise, before anything runs.
    Problem if a cell fails: `out` is as it was, the notebook up to there lies beside it as `.failed.ipynb`.
    """
    name, out = Path(notebook).name, Path(out).resolve()
    if out == Path(notebook).resolve():
        raise Problem(f"{out.name}: the result would overwrite the notebook itself: choose another --out")
    source, root, failed = read(notebook), repository(notebook), out.with_suffix(".failed.ipynb")
    parameters, source = checked(source, parameters, name), clean(source)
    if parameters:
        lines = ["# Parameters of this run", *(f"{key} = {value!r}" for key, value in parameters.items())]
        injected = v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
        declares = ["parameters" in tags(cell) and cell.cell_type == "code" for cell in source.cells]
        source.cells.insert(declares.index(True) + 1, injected)

    # imported here: slow, and needed by nothing else
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    with (_stoppable(), _kernel(environment or {}) as folder,
          _relayed(folder / "progress", progress or sys.stderr)):
        executed = folder / "executed.ipynb"
        try:
            execute_notebook(source, str(executed), kernel_name="python3", cwd=str(root), progress_bar=False,
                             log_output=False, record_timing=False)
            write(out, dumps(normalise(read(executed), root)))
            failed.unlink(missing_ok=True)
            return
        except PapermillExecutionError as error:
            number, text = error.exec_count, error.source
            reason = error.evalue if error.ename == "Problem" else f"{error.ename}: {error.evalue}"
        except RuntimeError as error:  # of nbclient: the kernel died, or did not start
            cells = read(executed).cells if executed.exists() else []
            begun = [cell.source for cell in cells if cell.cell_type == "code" and cell.source.strip()
                     and cell.metadata.get("papermill", {}).get("start_time")]
            number, text = len(begun), "".join(begun[-1:])
            reason = f"the kernel died, out of memory? ({error})"
        if executed.exists():
            write(failed, dumps(normalise(read(executed), root)))
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    raise Problem(f"{' '.join(reason.split())} "
                  f"[{name}, code cell {number}: `{first}`; see {os.path.relpath(failed)}]")


# Code without prose, prose without code

def _code(notebook):
    """The code cells that a stage depends on: no injected one, none tagged `prose`, no empty one."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()
            and not {"prose", "injected-parameters"} & set(tags(cell))]


def script(notebook):
    """The code cells alone, as one text: what a stage depends on, so that editing prose re-runs nothing."""
    return "\n".join(f"# %%{' parameters' * ('parameters' in tags(cell))}\n{cell.source.rstrip()}\n"
                     for cell in _code(notebook))


def weave(notebook, executed, out, stage=""):
    """Writes the prose of `notebook` as it is now around the outputs of `executed`: the page to read.

    Problem if their code differs; `stage` is what it tells to reproduce. A code cell tagged `prose` keeps its
    output while its text stays the same.
    """
    path, notebook, executed = Path(notebook).resolve(), read(notebook), read(executed)
    if script(notebook) != script(executed):
        raise Problem(f"{path.name}'s code changed since it ran: run `{f'dvc repro {stage}'.strip()}`")
    cells = [v4.new_markdown_cell(f"*generated from {path.parent.name}/{path.name}; edit there*")]
    ran, asides = _code(executed), {cell.source: cell for cell in executed.cells if "prose" in tags(cell)}
    for cell in notebook.cells:
        needed = bool(_code(nbformat.from_dict({"cells": [cell]})))
        cells.append(ran.pop(0) if needed else asides.get(cell.source, cell))
        if needed and "parameters" in tags(cell):
            cells += [other for other in executed.cells if "injected-parameters" in tags(other)]
    write(out, dumps(normalise(nbformat.from_dict({"cells": cells}))))
