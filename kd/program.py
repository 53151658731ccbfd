"""The program without its prose: what must not have changed under a finished run, and what a stage's page depends on.

A corrected comment or docstring must train nothing, and neither must another Python: the text is the source itself without
comments and docstrings, never what a parser makes of it.
"""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

from kd.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent
# What these modules hold decides no result: messages, how files are written, where they lie, the machine's settings; nor does what makes
# data of an archive (fetch, readers, folders), because the md5 of the data that come out of it is part of a run's key.
NO_RESULT = (
    "kd.checkpoints", "kd.data.fetch", "kd.data.folders", "kd.data.readers", "kd.errors", "kd.places", "kd.processes", "kd.program", "kd.progress", "kd.study.paths", "kd.study.settings",
)  # fmt: skip
FSTRING_MIDDLE = getattr(tokenize, "FSTRING_MIDDLE", None)  # from Python 3.12 on


def without_prose(source):
    """Python source without comments, docstrings and blank lines; the same text under every Python.

    source: the text of a module or of a notebook's code cell. Raises SyntaxError (tokenize.TokenError for a bracket or string that
    never ends) where it is no Python.
    """
    ast.parse(source)  # tokenize lets more pass
    cut, kept, begins, candidate = [], set(), True, None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            cut.append((token.start, token.end))
        elif token.type == tokenize.STRING and begins:
            candidate = token  # a string that is a statement of its own is a docstring
        elif token.type == tokenize.NEWLINE and candidate:
            cut.append((candidate.start, candidate.end))
        if token.type in (tokenize.STRING, FSTRING_MIDDLE):
            kept |= set(range(token.start[0], token.end[0]))  # lines that end inside a string are part of it
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
            candidate = candidate if token is candidate else None
    lines = source.splitlines(keepends=True)
    for (row, column), (last, end) in reversed(cut):
        kept -= set(range(row, last))
        lines[row - 1 : last] = [lines[row - 1][:column] + lines[last - 1][end:], *[""] * (last - row)]
    whole = (line if number in kept else f"{line.rstrip()}\n" for number, line in enumerate(lines, 1) if line.strip() or number in kept)
    return "".join(whole)


@cache
def program_of(path):
    """The program in a Python file as text. An unreadable or broken file raises ConfigError."""
    try:
        return without_prose(Path(path).read_text(encoding="utf-8"))
    except (SyntaxError, tokenize.TokenError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is no Python ({error}); mend it first") from None


def file_of(module):
    """The file of a module of this package, or None: file_of("kd.models") is kd/models/__init__.py."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(source):
    """The modules of this package that Python source imports, in its order, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [part for part in parts if file_of(part)] or [node.module]
    return [module for module in dict.fromkeys(found) if module.startswith("kd.") and file_of(module)]


def closure(modules):
    """The modules and all of this package that they import, directly or through others, sorted; without those of NO_RESULT."""
    found = [module for module in dict.fromkeys(modules) if module not in NO_RESULT]
    for module in found:  # grows while it is walked
        found += [other for other in imports(file_of(module).read_text(encoding="utf-8")) if other not in found and other not in NO_RESULT]
    return sorted(found)


def program(modules):
    """The programs of the modules, one after another, each under its name."""
    return "".join(f"# {module}\n{program_of(file_of(module))}" for module in modules)
