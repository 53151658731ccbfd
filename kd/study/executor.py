"""Groups of runs in worker processes or on a cluster, each finished run into the store, with a line that says how long the rest will take."""

import heapq
import math
import os
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process

import torch

from kd import ranks
from kd.errors import ConfigError
from kd.loggers import logger_asked
from kd.processes import end_with_parent
from kd.progress import report, say
from kd.study.cluster import train_all
from kd.study.group import KEEP_MEMORY, groups, train_group
from kd.study.on_ranks import on_ranks
from kd.study.records import method_name
from kd.study.runs import key_of
from kd.study.settings import devices, settings

PAUSE = 0.5  # seconds between two lines of progress: small runs end hundreds of epochs a second, and an estimate looks at every run


def run_parallel(wanted, title, known=()):
    """Train runs side by side and put each into the store as it ends. Returns nothing: ask the store.

    wanted: [(run, paths, keep the weights?), ...]. title: begins the line of progress. known: [(run, epochs, seconds), ...] of
    finished runs, from which the time left is estimated at first. Runs that see the same batches advance side by side in one process
    (kd/side_by_side.py). A run that fails lets its group come to its end, then stops the rest and raises its error here; what had
    finished stays in the store, what was under way goes on from its last checkpoint next time.

    With KD_RAY the one worker process is that which deals with the cluster (kd/study/cluster.py): Ray takes over signals and prints.
    """
    found = settings()
    logger_asked()  # says at once if it is not there
    os.environ |= KEEP_MEMORY  # read by the C library when a worker process starts
    train, tasks, places = (train_on_cluster, [wanted], ["cpu"]) if found.ray else (train_in_worker, groups(wanted, found), devices(found))
    count = max(1, min(len(places), len(tasks)))
    context = get_context("spawn")
    messages, free, estimate = context.Queue(), context.Queue(), Estimate([run for task in tasks for run, *_ in task], count, known)
    for device in places[:count]:
        free.put(device)

    def watch():
        shown = -math.inf
        while (message := messages.get()) is not None:
            if isinstance(message, str):
                say(f"{title}: {message}")
            elif isinstance(message, int):
                estimate.workers = message
            else:
                estimate.heard(*message)
                if time.monotonic() - shown >= PAUSE:
                    report(f"{title}: {estimate}")
                    shown = time.monotonic()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with ProcessPoolExecutor(count, context, begin_worker, (messages, free, found.threads)) as pool:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a worker that Ctrl-C met while it imports would tell of it
            futures = [pool.submit(train, task) for task in tasks]
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            try:
                for future in as_completed(futures):
                    future.result()
            except BrokenProcessPool:
                raise ConfigError("a worker process was ended, by a signal or for want of memory; the same command goes on from here") from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        messages.put(None)
        watcher.join(timeout=2)
        report("")


MESSAGES, DEVICE = None, None  # in a worker process: where it tells its progress, and where it trains


def begin_worker(messages, free, threads):
    """What a worker process does first. free: the queue of the workers' devices, of which it takes one."""
    global MESSAGES, DEVICE
    MESSAGES, DEVICE = messages, free.get()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is answered by the process that started this one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent()
    torch.set_num_threads(threads)
    if DEVICE.startswith("cuda:"):
        torch.cuda.set_device(DEVICE)  # what names no device, as the recording of a graph, means this one

    def leave_with_parent():
        parent_process().join()
        os._exit(1)  # a parent that was killed cannot say goodbye; without this its workers would stay for ever

    threading.Thread(target=leave_with_parent, daemon=True).start()


def train_in_worker(task):
    """In a worker process: train a group of runs, here or on KD_RANKS processes below this one."""
    on_ranks(train_on_rank, task, DEVICE, MESSAGES, begin=partial(begin_rank, torch.get_num_threads()))


def begin_rank(threads):
    """What one of several processes that train a run together does first."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)


def train_on_rank(task, device, messages):
    """Train a group of runs, in the worker itself or in one of its ranks: then on that rank's GPU, and the first alone tells."""
    several = settings().ranks > 1
    train_group(task, device.partition(":")[0] if several else device, messages.put if ranks.is_first() else lambda message: None)


def train_on_cluster(wanted):
    """In a worker process: have runs trained on the cluster that KD_RAY names."""
    train_all(wanted, settings(), MESSAGES.put)


