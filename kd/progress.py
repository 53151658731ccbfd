"""How far a long computation is, on the terminal or in the log of a run and never in an executed notebook.

A notebook's kernel has no terminal. There the variable KD_PROGRESS names a file: `report` writes that one, `say` and
`count` append to two beside it, and `relayed`, in the process that started the kernel, shows what they wrote.
"""

import atexit
import os
import sys
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SECONDS = 10  # between two transient lines in a log


def report(text):
    """Show one transient line, which the next one replaces; an empty text clears it. In a log one every 10 s at most.

    In a notebook opened by hand it shows nothing, because its file would keep what is of that moment alone.
    """
    if path := os.environ.get("KD_PROGRESS"):
        Path(path).write_text(f"{_one_line(text)}\n", encoding="utf-8", errors="replace")
    elif "ipykernel" not in sys.modules:
        _display(sys.stderr).transient(_one_line(text))


def say(text):
    """Show one line that stays; without KD_PROGRESS on sys.stderr."""
    if path := os.environ.get("KD_PROGRESS"):
        _append(f"{path}.lines", _one_line(text))
    else:
        _display(sys.stderr).lasting(_one_line(text))


def count(trained, known):
    """Add to the numbers of runs that a stage trained and that it knew already, two ints; no-op without KD_PROGRESS."""
    if path := os.environ.get("KD_PROGRESS"):
        _append(f"{path}.counts", f"{trained:d} {known:d}")


def _one_line(text):
    return " ".join(str(text).split())


def _append(path, line):
    with open(path, "a", encoding="utf-8", errors="replace") as file:
        file.write(f"{line}\n")


class Display:
    """Lines on a stream: lasting ones and a transient one, which a terminal rewrites and the process's end clears."""

    def __init__(self, stream):
        self.stream, self.terminal, self.shown, self.last = stream, stream.isatty(), "", -SECONDS
        if self.terminal:
            atexit.register(self.clear)

    def _write(self, text):
        self.stream.write(text)
        self.stream.flush()

    def transient(self, line):
        if line == self.shown:
            return
        if self.terminal:
            self.shown = line
            self._write(f"\r\x1b[K{line[: _columns(self.stream) - 1]}")
        elif line and time.monotonic() - self.last >= SECONDS:
            self.shown, self.last = line, time.monotonic()
            self._write(f"{line}\n")

    def lasting(self, line):
        self.clear()
        self._write(f"{line}\n")

    def clear(self):
        if self.terminal and self.shown:
            self.transient("")


_display = cache(Display)  # one a stream


def _columns(stream):
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):  # a terminal that does not know, a stream without a file
        return 80


@contextmanager
def relayed(path, stream, title):
    """Show on `stream` what another process, whose KD_PROGRESS is `path`, reports and says; at the end what it counted.

    That last line is `TITLE: trained N runs, M known`, absent where nothing was counted.
    """
    display, done, lines, seen = Display(stream), threading.Event(), Path(f"{path}.lines"), 0

    def show_said():
        nonlocal seen
        said = lines.read_bytes() if lines.exists() else b""
        whole = said[seen : said.rfind(b"\n") + 1]  # the last one may be half written
        seen += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            display.lasting(line)

    def watch():
        while not done.wait(0.5):
            show_said()
            text = Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).exists() else ""
            if text.endswith("\n"):
                display.transient(text.strip())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        show_said()
        display.clear()
        counts = Path(f"{path}.counts")
        if counts.exists():
            numbers = [int(number) for number in counts.read_text().split()]
            trained, known = sum(numbers[::2]), sum(numbers[1::2])
            display.lasting(f"{title}: trained {trained} {'run' if trained == 1 else 'runs'}, {known} known")
        atexit.unregister(display.clear)
