"""How long the rest takes; in which order runs go."""

import os
import queue
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from kd.progress import say
from kd.study import executor, settings
from kd.study.executor import Estimate, duration
from kd.study.group import at_chance, groups, tell_epoch
from kd.study.runs import key_of


def run(method, seed, epochs=20):
    return {"knowledge": [method], "curriculum": "fixed", "parameters": {method: {}, "fixed": {}}, "teacher": "t", "student": "s", "images_per_class": 0,
            "data_md5": "d", "recipe": {"epochs": epochs, "batch_size": 64, "precision": "fp32", "channels_last": True}, "seed": seed}  # fmt: skip


def played(runs, cost, workers, share, known=()):
    """Play a stage up to `share` of its time, each run costing cost(run) seconds. Returns (estimated, true) seconds left."""
    queue = [(run, None, None) for run in sorted(runs, key=lambda run: run["seed"])]
    estimate, free, ends = Estimate([run for run, *_ in queue], workers, known), [0.0] * workers, []
    for item in queue:
        begin = min(free)
        free[free.index(begin)] = begin + cost(item[0])
        ends.append((begin, begin + cost(item[0]), item[0]))
    now = share * max(free)
    for begin, end, item in ends:
        epochs = round(1.5 * item["recipe"]["epochs"])  # preparing phases come on top
        if begin < now:
            done = min(int(epochs * (now - begin) / (end - begin)), epochs)
            for heard in sorted({1, done}) if done else ():
                estimate.heard(key_of(item), heard, (min(now, end) - begin) * heard / done, heard == done and end <= now, "")
    return estimate.left(), max(free) - now


COST = {"labels": 4.0, "kd": 6.0, "kr": 8.0, "srm": 22.0, "iekd": 15.0}


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("seeds", [3, 5])
def test_at_half_of_a_stage_the_estimate_is_within_a_quarter(workers, seeds):
    runs = [run(method, seed) for method in COST for seed in range(seeds)]
    estimated, true = played(runs, lambda item: COST[item["knowledge"][0]], workers, 0.5)
    assert abs(estimated - true) <= 0.25 * true


def test_a_resumed_stage_knows_at_once_what_its_kinds_cost():
    runs = [run(method, seed) for method in COST for seed in range(4)]
    known = [(run(method, 9), 30, cost) for method, cost in COST.items()]
    estimated, true = played(runs, lambda item: COST[item["knowledge"][0]], 2, 0.0, known)
    assert abs(estimated - true) <= 0.05 * true


def test_it_never_says_that_all_is_done_while_runs_are_left():
    runs = [run("kd", seed) for seed in range(4)]
    estimate = Estimate(runs, 2)
    for seed in range(3):
        estimate.heard(key_of(runs[seed]), 30, 6.0, True, "done")
    estimate.heard(key_of(runs[3]), 15, 3.0, False, "lesson 10/20")
    assert str(estimate) == "3/4 runs, 88 %, 3 s left (lesson 10/20)"


def test_a_first_epoch_that_pays_for_the_start_is_no_pace():
    runs = [run("kd", seed) for seed in range(4)]
    estimate = Estimate(runs, 2)
    estimate.heard(key_of(runs[0]), 1, 60.0, False, "lesson 1/20")
    assert str(estimate) == "0/4 runs (lesson 1/20)"
    estimate.heard(key_of(runs[0]), 3, 61.0, False, "lesson 3/20")
    assert estimate.left() == pytest.approx(20 * 0.5 * 2)  # two workers, two runs each, half a second an epoch; the first run is beyond that


def test_a_run_that_has_just_begun_is_not_nearly_over():
    """Its process's start, in its first epoch, took longer than whole runs of its kind did."""
    estimate = Estimate([run("kd", 0)], 2, [(run("kd", 9), 20, 4.0)])
    estimate.heard(key_of(run("kd", 0)), 1, 5.0, False, "lesson 1/20")
    assert estimate.left() == pytest.approx(19 * 0.2)


def test_groups_see_the_same_batches_and_keep_all_workers_busy():
    runs = [(run(method, seed, epochs), None, None) for seed in range(3) for method, epochs in (("kd", 20), ("srm", 36), ("kr", 20), ("at", 20))]
    found = groups(runs, SimpleNamespace(workers=2, side_by_side=8))
    assert sorted(map(id, (item for task in found for item in task))) == sorted(map(id, runs))
    assert len(found) >= 4 and all(len({item[0]["seed"] for item in task}) == 1 for task in found)
    assert [task[0][0]["seed"] for task in found] == sorted(task[0][0]["seed"] for task in found)
    assert found[0][0][0]["recipe"]["epochs"] == 36
    assert {len(task) for task in groups(runs, SimpleNamespace(workers=2, side_by_side=1))} == {1}
    assert max(len(task) for task in groups(runs, SimpleNamespace(workers=1, side_by_side=3))) <= 3


def entries(*accuracies, phase="lesson"):
    return [{"phase": phase, "validation": accuracy} for accuracy in accuracies]


