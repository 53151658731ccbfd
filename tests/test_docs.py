"""What README.md, docs/ and the notebooks say can be done: their links lead somewhere, their code runs, their commands exist."""

import ast
import importlib
import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

import kd
from kd.__main__ import parser
from kd.pipeline.notebook import read
from kd.pipeline.parameters import declared
from kd.report.claims import load_claims
from kd.report.claims_page import anchor
from kd.report.show import row_called
from kd.study import profiles
from kd.study.paths import ROOT
from kd.study.tables import load_table, table_names

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPORTS = ROOT / "reports" / "claims.md"

if not PAGES[0].exists() or not PAGES[1:]:
    pytest.skip("no README.md or no docs/ here", allow_module_level=True)


@cache
def text_of(path):
    """A page's Markdown; of a notebook that of its cells."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def without_code(text):
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


# ---- links


def anchors(path):
    """Where a link may lead within a Markdown page: headings, as GitHub names them, and ids."""
    text = path.read_text()
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {anchor(re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading)) for heading in headings} | set(re.findall(r'id="(.+?)"', text))


def is_page(path):
    """Whether the pipeline writes the file: an executed notebook of a profile, a teacher's under the name of its network."""
    match = re.fullmatch(r"reports/([\w-]+)/notebooks/(00_teacher(?=-)|\w+)(-\w+)?\.ipynb", os.path.relpath(path, ROOT))
    return bool(match) and match[1] in profiles.names() and (ROOT / "notebooks" / f"{match[2]}.ipynb").exists()


def broken(text, folder):
    """Links of Markdown in `folder` that lead to no file, no page of the pipeline, or no place on their page."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        place, _, fragment = target.partition("#")
        path = Path(os.path.normpath(folder / place))
        if ":" in target or is_page(path):
            continue
        if not path.exists() or (fragment and path.suffix == ".md" and fragment not in anchors(path)):
            found.append(target)
    return found


@pytest.mark.parametrize("path", [*PAGES, REPORTS, *NOTEBOOKS], ids=name_of)
def test_links_lead_somewhere(path):
    if not path.exists():
        pytest.skip(f"no {name_of(path)} here")
    assert broken(text_of(path), path.parent) == []


def test_broken_links_are_found():
    good = "[a](docs/gpu.md) [b](https://example.org) [c](docs/gpu.md#fast-at-the-papers-own-protocol) `[d](code)`"
    assert broken(good, ROOT) == []
    wrong = ["docs/gpus.md", "docs/gpu.md#fast", "reports/digits/notebooks/09_none.ipynb", "reports/digit/notebooks/01_kd.ipynb"]
    assert broken(" ".join(f"[x]({target})" for target in wrong), ROOT) == wrong
    assert is_page(ROOT / "reports/smoke/notebooks/00_teacher-cnn6x8.ipynb") and is_page(ROOT / "reports/smoke/notebooks/01_kd.ipynb")


# ---- commands


def commands(text):
    """Every command of shell blocks and of code within sentences, as (words, whether it stands in a sentence)."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [(line, False) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    begins = re.compile(rf"(KD_\w+=\S+ )*(python -m kd|{'|'.join(CHECKS)})\s")
    lines += [(" ".join(code.split()), True) for code in inline if begins.match(f"{code} ")]
    found = []
    for line, in_sentence in lines:
        tokens = shlex.shlex(line, posix=True, punctuation_chars="&|;")  # comments are left out
        tokens.whitespace_split = True
        for separates, words in itertools.groupby(tokens, lambda token: set(token) <= set("&|;")):
            command = list(itertools.dropwhile(re.compile(r"[A-Z_]+=\S+").fullmatch, words))
            if command and not separates:
                found.append((command, in_sentence))
    return found


@cache
def stages():
    """Stages of dvc.yaml; those of several are known with and without "@ITEM"."""
    return set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


@cache
def dvc_parser():
    return pytest.importorskip("dvc.cli.parser", reason="DVC is not installed").get_main_parser()


def is_placeholder(word):
    return word.isupper()


def known(word, names, what):
    assert is_placeholder(word) or word in names, f"{what} {word!r} does not exist"


def parsed(parse, words):
    try:
        return parse(words)
    except SystemExit as end:
        assert end.code == 0, f"is refused: {' '.join(words)}"  # 0: --help
    except Exception as error:  # DVC's own
        raise AssertionError(f"is refused: {' '.join(words)} ({error})") from None


