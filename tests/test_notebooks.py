"""Execution of notebooks: strict before, byte-stable after, honest when it fails."""

import ast
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.inspection import inspect_notebook
from PIL import Image

from kd import progress
from kd.errors import ConfigError
from kd.pipeline import notebook as notebooks
from kd.pipeline import parameters
from kd.report import figures
from kd.study.yaml_files import parse_value

ROOT = Path(__file__).parents[1]
PARAMETERS = '''# what a reader may change
temperature: float = 4.0  # 1; softens both networks
epochs: int = 3  # passes over the data
pretrained: bool = False
teacher: str = "cnn6x16"
seeds: list[int] = [0, 1]
widths: list[float] = [0.5, 1.0]
limit: "Optional[int]" = None
first: "Union[int, float, str]" = 0
options: dict = {}
'''


def write(path, *cells):
    """A notebook: texts are code cells, "#md text" markdown, (text, tag) tagged code."""
    made = []
    for cell in cells:
        source, *tags = cell if isinstance(cell, tuple) else (cell,)
        new = new_markdown_cell(source[4:]) if source.startswith("#md ") else new_code_cell(source)
        new.metadata = {"tags": tags} if tags else {}
        made.append(new)
    notebook = new_notebook(cells=made)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebooks.dumps(notebooks.clean(notebook)))
    return path


def write_code(notebook, out):
    notebooks.write(out, notebooks.script(notebooks.read(notebook)))


def with_parameters(text):
    return new_notebook(cells=[new_code_cell(text, metadata={"tags": ["parameters"]})])


def check(**values):
    return parameters.checked(with_parameters(PARAMETERS), values, "x.ipynb")


# Parameters

def test_a_value_takes_the_declared_type():
    values = check(widths=[1, 0.5], temperature=2, pretrained=True, limit=None, seeds=[3], options={"a": [1]})
    assert values == {"temperature": 2.0, "pretrained": True, "seeds": [3], "widths": [1.0, 0.5], "limit": None,
                      "options": {"a": [1]}}
    assert list(values) == ["temperature", "pretrained", "seeds", "widths", "limit", "options"]
    assert type(values["temperature"]) is float and type(values["widths"][0]) is float
    assert check(limit=7)["limit"] == 7
    for value in (1, 0.5, "search"):
        assert check(first=value)["first"] == value and type(check(first=value)["first"]) is type(value)


@pytest.mark.parametrize("name, value, message", [
    ("temperature", "four", "temperature: expected a number, got 'four'"),
    ("temperature", True, "temperature: expected a number, got True"),
    ("temperature", float("nan"), "temperature: expected a number, got nan"),
    ("temperature", -float("inf"), "temperature: expected a number, got -inf"),
    ("temperature", 10**400, "temperature: expected a number, got 1" + 56 * "0" + "..."),
    ("temperature", None, "temperature: expected a number, got None"),
    ("epochs", 2.0, "epochs: expected a whole number, got 2.0"),
    ("epochs", True, "epochs: expected a whole number, got True"),
    ("pretrained", "false", "pretrained: expected true or false, got 'false'"),
    ("pretrained", 0, "pretrained: expected true or false, got 0"),
    ("teacher", 20, "teacher: expected a text, got 20"),
    ("seeds", 3, "seeds: expected a list (each a whole number), got 3"),
    ("seeds", [0, "1"], "seeds: expected a list (each a whole number), got [0, '1']"),
    ("limit", "ten", "limit: expected a whole number or nothing (null), got 'ten'"),
    ("limit", True, "limit: expected a whole number or nothing (null), got True"),
    ("first", None, "first: expected a whole number or a number or a text, got None"),
    ("options", [1], "options: expected a mapping, got [1]"),
])
def test_a_value_of_another_type_is_named(name, value, message):
    with pytest.raises(ConfigError) as problem:
        check(**{name: value})
    assert str(problem.value) == message


def test_an_unknown_parameter_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="x.ipynb has no parameter 'temprature'.*'temperature'"):
        check(temprature=4.0)


def test_a_parameter_without_default_is_required():
    notebook = with_parameters("name: str\nseed: int = 0")
    assert parameters.checked(notebook, {"name": "a"}) == {"name": "a"}
    with pytest.raises(ConfigError, match="needs the parameter 'name'.*a text"):
        parameters.checked(notebook, {"seed": 1})


