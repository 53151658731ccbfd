"""The parameters of a notebook: what its `parameters` cell declares, and what a caller gives.

The cell has lines `name: type = default  # unit; reason`. Whatever does not fit is named before anything runs.
"""

import ast
import sys
from functools import cache
from pathlib import Path

from kd.errors import Problem, check_kind, nearest

MOST_PARAMETERS = 12  # more than a reader can hold in the head
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list",
         tuple: "a list", dict: "a mapping", type(None): "nothing (null)"}
KINDS = {"None" if kind is type(None) else kind.__name__: kind for kind in WORDS}


def tags(cell):
    return cell.metadata.get("tags", [])


def expected(annotation):
    """An annotation (`ast` node) in words, "a whole number or nothing (null)"; Problem if it is not ours."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return f"{expected(annotation.left)} or {expected(annotation.right)}"
    kind, inner = _parts(annotation)
    return WORDS[kind] + (f" (each {expected(inner[-1])})" if inner else "")


def _parts(annotation):
    """`list[int]`, `tuple[int, ...]`, `dict[str, int]` -> (the type, annotations of what it holds)."""
    inner, text = [], ast.unparse(annotation)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        inner = [entry for entry in inner if ast.unparse(entry) != "..."]
        annotation = annotation.value
    kind = KINDS.get(ast.unparse(annotation))
    if kind is None or len(inner) not in {list: (0, 1), tuple: (0, 1), dict: (0, 2)}.get(kind, (0,)):
        raise Problem(f"`{text}` is no type of a parameter: use {', '.join(KINDS)}, list[int] or int | None")
    return kind, inner


def converted(annotation, value):
    """`value` as declared (1 as 1.0 or a list as a tuple, if that is the type); TypeError if it misfits."""
    if isinstance(annotation, ast.BinOp):
        try:
            return converted(annotation.left, value)
        except TypeError:
            return converted(annotation.right, value)
    kind, inner = _parts(annotation)
    if kind in (list, tuple) and type(value) in (list, tuple):
        return kind(converted(inner[0], entry) if inner else entry for entry in value)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not kind or kind is float:  # exact: a bool is not an int, 2.0 is not an int
        raise TypeError
    if kind is dict and inner:
        return {converted(inner[0], key): converted(inner[1], entry) for key, entry in value.items()}
    return value


def declared(notebook, name="the notebook"):
    """The parameters of `notebook`, by reading alone: {name: (annotation, default)}, two `ast` nodes.

    A required parameter's default is None. Problem unless exactly one code cell is tagged `parameters`
    and holds at most 12 lines `name: type = value`.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "parameters" in tags(cell)]
    if len(cells) != 1:
        raise Problem(f"{name}: {len(cells)} code cells are tagged `parameters`: tag exactly one")
    try:
        lines = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise Problem(f"{name}: parameters cell, line {error.lineno} is not Python: {error.msg}") from None
    found = {}
    for line in lines:
        if not isinstance(line, ast.AnnAssign) or ast.unparse(line.target) in found or not line.simple:
            raise Problem(f"{name}: the parameters cell may hold only lines `name: type = default`, "
                          f"each name once: not `{ast.unparse(line)}`")
        found[line.target.id], wanted = (line.annotation, line.value), expected(line.annotation)
        try:
            if line.value is not None:
                converted(line.annotation, ast.literal_eval(line.value))
        except (TypeError, ValueError):
            raise Problem(f"{name}: {line.target.id}: the default must be {wanted}, written out, "
                          f"not `{ast.unparse(line.value)}`") from None
    if len(found) > MOST_PARAMETERS:
        raise Problem(f"{name}: {len(found)} parameters: at most {MOST_PARAMETERS}, group some in a mapping")
    return found


def checked(notebook, parameters, name="the notebook"):
    """`parameters` in the declared order and types; Problem if one is unknown, missing or does not fit."""
    known = declared(notebook, name)
    for given in parameters:
        if given not in known:
            raise Problem(f"{name} has no parameter {given!r}{nearest(given, known)}: "
                          f"it has {', '.join(known) or 'none'}")
    values = {}
    for parameter, (annotation, default) in known.items():
        if parameter in parameters:
            try:
                values[parameter] = converted(annotation, parameters[parameter])
            except TypeError:
                got = repr(parameters[parameter])
                raise Problem(f"{parameter}: expected {expected(annotation)}, "
                              f"got {got if len(got) <= 60 else got[:57] + '...'}") from None
        elif default is None:
            raise Problem(f"{name} needs the parameter {parameter!r} ({expected(annotation)}): "
                          f"give -p {parameter}=...")
    return values


