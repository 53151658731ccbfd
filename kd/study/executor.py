"""Groups of runs in worker processes, each finished run into the store, with a line that says how long the rest will take."""

import heapq
import math
import os
import signal
import threading
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from queue import SimpleQueue

import torch

from kd import ranks
from kd.checkpoints import fault
from kd.errors import ConfigError
from kd.loggers import logged, logger_asked
from kd.processes import end_with_parent
from kd.progress import report, say
from kd.side_by_side import Shared, Track, side_by_side
from kd.study import store
from kd.study.on_ranks import on_ranks
from kd.study.records import method_name
from kd.study.runs import begin_run, key_of, open_data, record_of
from kd.study.settings import machine, settings
from kd.training import Checkpoint

# glibc keeps up to a gigabyte that is free, instead of handing feature maps back to the system after every step and having them
# cleared again: a tenth to a thirtieth of the page faults of a resnet8x4's step
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


def run_parallel(wanted, title, known=()):
    """Train runs side by side and put each into the store as it ends. Returns nothing: ask the store.

    wanted: [(run, paths, keep the weights?), ...]. title: begins the line of progress. known: [(run, epochs, seconds), ...] of
    finished runs, from which the time left is estimated at first. Runs that see the same batches advance side by side in one process
    (kd/side_by_side.py). A run that fails lets its group come to its end, then stops the rest and raises its error here; what had
    finished stays in the store, what was under way goes on from its last checkpoint next time.
    """
    found = settings()
    logger_asked()  # says at once if it is not there
    os.environ |= KEEP_MEMORY  # read by the C library when a worker process starts
    tasks = groups(wanted, found)
    count = max(1, min(found.workers, len(tasks)))
    context = get_context("spawn")
    messages, estimate = context.Queue(), Estimate([run for task in tasks for run, *_ in task], count, known)

    def watch():
        while (message := messages.get()) is not None:
            if isinstance(message, str):
                say(f"{title}: {message}")
                continue
            estimate.heard(*message)
            report(f"{title}: {estimate}")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with ProcessPoolExecutor(count, context, begin_worker, (messages, found.threads)) as pool:
            futures = [pool.submit(train_in_worker, task, found.device) for task in tasks]
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