@pytest.mark.parametrize("text, message", [
    ("seed = 1", "only lines `name: type = default`.*seed = 1"),
    ("import os", "only lines"),
    ("seed: int = 0\nseed: int = 1", "each name once"),
    ("a.b: int = 0", "only lines"),
    ("rate: float = 1 / 3", "rate: the default must be a number.*1 / 3"),
    ("seed: int = 'x'", "seed: the default must be a whole number"),
    ("seed: Path = 'x'", "`Path` is no type"),
    ("seed: list[int, int] = []", r"`list\[int, int\]` is no type"),
    ("seed: int[str] = 0", "is no type"),
    ("seed: int | None = 0", r"`int \| None` is no type .* in quotes, \"Optional"),
    ("seed: Optional[int] = 0", "is no type"),
    ("seed: 'Optional[int, str]' = 0", "is no type"),
    ("seed: 'Optional[' = 0", "is no type"),
    ("seed: 'int' = 0", "is no type"),
    ("seed: int =", "parameters cell, line 1 is not Python"),
    ("\n".join(f"p{i}: int = 0" for i in range(13)), "13 parameters: at most 12"),
])
def test_a_wrong_parameters_cell_is_explained(text, message):
    with pytest.raises(ConfigError, match=message):
        parameters.declared(with_parameters(text))


def test_exactly_one_parameters_cell():
    for count in (0, 2):
        cells = [cell for _ in range(count) for cell in with_parameters("a: int = 0").cells]
        with pytest.raises(ConfigError, match=f"{count} code cells are tagged"):
            parameters.declared(new_notebook(cells=cells))
    assert len(parameters.declared(with_parameters("\n".join(f"p{i}: int = 0" for i in range(12))))) == 12


def test_reading_parameters_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    with pytest.raises(ConfigError):
        parameters.declared(with_parameters(f"a: str = open({str(mark)!r}, 'w').name"))
    assert not mark.exists()


