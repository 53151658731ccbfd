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
