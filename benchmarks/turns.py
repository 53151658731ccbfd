"""Variants that take turns, each in a process of its own, so that a machine that slows down slows all of them."""

import contextlib
import os
import time
from multiprocessing import get_context

import torch

from kd.errors import ConfigError
from kd.study.group import KEEP_MEMORY
from kd.study.settings import use_device


def clock():
    """Seconds, once the GPU has done what it was asked for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def environment(variables):
    """os.environ with `variables`, for processes that are started meanwhile."""
    before = os.environ.copy()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_own_process(function, *arguments):
    """What `function` returns in a process like those that train."""
    with environment(KEEP_MEMORY), get_context("spawn").Pool(1, use_device) as pool:
        return pool.apply(function, arguments)


class Turns:
    """A variant in a process of its own, which works when it is told to. ConfigError names one that dies or is late.

    work: (*arguments, answer) calls answer(a number) after each turn, the first of which is the warm-up.
    variables: what the process has in its environment beside ours.
    """

    def __init__(self, variant, work, *arguments, variables=KEEP_MEMORY):
        self.variant, context = variant, get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=take_turns, args=(theirs, work, *arguments))
        with environment(variables):
            self.process.start()
        theirs.close()

    def go(self):
        with contextlib.suppress(OSError):  # it is dead: the answer that does not come will say so
            self.connection.send("go")

    def answer(self, limit=None):
        """What the turn under way answers, the first being the warm-up; ConfigError after `limit` seconds."""
        try:
            found = self.connection.recv() if self.connection.poll(limit) else f"not ready after {limit} s"
        except (EOFError, ConnectionError):
            self.process.join()
            found = f"its process ended with {self.process.exitcode}"
        if isinstance(found, str):
            self.process.kill()
            raise ConfigError(f"{self.variant}: {found}")
        return found

    def turn(self):
        self.go()
        return self.answer()

    def close(self):
        self.connection.close()
        self.process.join()


def take_turns(connection, work, *arguments):
    """What a variant's process does, until its parent closes the connection."""

    def answer(number):
        connection.send(number)
        connection.recv()

    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            work(*arguments, answer)
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".partition("\n")[0][:200])
