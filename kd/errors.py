"""One exception for everything a person can put right."""


class Problem(Exception):
    """Bad input. The message is one line that names the thing and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


def nearest(name, known):
    """The hint " (did you mean 'x'?)" for a misspelt `name` among `known` strings, or "" when none is close."""
    from difflib import get_close_matches

    close = get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_kind(name, value, default):
    """Problem unless `value` is of the kind of `default`: true or false, a whole number, a finite number, or a text; other kinds pass."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    kinds = {
        bool: ("true or false", isinstance(value, bool)),
        int: ("a whole number", type(value) is int),
        float: ("a number", number),
        str: ("a text", isinstance(value, str)),
    }
    words, fine = kinds.get(type(default), ("", True))
    if not fine:
        raise Problem(f"{name}: {value!r} must be {words}")