@pytest.mark.parametrize("epochs, enough", [(4, 2), (7, 2), (8, 2), (9, 3), (20, 5), (240, 60)])
def test_a_run_at_chance_is_named_once_after_a_quarter_of_its_epochs(epochs, enough):
    stuck = run("kr", 3, epochs) | {"parameters": {"kr": {"weight": 48.0, "temperature": 0.25}, "fixed": {}}}
    said = [at_chance(stuck, entries(*[10.4] * count), 10) for count in range(1, epochs + 1)]
    assert [count for count, text in enumerate(said, 1) if text] == [enough]
    after = f"after {enough} of {epochs} epochs; lower kr.weight or recipe.learning_rate"
    assert said[enough - 1] == f"kr, seed 3 is still at chance (10.4 %) {after}"


def test_only_a_run_that_learns_nothing_is_named():
    stuck = run("labels", 0, 8)
    assert at_chance(stuck, entries(10.0, 15.0), 10).endswith("lower recipe.learning_rate")
    assert at_chance(stuck, entries(15.1, 10.0), 10) is None  # it rose, even if it fell again
    assert at_chance(stuck, entries(1.0, 2.0), 100) is None and at_chance(stuck, entries(1.0, 1.5), 100)
    assert at_chance(stuck, entries(float("nan"), float("nan")), 10) is None  # no validation images
    preparing = [{"phase": "auto-encoder"}, *entries(10.0, 10.0, 10.0, phase="hints")]
    assert at_chance(stuck, preparing, 10) is None and at_chance(stuck, [*preparing, *entries(10.0)], 10) is None
    assert at_chance(stuck, [*preparing, *entries(10.0, 10.0)], 10)
    assert at_chance(stuck, [*entries(10.0, 10.0), *preparing], 10) is None  # said already; another lesson is prepared


def test_a_sum_names_what_weighs_in_each_of_its_parts():
    both = run("kd", 0, 8) | {"knowledge": ["kd", "iekd"], "curriculum": "rco"}
    both["parameters"] = {"kd": {"alpha": 0.9, "temperature": 4.0}, "rco": {"delta": 0.8}}
    both["parameters"]["iekd"] = {"inherit_weight": 50.0, "explore_weight": 0.0}
    text = at_chance(both, entries(9.0, 10.0), 10)
    assert text.startswith("rco * (kd + iekd), seed 0 is still at chance (10.0 %) after 2 of 8 epochs; ")
    assert text.endswith("; lower kd.alpha or iekd.inherit_weight or recipe.learning_rate")


def test_a_worker_tells_its_warning_behind_its_progress():
    told, stuck = [], run("labels", 0, 8)
    of = SimpleNamespace(progress=SimpleNamespace(curve=entries(10.0, 10.0)), data=SimpleNamespace(classes=range(10)))
    tell_epoch(told.append, "key", SimpleNamespace(run=of, spent=lambda: 1.0), stuck, "lesson 2/8")
    assert told[0] == ("key", 2, 1.0, False, "lesson 2/8") and told[1].startswith("labels, seed 0 is still at chance")
    assert executor.say is say  # a line that stays


def device_once_all_are_there(folder, count):
    """In a worker: its device, told once `count` workers wait here."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.02)
    return executor.DEVICE


def test_every_worker_process_takes_the_next_gpu(monkeypatch, tmp_path):
    """The devices have other names, so that no GPU is needed: what each process gets is at stake."""
    monkeypatch.setattr(settings.torch.cuda, "device_count", lambda: 2)
    names = [name.replace("cuda", "gpu") for name in settings.devices(SimpleNamespace(device="cuda", workers=4))]
    context = get_context("spawn")
    free = context.Queue()
    for name in names:
        free.put(name)
    with ProcessPoolExecutor(4, context, executor.begin_worker, (context.Queue(), free, 1)) as pool:
        found = [future.result() for future in [pool.submit(device_once_all_are_there, tmp_path, 4) for _ in range(4)]]
    assert sorted(found) == ["gpu:0", "gpu:0", "gpu:1", "gpu:1"]


def test_a_worker_of_a_gpu_means_it_by_default(monkeypatch):
    chosen, free = [], queue.SimpleQueue()
    for name in ("set_num_threads", "cuda.set_device"):
        monkeypatch.setattr(f"torch.{name}", chosen.append)
    for name in ("end_with_parent", "parent_process", "threading.Thread", "signal.signal"):
        monkeypatch.setattr(f"kd.study.executor.{name}", MagicMock())
    monkeypatch.setattr(executor, "DEVICE", None)
    monkeypatch.setattr(executor, "MESSAGES", None)
    free.put("cuda:3")
    executor.begin_worker(None, free, 1)
    assert chosen == [1, "cuda:3"] and executor.DEVICE == "cuda:3"


def test_durations_in_words():
    assert [duration(s) for s in (0, 59.6, 90, 3660)] == ["0 s", "1 min 0 s", "1 min 30 s", "1 h 1 min"]