def check_kd(words, in_sentence):
    if is_placeholder(words[0]):
        return
    if len(words) == 1 and in_sentence:  # only the command's name
        words = [*words, "--help"]
    if (options := parsed(parser().parse_args, words)) is None:
        return
    if options.command == "use":
        known(options.profile, profiles.names(), "the profile")
    if options.command == "fetch":
        known(options.name, [out["meta"]["name"] for out in yaml.safe_load((ROOT / "data.dvc").read_text())["outs"]], "the archive")
    if options.command == "stage":
        known(options.name, stages(), "the stage")
    if options.command == "repro":
        check_targets(options.targets)
    if options.command == "search":
        known(options.method, [path.stem for path in (ROOT / "searches").glob("*.yaml")], "the search")
    if options.command == "show" and options.row is None:
        known(options.table, load_claims(), "the claim")
    elif options.command == "show":
        known(options.table, table_names(), "the table")
        if not is_placeholder(options.table):
            rows = {row["row"]: row for row in load_table(options.table)["rows"]}
            assert row_called(options.row, rows) is not None, f"{options.table} has no row {options.row!r}"


def check_targets(targets):
    for target in targets:
        known(target.partition("@")[0], stages(), "the stage")


def check_dvc(words, in_sentence):
    if (options := parsed(dvc_parser().parse_args, words)) is None:
        return
    check_targets(getattr(options, "targets", None) or [] if words[0] in ("repro", "exp") else [])
    for override in getattr(options, "set_param", None) or []:
        place = yaml.safe_load((ROOT / "profiles" / "base.yaml").read_text())
        for key in override.partition("=")[0].split("."):
            assert isinstance(place, dict) and key in place, f"params.yaml has no {override.partition('=')[0]}"
            place = place[key]


def check_make(words, in_sentence):
    makefile = (ROOT / "Makefile").read_text()
    targets, variables = re.findall(r"^([a-z]+):", makefile, re.MULTILINE), re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)
    for word in words:
        if "=" in word:
            known(word.partition("=")[0].lower(), [name.lower() for name in variables], "make's variable")
        else:
            known(word, targets, "make's target")


def check_papermill(words, in_sentence):
    if not (notebooks := [word for word in words if word.endswith(".ipynb")]):
        return
    names = declared(read(ROOT / notebooks[0]))
    for flag, name in zip(words, words[1:], strict=False):
        if flag in ("-p", "-r"):
            known(name, names, f"{notebooks[0]}'s parameter")


def check_files(words, in_sentence):
    for word in words:
        if re.fullmatch(r"[\w/]+\.(py|ipynb|yml)", word):
            assert (ROOT / word).exists(), f"{word} does not exist"


def check_sed(words, in_sentence):
    pattern, file = next(word for word in words if word.startswith("s/")).split("/")[1], ROOT / words[-1]
    assert not file.exists() or pattern in file.read_text(), f"{words[-1]} has no {pattern!r}"


CHECKS = {"dvc": check_dvc, "make": check_make, "papermill": check_papermill, "sed": check_sed}
CHECKS |= dict.fromkeys(("jupyter", "pytest", "conda"), check_files)


def check(text):
    """The number of commands that were checked; AssertionError for the first that does not exist."""
    number = 0
    for words, in_sentence in commands(text):
        if words[:3] == ["python", "-m", "kd"]:
            if words[3:]:
                check_kd(words[3:], in_sentence)
        elif words[0] in CHECKS:
            if words[1:]:
                CHECKS[words[0]](words[1:], in_sentence)
        else:
            continue
        number += 1
    return number


@cache
def variables():
    """The KD_ variables that some module reads."""
    return set(re.findall(r'"(KD_[A-Z_]+)"', "\n".join(path.read_text() for path in (ROOT / "kd").rglob("*.py"))))


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_commands_exist(path):
    number = check(text_of(path))
    assert number or path.parent.name == "notebooks" or path.stem == "design"
    assert set(re.findall(r"\bKD_[A-Z_]+\b", text_of(path))) - variables() == set()