def groups(wanted, found):
    """`wanted` as lists of what one process trains side by side, in the order in which they begin.

    Together go runs that see the same batches: of one data set, seed, batch size and precision; next to each other those with the same
    lessons, which ask the same teachers. At most `found.side_by_side` (Settings), and so few that every worker gets two groups or
    more: all cores are to be busy to the end. Seed by seed, so that every kind of run is seen early; the longest first.
    """
    alike = defaultdict(list)
    for item in wanted:
        run, recipe = item[0], item[0]["recipe"]
        batches = run["data_md5"], run["images_per_class"], run["seed"], recipe["batch_size"], recipe["precision"], recipe["channels_last"]
        alike[batches].append(item)
    most = min(found.side_by_side, max(1, len(wanted) // (2 * found.workers)))
    tasks = []
    for items in alike.values():
        items.sort(key=lambda item: (-item[0]["recipe"]["epochs"], lessons_of(item[0]), item[0]["knowledge"]))
        count = -(-len(items) // most)
        tasks += [items[len(items) * n // count : len(items) * (n + 1) // count] for n in range(count)]
    return sorted(tasks, key=lambda task: (task[0][0]["seed"], -sum(run["recipe"]["epochs"] for run, *_ in task)))


def lessons_of(run):
    """Runs for which this agrees have the same teachers at the same time, as far as that is known beforehand."""
    return run["teacher"], run["curriculum"], repr(sorted(run["parameters"][run["curriculum"]].items()))


MESSAGES = None  # in a worker process: where it tells its progress


def begin_worker(messages, threads):
    """What a worker process does first."""
    global MESSAGES
    MESSAGES = messages if ranks.is_first() else SimpleQueue()  # which nobody reads
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is answered by the process that started this one
    end_with_parent()
    torch.set_num_threads(threads)

    def leave_with_parent():
        parent_process().join()
        os._exit(1)  # a parent that was killed cannot say goodbye; without this its workers would stay for ever

    threading.Thread(target=leave_with_parent, daemon=True).start()


def train_in_worker(task, device):
    """In a worker process: train a group of runs, here or on KD_RANKS processes below this one."""
    on_ranks(train_group, task, device, begin=partial(begin_worker, MESSAGES, torch.get_num_threads()))


def train_group(task, device):
    """Train a group of runs side by side, or go on with them, and put each into the store as it ends."""
    tracks, failures, log = {}, [], logger_asked()
    data = {item[0]["images_per_class"]: Shared(open_data(item[1]["data"], item[0]["images_per_class"], device)) for item in task}
    for run, paths, keep_weights in task:
        key, program = key_of(run), store.program_of_run(run)
        checkpoint = Checkpoint(f"{store.place(program, key)}.running.safetensors", run=key)
        if checkpoint.path.exists() and (problem := fault(checkpoint.path)):
            MESSAGES.put(f"{checkpoint.path} {problem}; the run begins anew")
            checkpoint.remove()
        shared = data[run["images_per_class"]]
        try:
            training = begin_run(run, paths, shared, device, checkpoint=checkpoint, ask=shared.ask)
        except ConfigError as problem:
            failures.append(named(run, problem))
            continue
        track = Track(training)
        training.report = partial(tell, key, track, run)
        training.after_epoch = log and logged_or_said(log, {**run, "key": key})
        tracks[track] = run, key, program, keep_weights
    for track, failure in side_by_side(tracks):
        run, key, program, keep_weights = tracks[track]
        if failure is not None:
            failures.append(named(run, failure))
            continue
        record, weights = record_of(run, track.run)
        images = len(record["curve"]) * len(track.run.data.labels["train"])
        spent = {"seconds": round(track.seconds, 3), "images_per_second": round(images / max(track.seconds, 1e-9), 1)}
        spent["teacher_passes"] = dict(data[run["images_per_class"]].passes[id(track.run)])
        if ranks.is_first():
            store.save(program, record, {"key": key, **spent, **machine(device)}, weights if keep_weights else None)
        MESSAGES.put((key, len(record["curve"]), track.seconds, True, "done"))
    if failures:
        raise failures[0]


def tell(key, track, run, text):
    """What a run reports after an epoch, with what the estimate of the time left needs."""
    curve = track.run.progress.curve
    MESSAGES.put((key, len(curve), track.spent(), False, text))
    if warning := at_chance(run, curve, len(track.run.data.classes)):
        MESSAGES.put(warning)


def logged_or_said(log, run):
    """As kd.loggers.logged, but where the logger fails, this is said once and the run goes on without it."""
    told, failed = logged(log, **run), False

    def after_epoch(result, student):
        nonlocal failed
        try:
            if not failed:
                told(result, student)
        except Exception as error:  # whatever a server that does not answer raises
            failed = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            MESSAGES.put(f"KD_LOGGER={os.environ['KD_LOGGER']} failed ({reason:.200}); {run['key']} goes on without it")

    return after_epoch


def at_chance(run, curve, classes):
    """A line for a run that learns nothing, after a quarter of its epochs (2 at least), at no other epoch; else None.

    That is, whose validation accuracy never rose above 1.5 times chance in its lessons; in a phase that prepares, a
    student's head need not learn. A loss too heavy for the learning rate does this, and nothing else would say so
    before the run is over.
    """
    enough = max(2, math.ceil(run["recipe"]["epochs"] / 4))
    seen = [entry["validation"] for entry in curve if entry["phase"] == "lesson"]
    if curve[-1]["phase"] != "lesson" or len(seen) != enough:
        return None
    if not max(seen) <= 1.5 * 100 / classes:  # nan, without validation images, says nothing
        return None
    heavy = ("weight", "inherit_weight", "explore_weight", "alpha", "learning_rate")
    own = [f"{method}.{name}" for method in run["knowledge"] for name in heavy if run["parameters"][method].get(name)]
    which = f"{method_name(run)}, seed {run['seed']}"
    after = f"({max(seen):.1f} %) after {len(seen)} of {run['recipe']['epochs']} epochs"
    return f"{which} is still at chance {after}; lower {' or '.join([*own, 'recipe.learning_rate'])}"


def named(run, failure):
    """The failure of a run, which says whose it is: beside it others were on their way."""
    if not isinstance(failure, ConfigError):
        failure.add_note(f"in the run {method_name(run)}, seed {run['seed']}")
        return failure
    return ConfigError(f"{method_name(run)}, seed {run['seed']}: {failure}")


class Estimate:
    """How long the rest takes, from what has been seen: str() gives "12/57 runs, 31 %, 4 min 10 s left (lesson 3/20)".

    A run costs what the runs of its kind took on average. While none of its kind has ended, it costs the epochs of its recipe, longer by
    what preparing phases added to the runs that have ended, times the seconds of an epoch: of its kind if one is under way, else of all.
    """

    def __init__(self, runs, workers, known=()):
        self.runs, self.workers, self.text = {key_of(run): run for run in runs}, workers, ""
        self.under_way, self.ended = {}, set()  # {key: (epochs, seconds)}; keys
        self.seconds, self.seen, self.spent = defaultdict(list), [], 0.0  # by kind; [(epochs, of the recipe, seconds)] of those that ended
        for run, epochs, seconds in known:
            self.learn(run, epochs, seconds)

    def learn(self, run, epochs, seconds):
        """A run took so many epochs, preparing phases included, and seconds."""
        self.seconds[kind_of(run)].append(seconds)
        self.seen.append((epochs, run["recipe"]["epochs"], seconds))

    def heard(self, key, epochs, seconds, over, text):
        """A run has ended another epoch, or itself (`over`), `seconds` after its beginning."""
        self.text, self.under_way[key] = text, (epochs, seconds)
        if over:
            self.ended.add(key)
            del self.under_way[key]
            self.spent += seconds
            self.learn(self.runs[key], epochs, seconds)

    def expected(self, run):
        """Seconds that a run is expected to take in all."""
        if mine := self.seconds.get(kind_of(run)):
            return sum(mine) / len(mine)
        longer = sum(epochs for epochs, *_ in self.seen) / sum(planned for _, planned, _ in self.seen) if self.seen else 1.0
        alike = [seen for key, seen in self.under_way.items() if kind_of(self.runs[key]) == kind_of(run)]
        pace = alike or [*self.under_way.values(), *((epochs, seconds) for epochs, _, seconds in self.seen)]
        return longer * run["recipe"]["epochs"] * sum(seconds for _, seconds in pace) / max(sum(epochs for epochs, _ in pace), 1)

    def rest(self):
        """Seconds that each run that has not ended still needs, those under way first, then the others in their order."""
        needed = {key: self.expected(run) for key, run in self.runs.items() if key not in self.ended}
        begun = [max(needed.pop(key) - seconds, 0.0) for key, (_, seconds) in self.under_way.items()]
        return begun + list(needed.values())

    def left(self):
        """Seconds until all have ended: whichever worker is free first takes the next run."""
        free = [0.0] * self.workers
        for seconds in self.rest():
            heapq.heapreplace(free, free[0] + seconds)
        return max(free)

    def __str__(self):
        spent, rest = self.spent + sum(seconds for _, seconds in self.under_way.values()), sum(self.rest())
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