class Estimate:
    """How long the rest takes, from what has been seen: str() gives "12/57 runs, 31 %, 4 min 10 s left (lesson 3/20)".

    A run takes the epochs, and an epoch the seconds, that the runs of its kind took on average. While none of its kind has ended, it takes
    its recipe's epochs, more by what preparing phases added to the runs that have ended, and an epoch what it takes those of its kind that
    are under way, else all. The first epoch of a run under way does not count, as a process's first one also pays for its start: until there
    is a second one somewhere, the text has no time.
    """

    def __init__(self, runs, workers, known=()):
        self.runs, self.workers, self.text = {key_of(run): run for run in runs}, workers, ""
        self.kinds = {key: kind_of(run) for key, run in self.runs.items()}
        self.first, self.under_way, self.ended = {}, {}, set()  # {key: (epochs, seconds)}, as first heard and now; keys
        self.costs, self.seen, self.spent = defaultdict(list), [], 0.0  # {kind: [(epochs, seconds)]}; [(epochs, of the recipe, seconds)]; of all
        for run, epochs, seconds in known:
            self.learn(run, epochs, seconds)

    def learn(self, run, epochs, seconds):
        """A run took so many epochs, preparing phases included, and seconds."""
        self.costs[kind_of(run)].append((epochs, seconds))
        self.seen.append((epochs, run["recipe"]["epochs"], seconds))

    def heard(self, key, epochs, seconds, over, text):
        """A run has ended another epoch, or itself (`over`), `seconds` after its beginning."""
        self.text, self.under_way[key] = text, (epochs, seconds)
        self.first.setdefault(key, (epochs, seconds))
        if over:
            self.ended.add(key)
            del self.under_way[key]
            self.spent += seconds
            self.learn(self.runs[key], epochs, seconds)

    def expected(self, key):
        """(epochs, seconds of each) that the run with this key is expected to take in all; seconds are nan where nobody can know yet."""
        if mine := self.costs.get(self.kinds[key]):
            epochs, seconds = map(sum, zip(*mine, strict=True))
            return epochs / len(mine), seconds / epochs
        longer = sum(epochs for epochs, *_ in self.seen) / sum(planned for _, planned, _ in self.seen) if self.seen else 1.0
        since = {other: (epochs - self.first[other][0], seconds - self.first[other][1]) for other, (epochs, seconds) in self.under_way.items()}
        alike = [pace for other, pace in since.items() if pace[0] and self.kinds[other] == self.kinds[key]]
        pace = alike or [*since.values(), *((epochs, seconds) for epochs, _, seconds in self.seen)]
        epochs = sum(epochs for epochs, _ in pace)
        return longer * self.runs[key]["recipe"]["epochs"], sum(seconds for _, seconds in pace) / epochs if epochs else math.nan

    def rest(self):
        """Seconds that each run that has not ended still needs, those under way first, then the others in their order."""
        left = [*self.under_way, *(key for key in self.runs if key not in self.ended and key not in self.under_way)]
        done = [self.under_way.get(key, (0, 0.0))[0] for key in left]
        return [max(epochs - before, 0) * each for before, (epochs, each) in zip(done, map(self.expected, left), strict=True)]

    def left(self):
        """Seconds until all have ended: whichever worker is free first takes the next run."""
        free = [0.0] * self.workers
        for seconds in self.rest():
            heapq.heapreplace(free, free[0] + seconds)
        return max(free)

    def __str__(self):
        spent, rest = self.spent + sum(seconds for _, seconds in self.under_way.values()), sum(self.rest())
        if math.isnan(rest):
            return f"{len(self.ended)}/{len(self.runs)} runs ({self.text})"
        share = spent / max(spent + rest, 1e-9)
        return f"{len(self.ended)}/{len(self.runs)} runs, {100 * share:.0f} %, {duration(self.left())} left ({self.text})"


def kind_of(run):
    """Runs of a kind take about as long: they differ in seed and in what costs no time."""
    parameters = {name: {k: v for k, v in values.items() if k not in ("weight", "temperature", "alpha")} for name, values in run["parameters"].items()}
    return method_name(run), run["teacher"], run["student"], run["recipe"]["epochs"], run["images_per_class"], repr(sorted(parameters.items()))


def duration(seconds):
    """90 -> '1 min 30 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
