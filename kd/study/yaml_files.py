"""YAML 1.2, for all files that a person writes alike: params.yaml, profiles, tables, searches, claims, findings."""

import copy
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kd.errors import ConfigError


def parse_value(text):
    """The value of a YAML text, as DVC reads params.yaml: `false` is False; unlike in YAML 1.1, `no` is a text, `1e-3` a float.

    ConfigError for what is no YAML, also for a key that stands twice in a mapping.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        line = getattr(error, "problem_mark", None)
        where = f", line {line.line + 1}" if line else ""
        raise ConfigError(f"not YAML{where}: {' '.join(str(getattr(error, 'problem', '') or error).split())}") from None
    except RecursionError:
        raise ConfigError("not YAML that can be read: nested too deeply") from None


def read_yaml(path, place):
    """The value in a file of the repository, the caller's own. ConfigError, calling it `place`, for one that is no YAML."""
    try:
        return copy.deepcopy(_parsed(Path(path).read_text(encoding="utf-8")))
    except UnicodeDecodeError:
        raise ConfigError(f"{place} is not YAML (not UTF-8 text); mend it") from None
    except ConfigError as problem:
        raise ConfigError(f"{place} is {problem}; mend it") from None


_parsed = cache(parse_value)  # tables are looked at again and again
