"""Groups of runs: which go together, and how one process trains a group, whoever started that process."""

import math
from collections import defaultdict
from functools import partial

from kd import ranks
from kd.checkpoints import fault
from kd.errors import ConfigError
from kd.loggers import logged_or_said, logger_asked
from kd.side_by_side import Shared, Track, side_by_side
from kd.study import store
from kd.study.records import method_name
from kd.study.runs import begin_run, key_of, open_data, record_of
from kd.study.settings import machine
from kd.training import Checkpoint

# For the environment of every process that trains, before it starts. glibc keeps up to a gigabyte that is free, instead of handing feature
# maps back to the system after every step and having them cleared again: a tenth to a thirtieth of the page faults of a resnet8x4's step
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


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


def train_group(task, device, tell):
    """Train a group of runs side by side, or go on with them, and put each into the store as it ends.

    task: [(run, paths, keep the weights?), ...]. tell: called with a line to be said, or with (key, epochs so far, seconds, over?, where
    it is) after every epoch of a run and once it is in the store. The first failure of a run is raised when the others have ended.
    """
    tracks, failures, log = {}, [], logger_asked()
    data = {item[0]["images_per_class"]: Shared(open_data(item[1]["data"], item[0]["images_per_class"], device)) for item in task}
    for run, paths, keep_weights in task:
        key, program = key_of(run), store.program_of_run(run)
        checkpoint = Checkpoint(f"{store.place(program, key)}.running.safetensors", run=key)
        if checkpoint.path.exists() and (problem := fault(checkpoint.path)):
            tell(f"{checkpoint.path} {problem}; the run begins anew")
            checkpoint.remove()
        shared = data[run["images_per_class"]]
        try:
            training = begin_run(run, paths, shared, device, checkpoint=checkpoint, ask=shared.ask)
        except ConfigError as problem:
            failures.append(named(run, problem))
            continue
        track = Track(training)
        training.report = partial(tell_epoch, tell, key, track, run)
        training.after_epoch = log and logged_or_said(log, tell, **run, key=key)
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
        tell((key, len(record["curve"]), track.seconds, True, "done"))
    if failures:
        raise failures[0]


def tell_epoch(tell, key, track, run, text):
    """What a run reports after an epoch, with what the estimate of the time left needs."""
    curve = track.run.progress.curve
    tell((key, len(curve), track.spent(), False, text))
    if warning := at_chance(run, curve, len(track.run.data.classes)):
        tell(warning)


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