def test_papermill_lists_every_parameter():
    """What `papermill --help-notebook` and Jupyter's tools show: its inspection is a regular expression that skips what it does not know."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(paths) >= 9
    for path in paths:
        ours, theirs = parameters.declared(notebooks.read(path), path.name), inspect_notebook(path)
        assert list(theirs) == list(ours)
        for name, (annotation, default) in ours.items():
            shown = theirs[name]
            assert shown["inferred_type_name"] == ast.unparse(annotation).strip("'"), name
            assert ast.literal_eval(shown["default"]) == ast.literal_eval(default), name
            assert shown["help"], f"{path.name}: {name} has no help"


simple = st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(-9, 9) | st.text(max_size=9)


@given(simple | st.lists(simple, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=3), simple))
def test_exactly_the_types_that_fit_are_taken(value):
    fits = {"bool": type(value) is bool, "int": type(value) is int, "float": type(value) in (int, float),
            "str": type(value) is str, "list": type(value) is list, "dict": type(value) is dict,
            "None": value is None}
    for kind, fit in fits.items():
        try:
            taken = parameters.checked(with_parameters(f"a: {kind}"), {"a": value})["a"]
        except ConfigError:
            assert not fit, kind
        else:
            assert fit and taken == value
            assert eval(repr(taken)) == value  # what the injected cell will hold


@pytest.mark.parametrize("text, value", [
    ("false", False), ("true", True), ("False", False), ("no", "no"), ("1e-3", 1e-3), ("1E5", 1e5), ("3", 3),
    ("3.0", 3.0), ("[1, 2e-3]", [1, 2e-3]), ("{a: true}", {"a": True}), ("null", None), ("", None),
    ("four", "four"), ("'1'", "1"), ("1:30", "1:30"), ("-0.5", -0.5)])
def test_values_of_the_command_line(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_parameters_of_the_command_line(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("kd:\n  temperature: 4\n  amp: false\n  deep: {rate: 1e-3}\nempty:\nseed: 1\n")
    assert parameters.parameters_from([f"{file}:kd"], ["temperature=2", "name=a=b"]) == {
        "temperature": 2, "amp": False, "deep": {"rate": 1e-3}, "name": "a=b"}
    assert parameters.parameters_from([f"{file}:kd.deep", f"{file}:empty"], []) == {"rate": 1e-3}
    assert parameters.parameters_from([str(file)], [])["seed"] == 1
    for files, assignments, message in [
            ([f"{file}:kb"], [], "no section 'kb'.*'kd'"),
            ([f"{file}:kd.deeb"], [], "no section 'kd.deeb'.*'deep'"),
            ([f"{file}:seed"], [], "expected a mapping of parameters, got 1"),
            ([f"{file}:seed.x"], [], "no section"), ([f"{file}x"], [], "no such parameters file"),
            ([], ["temperature"], "write -p name=value"),
            ([], ["a=[1"], "-p a=.*not YAML")]:
        with pytest.raises(ConfigError, match=message):
            parameters.parameters_from(files, assignments)
    file.write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="params.yaml: not YAML, line 2: .*duplicate"):
        parameters.parameters_from([str(file)], [])


# Execution

CELLS = [
    "#md # Title\n\nprose",
    (PARAMETERS, "parameters"),
    "import os, sys, warnings\nimport kd\nimport numpy as np\nimport pandas as pd\nimport matplotlib.pyplot as plt\n"
    "from kd import progress\nfrom tqdm import tqdm\nfrom tqdm.notebook import tqdm as widget",
    "print(temperature, epochs, teacher, widths, options)\nprint('error', file=sys.stderr)\n"
    "sys.stdout.flush()\nprint('more')",
    "for i in tqdm(range(3)):\n    progress.report(f'epoch {i}')\n    print(i)\n"
    "progress.say('began')\nprogress.count(3, 1)\nprogress.count(2, 0)\nimport time; time.sleep(1)\nfor i in widget(range(2)):\n    pass",
    "print(object(), os.getcwd() + '/x.csv', os.environ['NAME'], hash('a'))\nwarnings.warn('old')\nlambda: 0",
    "kd.figures.style()\nplt.plot(np.arange(3) ** temperature)\nplt.title(teacher)\nplt.show()",
    "progress.say('ends')\nframe = pd.DataFrame({'a': [1, 2]})\ndisplay(frame)\nframe.style.highlight_max()",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(notebook, two executed copies, what was shown); the second under another name, hash seed and user's settings."""
    folder = tmp_path_factory.mktemp("run")
    notebook, shown = write(folder / "notebooks" / "01_kd.ipynb", *CELLS), io.StringIO()
    outs = [folder / "first.ipynb", folder / "deep" / "second.ipynb"]
    values = {"teacher": "résnet", "options": {1: "a\n\"b\"", "c": (True, None)}, "temperature": 2}
    with pytest.MonkeyPatch.context() as patch:
        for out, seed in zip(outs, ("1", "2"), strict=True):
            (folder / "startup.py").write_text("import matplotlib; matplotlib.rcParams['lines.linewidth'] = 9")
            (folder / "rc").write_text("" if seed == "1" else "axes.facecolor: red\nnonsense: 1\n")
            patch.setenv("MATPLOTLIBRC", str(folder / "rc"))
            patch.setenv("PYTHONSTARTUP", str(folder / "startup.py") if seed == "2" else "")
            patch.setenv("PYTHONHASHSEED", seed)
            patch.setenv("MPLBACKEND", "agg")
            patch.setenv("JUPYTER_PATH", str(folder))
            notebooks.run(notebook, out, values, {"NAME": "a$b${HOME}"}, shown)
            assert os.environ["JUPYTER_PATH"] == str(folder)
    return notebook, outs, shown.getvalue()


