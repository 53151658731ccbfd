"""KD_RANKS=2: what trains is done by several processes together (kd/ranks.py), which torch starts on this machine and ends together."""

import os
import signal
from contextlib import suppress

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessException

from kd import ranks
from kd.errors import ConfigError
from kd.processes import end_with_parent, temporary_folder
from kd.study.settings import settings, use_device


def on_ranks(function, *arguments, begin=use_device):
    """Call function(*arguments) here, or in each of KD_RANKS processes at once, which then train one run together. Returns nothing.

    Function and arguments must be such that another process can import or unpickle them. begin: called first in each such process.
    Raises what the call raises first in any of them.
    """
    found = settings()
    if found.ranks == 1:
        function(*arguments)
        return
    failures = multiprocessing.get_context("spawn").SimpleQueue()
    with temporary_folder() as folder:
        work = found.device, found.ranks, f"file://{folder}/meeting", failures, begin, function, arguments
        started = multiprocessing.spawn(one_rank, work, found.ranks, join=False)
        try:
            while not started.join():
                pass
        except ProcessException:
            if any(process.exitcode == -signal.SIGKILL for process in started.processes):  # the others fail for want of this one
                reason = "one of the ranks of a run was ended, by a signal or for want of memory"
                raise ConfigError(f"{reason}; the same command goes on from here") from None
            if not failures.empty():
                raise failures.get() from None
            raise
        finally:
            for process in started.processes:
                process.kill()


def one_rank(rank, device, count, meeting, failures, begin, function, arguments):
    """In a process of its own: join the other ranks, and do the work."""
    end_with_parent()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    try:
        ranks.join_ranks(device=device, init_method=meeting)
        begin()
        function(*arguments)
        ranks.wait()  # a rank that left early would take the connection with it
        torch.distributed.destroy_process_group()
    except Exception as error:
        with suppress(Exception):  # an error that cannot be pickled: then its traceback is raised as text
            failures.put(error)
        raise