def test_a_logger_that_is_named_exists():
    named = {name for path in PAGES for name in re.findall(r"KD_LOGGER=(\S+?:\w+)", text_of(path))}
    assert named
    for module, _, function in (name.partition(":") for name in named):
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    "line",
    [
        "python -m kd shwo kd_main KD", "python -m kd show kd_mein KD", "python -m kd show kd_main nothing",
        'python -m kd show "RCO under KD"', "python -m kd use cifar1000", "python -m kd fetch cifar1000",
        "python -m kd stage roc", "python -m kd search rcoo", "python -m kd plan --fast",
        "dvc repro roc", "dvc rerpo", "dvc exp run -S rco.dleta=0.4 rco", "dvc exp run -S rco.delta=0.4 roc", "dvc exp show --changed",
        "make sight", "make repro PYTON=3", "papermill notebooks/04_rco.ipynb out.ipynb -p dleta 0.4", "pytest tests/test_none.py",
        "sed -i 's/dleta: 0.8/delta: 0.4/' params.yaml",
    ],
)  # fmt: skip
def test_commands_that_do_not_exist_are_found(line):
    with pytest.raises(AssertionError):
        check(f"```sh\n{line}    # a comment\n```")
    with pytest.raises(AssertionError):
        check(f"Then `{line}` does it.")


# ---- Python


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", text_of(path), re.DOTALL)


def calls_of_kd(code):
    """Every call of a name of kd in code; none in what is no Python."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and re.fullmatch(r"kd(\.\w+)+", ast.unparse(node.func)):
            yield node


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_names_and_keywords_of_kd_exist(path):
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text_of(path), flags=re.DOTALL))]
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"] if path.suffix == ".ipynb" else []
    for call in (call for code in [*python_blocks(path), *inline, *cells] for call in calls_of_kd(code)):
        function = kd
        for name in ast.unparse(call.func).split(".")[1:]:
            assert hasattr(function, name), ast.unparse(call)
            function = getattr(function, name)
        keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(function).bind_partial(**keywords)


# what is expensive on a page is small here: six images a class, six epochs, networks of one block a stage
PRELUDE = """
import copy, torch, torchvision, safetensors.torch
import kd
from torchvision.models.resnet import BasicBlock, ResNet

load_data, recipe = kd.load_data, kd.Recipe
small = {"size": 16, "validation": 3}
kd.load_data = lambda *arguments, **options: load_data(*arguments, **{key: small.get(key, value) for key, value in options.items()})
kd.Recipe = lambda epochs, **options: recipe(epochs=min(epochs, 6), batch_size=16, **options)
torchvision.models.resnet50 = lambda num_classes: ResNet(BasicBlock, [1, 1, 1, 1], num_classes)
torch.set_num_threads(1)
"""


def run(code, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_library_page_runs(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        for number in range(3):
            (folder := tmp_path / "photos" / split / f"class{number}").mkdir(parents=True)
            for shade in range(6):
                image.new("RGB", (20, 20), (80 * number, 40 * shade, 20 * shade)).save(folder / f"{shade}.png")
    subprocess.run(["tar", "cf", "photos.tar", "-C", "photos", "train", "test"], cwd=tmp_path, check=True)
    blocks = [block for block in python_blocks(ROOT / "docs" / "library.md") if "timm." not in block and "transformers." not in block]
    assert len(blocks) >= 3 and "kd.save(" in blocks[-1]
    # the last block says how each kind of network is read again: one of kd.build, and any other
    last = 'student = kd.build("cnn3x4", classes=3, channels=3)\nnetwork = copy.deepcopy(student)\n' + blocks[-1]
    said = run("\n".join([PRELUDE, *blocks[:-1], last, "print(type(student).__name__)"]), tmp_path)
    assert 0 <= float(said.splitlines()[0]) <= 100 and (tmp_path / "student.safetensors").exists()


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_networks_of_other_libraries(library, tmp_path):
    pytest.importorskip(library, reason=f"{library} is not installed")
    lines = [line for block in python_blocks(ROOT / "docs" / "library.md") for line in block.splitlines() if f"{library}." in line]
    code = "\n".join(lines)
    assert code
    head = f"import kd, torch, {library}\n"
    if library == "transformers":
        head += "configuration = transformers.ViTConfig(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=6, "
        head += "num_attention_heads=2, intermediate_size=32, num_labels=10)\n"
    size = 64 if library == "timm" else 32
    run(f"{head}{code}\nprint(kd.feature_shapes(teacher, (3, {size}, {size})))", tmp_path)