def texts(notebook):
    """What the notebook's code cells show as text, in one string for each."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found.append("".join(output.get("text", "") + output.get("data", {}).get("text/plain", "")
                                 for output in cell.outputs))
    return found


def test_two_runs_give_the_same_bytes(executed):
    _, (first, second), _ = executed
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in first.parent.iterdir()} - {"rc", "startup.py"} == {"deep", "first.ipynb", "notebooks"}


def test_the_executed_notebook_holds_results_and_nothing_else(executed):
    notebook = nbformat.read(executed[1][0], as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == notebooks.METADATA
    assert [cell.id for cell in notebook.cells] == [f"cell-{i:02d}" for i in range(1, 10)]
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert [cell.execution_count for cell in notebook.cells[1:]] == list(range(1, 9))
    injected = notebook.cells[2]
    assert injected.metadata.tags == ["injected-parameters"]
    assert injected.source == ("# Parameters of this run\ntemperature = 2.0\nteacher = 'résnet'\n"
                               "options = {1: 'a\\n\"b\"', 'c': (True, None)}")
    shown = texts(notebook)
    assert shown[3] == "2.0 3 résnet [0.5, 1.0] {1: 'a\\n\"b\"', 'c': (True, None)}\nmore\nerror\n"
    assert [output.name for output in notebook.cells[4].outputs] == ["stdout", "stderr"]
    assert shown[4] == "0\n1\n2\n"  # neither bar, widget nor report
    assert shown[5].startswith("<object object at 0x...> x.csv a$b${HOME} ")
    assert "<cell>:2: UserWarning: old" in shown[5] and shown[5].endswith("<function __main__.<lambda>()>")
    figure = [output for output in notebook.cells[7].outputs if "image/png" in output.data]
    assert len(figure) == 1 and len(figure[0].data["image/png"]) > 1000
    assert 'id="T_00000_row0_col0"' in notebook.cells[8].outputs[1].data["text/html"]
    assert "ipykernel" not in executed[1][0].read_text() and str(Path.cwd()) not in executed[1][0].read_text()


def test_the_common_look_begins_from_matplotlibs_own_defaults():
    import matplotlib.pyplot as plt

    with plt.rc_context({"lines.linewidth": 9}):
        figures.style()
        assert plt.rcParams["lines.linewidth"] == plt.rcParamsDefault["lines.linewidth"]


def test_a_palette_makes_a_picture_smaller_or_leaves_it():
    def png(image):
        image.save(file := io.BytesIO(), format="PNG")
        return file.getvalue()

    def colours(content):
        return [colour for _, colour in Image.open(io.BytesIO(content)).convert("RGB").getcolors()]

    grey = Image.linear_gradient("L").convert("RGBA")
    few = figures.with_palette(png(grey), 8)
    assert len(few) < len(png(grey)) and len(colours(few)) == 8
    assert figures.with_palette(few, 8) == few and figures.with_palette(b"no picture", 8) == b"no picture"
    # a strong colour of a few pixels and a grey of many both stay what they are
    picture = Image.effect_noise((256, 256), 120).convert("RGB")
    picture.paste((0, 114, 178), (0, 0, 4, 4))
    picture.paste((237, 237, 237), (64, 64, 192, 192))
    found = Image.open(io.BytesIO(figures.with_palette(png(picture), 64))).convert("RGB")
    for place, colour in (((2, 2), (0, 114, 178)), ((100, 100), (237, 237, 237))):
        assert np.abs(np.subtract(found.getpixel(place), colour)).max() < 8
    grey.putalpha(0)
    assert colours(figures.with_palette(png(grey), 8)) == [(255, 255, 255)]


def test_what_was_reported_said_and_counted_reaches_the_stream(executed):
    def of_one_run(lines):
        moving = [line for line in lines if line.startswith("epoch")]
        return len(moving) <= 1, [line for line in lines if line not in moving]
    lines = executed[2].splitlines()
    end = lines.index("kd: trained 5 runs, 1 known") + 1
    for part in (lines[:end], lines[end:]):
        assert of_one_run(part) == (True, ["began", "ends", "kd: trained 5 runs, 1 known"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_until(reached):
    limit = time.monotonic() + 20
    while not reached() and time.monotonic() < limit:
        time.sleep(0.02)


def test_a_terminal_shows_one_line_rewritten_and_lines_that_stay(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("KD_PROGRESS", str(tmp_path / "progress"))
    with progress.relayed(tmp_path / "progress", terminal, "rco"):
        progress.report("epoch 1\nof 2")
        wait_until(lambda: "epoch 1" in terminal.getvalue())
        progress.say("one\nline")
        progress.report("x" * 200)
        wait_until(lambda: "xxx" in terminal.getvalue())
        progress.say("over at once")
    clear, cut = "\r\x1b[K", "x" * 79
    assert terminal.getvalue() == f"{clear}epoch 1 of 2{clear}one line\n{clear}{cut}{clear}over at once\n"


def test_a_log_shows_every_said_line_in_order_and_few_others(tmp_path, monkeypatch):
    log = io.StringIO()
    monkeypatch.setenv("KD_PROGRESS", str(tmp_path / "progress"))
    with progress.relayed(tmp_path / "progress", log, "rco"):
        for number in range(20):
            progress.report(f"epoch {number}")
            progress.say(f"line {number}")
            time.sleep(0.08)
        progress.count(0, 2)
    lines = log.getvalue().splitlines()
    assert sum(line.startswith("epoch") for line in lines) == 1
    said = [line for line in lines if not line.startswith("epoch")]
    assert said == [*(f"line {number}" for number in range(20)), "rco: trained 0 runs, 2 known"]


def test_nothing_is_shown_of_a_notebook_without_progress(tmp_path):
    log = io.StringIO()
    with progress.relayed(tmp_path / "progress", log, "rco"):
        pass
    assert log.getvalue() == ""


def test_outside_of_a_kernel_progress_goes_to_stderr():
    script = "from kd.progress import *; report('a'); report('b'); say('c'); count(1, 2); report('')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={name: value for name, value in os.environ.items() if name != "KD_PROGRESS"})
    assert (done.stdout, done.stderr) == ("", "a\nc\n")


def test_a_run_refused_touches_nothing(tmp_path):
    notebook = write(tmp_path / "a.ipynb", ("seed: int = 0", "parameters"), "1 / 0")
    out = tmp_path / "out.ipynb"
    out.write_text("before")
    for values, message in [({"sead": 1}, "a.ipynb has no parameter 'sead'.*'seed'"),
                            ({"seed": "x"}, "seed: expected a whole number")]:
        with pytest.raises(ConfigError, match=message):
            notebooks.run(notebook, out, values)
    with pytest.raises(ConfigError, match="overwrite the notebook itself"):
        notebooks.run(notebook, notebook, {})
    with pytest.raises(ConfigError, match="no such notebook"):
        notebooks.run(tmp_path / "b.ipynb", out, {})
    assert out.read_text() == "before" and len(list(tmp_path.iterdir())) == 2


def test_a_failing_cell_is_named_and_kept(tmp_path):
    notebook = write(tmp_path / "{a}.ipynb", "#md prose", ("seed: int = 0", "parameters"), "print('fine')",
                     "\n# why\nraise ValueError('too\\nbad')", "print('never')")
    out = tmp_path / "out.ipynb"
    out.write_text("before")
    with pytest.raises(ConfigError) as problem:
        notebooks.run(notebook, out, {"seed": 1})
    message = str(problem.value)
    assert message.startswith("ValueError: too bad [{a}.ipynb, code cell 4: `# why`; see ")
    assert "\n" not in message and message.endswith("out.failed.ipynb]") and out.read_text() == "before"
    failed = nbformat.read(tmp_path / "out.failed.ipynb", as_version=4)
    assert "fine\n" in texts(failed) and "never\n" not in texts(failed)
    assert any(output.output_type == "error" for cell in failed.cells for output in cell.get("outputs", []))
    assert len(list(tmp_path.iterdir())) == 3


def test_without_a_home_matplotlib_keeps_its_settings_where_they_are_cleared_away(monkeypatch):
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with notebooks._kernel({}) as folder:
        assert os.environ["MPLCONFIGDIR"] == f"{folder}/matplotlib"
    assert "MPLCONFIGDIR" not in os.environ


def test_a_cell_that_cannot_say_why_it_failed_points_to_the_memory(tmp_path, monkeypatch):
    from papermill.exceptions import PapermillExecutionError

    def execute(*_, **__):
        raise PapermillExecutionError(1, 1, "import os", "CellExecutionError", "", [])

    monkeypatch.setattr("papermill.execute_notebook", execute)
    source = write(tmp_path / "a.ipynb", ("n: int = 1", "parameters"), "import os")
    with pytest.raises(ConfigError, match=r"could not say why, as when memory is short; allow more .*code cell 1: `import os`"):
        notebooks.run(source, tmp_path / "out.ipynb", {})


def test_a_problem_or_a_dead_kernel_is_told_as_such(tmp_path):
    notebook = write(tmp_path / "a.ipynb", ("fatal: bool = False", "parameters"),
                     "import os\nfrom kd.errors import ConfigError\nif fatal:\n    os._exit(3)\n"
                     "raise ConfigError('no data: fetch it')")
    earlier = notebooks.read(notebook)  # as if executed before: its injected cell must not count
    earlier.cells.insert(1, new_code_cell("fatal = 7", metadata={"tags": ["injected-parameters"]}))
    notebook.write_text(notebooks.dumps(earlier))
    with pytest.raises(ConfigError, match=r"^no data: fetch it \[a.ipynb, code cell 2: `import os`; see "):
        notebooks.run(notebook, tmp_path / "out.ipynb", {})
    with pytest.raises(ConfigError, match=r"^the kernel died.*\[a.ipynb, code cell 3: `import os`; see "):
        notebooks.run(notebook, tmp_path / "out.ipynb", {"fatal": True})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_kernel_and_leaves_nothing(tmp_path, number):
    mark, out = tmp_path / "pid", tmp_path / "out.ipynb"
    notebook = write(tmp_path / "a.ipynb", ("seed: int = 0", "parameters"),
                     f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    script = f"from kd.pipeline import notebook; notebook.run({str(notebook)!r}, {str(out)!r}, {{}})"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not (mark.exists() and mark.read_text()) and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ipynb", "pid"]


# The stable form

def test_what_differs_between_runs_is_rewritten():
    def notebook(number, table, shift):
        bar = f"  {number}%|###   | {number}/100 [00:0{shift}<00:02, 3it/s]\r"
        style = f'<style>#T_{table}_row0 {{}}</style><td id="T_{table}_row0">'
        thing = f"<a.B object at 0x7f{number}deadbee{shift}>"
        outputs = [
            new_output("stream", name="stderr", text=bar),
            new_output("stream", name="stdout", text="one "),
            new_output("stream", name="stderr", text=f"12it [00:0{shift}, 4.00it/s]\nreal warning\n"),
            new_output("stream", name="stdout", text="\rtwo\n"),
            new_output("display_data", {"text/plain": thing, "image/png": "0x7f=="}),
            new_output("display_data", {"text/html": style}),
            new_output("display_data", {notebooks.WIDGET: {"model_id": str(number)}, "text/plain": "bar"}),
            new_output("execute_result", {"text/plain": "0x1234 is a number"}, execution_count=number)]
        if number > 11:  # flushed in another order
            outputs[0], outputs[1] = outputs[1], outputs[0]
        cell = new_code_cell("x", outputs=outputs, execution_count=number, metadata={"execution": {}})
        return new_notebook(cells=[cell], metadata={"papermill": {"duration": number}})
    one, two = (notebooks.normalise(notebook(*values)) for values in ((11, "a1b2c", 1), (99, "00fff", 2)))
    assert notebooks.dumps(one) == notebooks.dumps(two)
    assert notebooks.dumps(notebooks.normalise(one)) == notebooks.dumps(one)
    stdout, stderr, thing, table, result = one.cells[0].outputs
    assert (stdout.text, stderr.text) == ("two\n", "real warning\n")
    assert thing.data == {"text/plain": "<a.B object at 0x...>", "image/png": "0x7f=="}
    assert table.data["text/html"] == '<style>#T_00000_row0 {}</style><td id="T_00000_row0">'
    assert result.data["text/plain"] == "0x1234 is a number" and result.execution_count == 1


def test_paths_of_the_repository_are_relative():
    text = "/home/me/kd/runs/a /home/me/kd /home/me/kd2 /venv/lib/python3.11/site-packages/torch/x.py"
    shown = new_output("stream", name="stdout", text=text)
    notebook = new_notebook(cells=[new_code_cell("x", outputs=[shown])])
    (output,) = notebooks.normalise(notebook, "/home/me/kd").cells[0].outputs
    assert output.text == "runs/a . /home/me/kd2 site-packages/torch/x.py"


# Code and prose

def test_prose_does_not_change_the_code(tmp_path):
    path, out = tmp_path / "a.ipynb", tmp_path / "build" / "code.py"
    head = ("seed: int = 0", "parameters")
    write_code(write(path, "#md first", head, "a = 1", ("print('aside')", "prose")), out)
    assert out.read_text() == "# %% parameters\nseed: int = 0\n\n# %%\na = 1\n"
    stamp = out.stat().st_mtime_ns, out.stat().st_ino
    write_code(write(path, "#md new", head, "a = 1", "#md third", ("print('other')", "prose"), ""), out)
    assert (out.stat().st_mtime_ns, out.stat().st_ino) == stamp
    before = out.read_text()
    for cells in [[head, "a = 2"], [head[0], "a = 1"], [head, "a = 1", "b = 1"], ["a = 1", head]]:
        write_code(write(path, *cells), out)
        assert out.read_text() != before


def test_new_prose_around_old_outputs(executed, tmp_path):
    _notebook, (ran, _), _ = executed
    page = tmp_path / "page.ipynb"
    edited = write(tmp_path / "notebooks" / "01_kd.ipynb",
                   "#md # New title", *CELLS[1:5], "#md between", *CELLS[5:], "#md end")
    notebooks.merge_prose(edited, ran, page)
    woven, old = nbformat.read(page, as_version=4), nbformat.read(ran, as_version=4)
    nbformat.validate(woven)
    assert [c.source for c in woven.cells if c.cell_type == "markdown"] == [
        "*generated from notebooks/01_kd.ipynb; edit there*", "# New title", "between", "end"]
    for mine, theirs in zip((c for c in woven.cells if c.cell_type == "code"), old.cells[1:], strict=True):
        assert {**mine, "id": ""} == {**theirs, "id": ""}
    assert json.loads(page.read_text())["cells"][3]["metadata"]["tags"] == ["injected-parameters"]
    first = page.read_bytes()
    notebooks.merge_prose(edited, ran, page)
    assert page.read_bytes() == first
    changed = write(tmp_path / "notebooks" / "01_kd.ipynb", *CELLS[:-1], "frame")
    with pytest.raises(ConfigError, match="01_kd.ipynb's code changed since it ran: run `dvc repro kd`"):
        notebooks.merge_prose(changed, ran, page, "kd")
    assert page.read_bytes() == first


def test_an_aside_keeps_its_output_while_it_is_the_same(tmp_path):
    def notebook(aside, ran):
        outputs = [new_output("stream", name="stdout", text="seen")] if ran else []
        cells = [new_code_cell("a = 1"), new_code_cell(aside, metadata={"tags": ["prose"]}, outputs=outputs)]
        path = tmp_path / ("ran.ipynb" if ran else "a.ipynb")
        nbformat.write(new_notebook(cells=cells), path)
        return path
    for aside, shown in [("show()", ["", "seen"]), ("show(2)", ["", ""])]:
        notebooks.merge_prose(notebook(aside, False), notebook("show()", True), tmp_path / "page.ipynb")
        assert texts(nbformat.read(tmp_path / "page.ipynb", as_version=4)) == shown


def test_the_committed_form(executed, tmp_path):
    notebook, (ran, _), _ = executed
    assert notebooks.check_clean(notebook) == []
    assert notebooks.dumps(notebooks.clean(notebooks.read(ran))) == notebook.read_text()
    for harm in (lambda n: n.metadata.kernelspec.update(name="mine"), lambda n: n.cells[1].metadata.update(collapsed=True),
                 lambda n: n.cells[1].update(id="4f3a"), lambda n: n.cells[1].update(execution_count=1)):
        harmed = notebooks.read(notebook)
        harm(harmed)
        (tmp_path / "a.ipynb").write_text(notebooks.dumps(harmed))
        (line,) = notebooks.check_clean(tmp_path / "a.ipynb")
        assert "python -m kd clean" in line


def test_our_notebooks_are_committed_clean():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert notebooks.check_clean(path) == []


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        notebooks.write(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_file_that_is_no_notebook(tmp_path):
    for text in ("", "{}", "[1]", "not json", '{"cells": 1}'):
        (tmp_path / "a.ipynb").write_text(text)
        with pytest.raises(ConfigError, match="is not a notebook"):
            write_code(tmp_path / "a.ipynb", tmp_path / "a.py")
    assert not (tmp_path / "a.py").exists()