def parse_value(text):
    """YAML 1.2, as DVC reads params.yaml: `false` is False; unlike in 1.1, `no` is a text, `1e-3` a float."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise Problem(f"not YAML: {' '.join(str(getattr(error, 'problem', '') or error).split())}") from None


def load_parameters(file):
    """The mapping in a YAML file; with "FILE:SECTION" (dots lead further in) the mapping under that key."""
    path, section = (file, "") if Path(file).is_file() or ":" not in file else file.rpartition(":")[::2]
    try:
        found = parse_value(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: no such parameters file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{path} cannot be read ({error}): mend it, or write it anew with `python -m kd use PROFILE`") from None
    except Problem as problem:
        raise Problem(f"{path}: {problem}") from None
    for key in filter(None, section.split(".")):
        if not isinstance(found, dict) or key not in found:
            known = found if isinstance(found, dict) else []
            raise Problem(f"{path} has no section {section!r}{nearest(key, known)}")
        found = found[key]
    if found is not None and not isinstance(found, dict):
        raise Problem(f"{file}: expected a mapping of parameters, got {found!r}")
    return found or {}


@cache
def outline():
    """The default profile, after whose sections every study's are checked; read once."""
    return load_parameters(str(Path(__file__).resolve().parent.parent / "profiles" / "digits.yaml"))


def check_study(values, name):
    """The parameters of a study, from params.yaml, if its outline is right; else Problem, naming what is not.

    Sections are those of profiles/digits.yaml. What stands in a method's section its stage checks, in `recipe` kd.Recipe.
    """
    from kd.models import build
    from kd.study import ROOT, STAGES, table_names

    def known(given, names, where):
        for key in given:
            if key not in names:
                raise Problem(f"{name}: unknown {where}{key!r}{nearest(key, names)}; known: {', '.join(map(str, names))}")

    def same(given, names, where):
        if not isinstance(given, dict):
            raise Problem(f"{name}: {where.rstrip('.') or 'the file'} must hold a mapping of {', '.join(names)}")
        known(given, names, where)
        if lacking := [key for key in names if key not in given]:
            raise Problem(f"{name} lacks {where}{lacking[0]}; `python -m kd use PROFILE` writes it whole")

    same(values, list(outline()), "")
    for section in ("teacher", "supernet"):
        same(values[section], list(outline()[section]), f"{section}.")
    for key in ("seeds", "grid_seeds"):
        check_kind(f"{name}: {key}", values[key], 1)
        if values[key] < 1:
            raise Problem(f"{name}: {key}: {values[key]} must be 1 or more")
    for key, kind, words in (("profile", str, "a name"), ("recipe", dict, "a mapping"), ("data", dict, "a mapping"), ("pairs", dict, "a mapping"),
                             ("run", dict, "a mapping of stages"), ("teachers", list, "a list of networks"), ("supernets", list, "a list of networks")):
        if not isinstance(values[key], kind):
            raise Problem(f"{name}: {key}: {values[key]!r} must be {words}")
    if not isinstance(values["data"].get("name"), str):
        raise Problem(f"{name} lacks data.name; it is digits, cifar10, cifar100 or imagefolder")
    known(values["run"], list(STAGES), "run.")
    for stage, chosen in values["run"].items():
        if chosen != "all" and not isinstance(chosen, dict):
            raise Problem(f"{name}: run.{stage}: {chosen!r} must be all, or a mapping of tables, e.g. {{kd_main: all}}")
    searches = sorted(path.stem for path in (ROOT / "searches").glob("*.yaml"))
    known(values["pairs"], ["default", *STAGES, *table_names(), *searches], "pairs.")
    if "default" not in values["pairs"]:
        raise Problem(f"{name} lacks pairs.default, e.g. default: [cnn6x16, cnn3x4]")
    for key, pair in values["pairs"].items():
        pairs = pair if isinstance(pair, list) and pair and isinstance(pair[0], list) else [pair]
        if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(network, str) for network in p) for p in pairs):
            raise Problem(f"{name}: pairs.{key}: {pair!r} must be [teacher, student], or a list of such")
    for key in values["recipes"] or {}:
        if key not in STAGES:
            try:
                build(key, 2)
            except Problem:
                raise Problem(f"{name}: recipes.{key}: neither a stage ({', '.join(STAGES)}) nor a network's name") from None
    return values


def parameters_from(files, assignments):
    """From the command line: `files`, "FILE" or "FILE:SECTION", then "name=value" each; the later wins."""
    parameters = {}
    for file in files:
        parameters.update(load_parameters(file))
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise Problem(f"-p {assignment}: write -p name=value")
        try:
            parameters[name] = parse_value(value)
        except Problem as problem:
            raise Problem(f"-p {assignment}: {problem}; quote a text: -p {name}='\"...\"'") from None
    return parameters
