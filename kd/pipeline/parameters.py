"""The parameters of a notebook: what its `parameters` cell declares, and what a caller gives.

The cell holds lines `name: type = default  # unit; reason`. A type is bool, int, float, str, list, dict, list[int] and
its like or, in quotes, "Optional[int]" or "Union[int, str]": so papermill, whose regular expression knows no
`int | None`, lists them all (`papermill --help-notebook`), and Python, which evaluates annotations, needs no import.
A line may hold no other `=`, not even in its comment: papermill would leave the parameter out of its list.
"""

import ast
import sys

from kd.errors import ConfigError, nearest
from kd.study.parameters import load_parameters
from kd.study.yaml_files import parse_value

MOST_PARAMETERS = 12  # more than a reader can hold in the head
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    type(None): "nothing (null)",
}
KINDS = {kind.__name__: kind for kind in WORDS if kind is not type(None)} | {"None": type(None)}


def tags(cell):
    """The tags of a notebook's cell, a list of texts."""
    return cell.metadata.get("tags", [])


def declared(notebook, name="the notebook"):
    """The parameters of `notebook`, found without running it: {name: (annotation, default)}, two `ast` nodes each.

    A required parameter's default is None. ConfigError unless exactly one code cell is tagged `parameters` and holds
    nothing but lines `name: type = default`, at most 12.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "parameters" in tags(cell)]
    if len(cells) != 1:
        raise ConfigError(f"{name}: {len(cells)} code cells are tagged `parameters`: tag exactly one")
    try:
        lines = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ConfigError(f"{name}: parameters cell, line {error.lineno} is not Python: {error.msg}") from None
    found = {}
    for line in lines:
        if not isinstance(line, ast.AnnAssign) or ast.unparse(line.target) in found or not line.simple:
            raise ConfigError(
                f"{name}: the parameters cell may hold only lines `name: type = default`, "
                f"each name once: not `{ast.unparse(line)}`"
            )
        found[line.target.id], wanted = (line.annotation, line.value), expected(line.annotation)
        try:
            if line.value is not None:
                converted(line.annotation, ast.literal_eval(line.value))
        except (TypeError, ValueError):
            raise ConfigError(
                f"{name}: {line.target.id}: the default must be {wanted}, written out, not `{ast.unparse(line.value)}`"
            ) from None
    if len(found) > MOST_PARAMETERS:
        raise ConfigError(f"{name}: {len(found)} parameters: at most {MOST_PARAMETERS}, group some in a mapping")
    return found


def checked(notebook, parameters, name="the notebook"):
    """`parameters` in the declared order and types; ConfigError if one is unknown, missing or of another type."""
    known = declared(notebook, name)
    for given in parameters:
        if given not in known:
            names = ", ".join(known) or "none"
            raise ConfigError(f"{name} has no parameter {given!r}{nearest(given, known)}: it has {names}")
    values = {}
    for parameter, (annotation, default) in known.items():
        if parameter in parameters:
            try:
                values[parameter] = converted(annotation, parameters[parameter])
            except TypeError:
                got = repr(parameters[parameter])
                got = got if len(got) <= 60 else got[:57] + "..."
                raise ConfigError(f"{parameter}: expected {expected(annotation)}, got {got}") from None
        elif default is None:
            kind = expected(annotation)
            raise ConfigError(f"{name} needs the parameter {parameter!r} ({kind}): give -p {parameter}=...")
    return values


def parameters_from(files, assignments):
    """{name: value} from a command line: `files`, "FILE" or "FILE:SECTION", then "name=value" each; the later wins."""
    parameters = {}
    for file in files:
        parameters.update(load_parameters(file))
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"-p {assignment}: write -p name=value")
        try:
            parameters[name] = parse_value(value)
        except ConfigError as problem:
            raise ConfigError(f"-p {assignment}: {problem}; quote a text: -p {name}='\"...\"'") from None
    return parameters


def expected(annotation):
    """An annotation (`ast` node) in words, "a whole number or nothing (null)"; ConfigError if it is no type above."""
    kinds = [_kind(choice) for choice in _choices(annotation)]
    return " or ".join(WORDS[kind] + (f" (each {expected(inner[-1])})" if inner else "") for kind, inner in kinds)


def converted(annotation, value):
    """`value` as declared (1 as 1.0 where that is the type); TypeError if it is of another type."""
    first, *others = _choices(annotation)
    if others:
        for choice in (first, *others):
            try:
                return converted(choice, value)
            except TypeError:
                continue
        raise TypeError
    kind, inner = _kind(first)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not kind or kind is float:  # exact: a bool is not an int, 2.0 is not an int
        raise TypeError
    if kind is list and inner:
        return [converted(inner[0], entry) for entry in value]
    if kind is dict and inner:
        return {converted(inner[0], key): converted(inner[1], entry) for key, entry in value.items()}
    return value


def _choices(annotation):
    """The types that an annotation allows, `ast` nodes: those of a quoted Optional or Union, else itself."""
    if not (isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)):
        return [annotation]
    try:
        quoted = ast.parse(annotation.value, mode="eval").body
    except SyntaxError:
        return [annotation]
    if not isinstance(quoted, ast.Subscript):
        return [annotation]
    inner = quoted.slice.elts if isinstance(quoted.slice, ast.Tuple) else [quoted.slice]
    if ast.unparse(quoted.value) == "Optional" and len(inner) == 1:
        return [*inner, ast.Constant(None)]
    return inner if ast.unparse(quoted.value) == "Union" else [annotation]


def _kind(annotation):
    """`list[int]`, `dict[str, int]` as (the type, the annotations of what it holds)."""
    inner, outer = [], annotation
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        outer = annotation.value
    kind = KINDS.get(ast.unparse(outer))
    if kind is None or len(inner) not in {list: (0, 1), dict: (0, 2)}.get(kind, (0,)):
        known = ", ".join(name for name in KINDS if name != "None")
        raise ConfigError(
            f"`{ast.unparse(annotation)}` is no type of a parameter: use {known}, list[int] "
            'or, in quotes, "Optional[int]" or "Union[int, str]"'
        )
    return kind, inner
