"""How long the rest takes; in which order runs go."""

from types import SimpleNamespace

import pytest

from kd.study.executor import Estimate, duration, groups
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
            if done:
                estimate.heard(key_of(item), done, min(now, end) - begin, end <= now, "")
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


def test_groups_see_the_same_batches_and_keep_all_workers_busy():
    runs = [(run(method, seed, epochs), None, None) for seed in range(3) for method, epochs in (("kd", 20), ("srm", 36), ("kr", 20), ("at", 20))]
    found = groups(runs, SimpleNamespace(workers=2, side_by_side=8))
    assert sorted(map(id, (item for task in found for item in task))) == sorted(map(id, runs))
    assert len(found) >= 4 and all(len({item[0]["seed"] for item in task}) == 1 for task in found)
    assert [task[0][0]["seed"] for task in found] == sorted(task[0][0]["seed"] for task in found)
    assert found[0][0][0]["recipe"]["epochs"] == 36
    assert {len(task) for task in groups(runs, SimpleNamespace(workers=2, side_by_side=1))} == {1}
    assert max(len(task) for task in groups(runs, SimpleNamespace(workers=1, side_by_side=3))) <= 3


def test_durations_in_words():
    assert [duration(s) for s in (0, 59.6, 90, 3660)] == ["0 s", "1 min 0 s", "1 min 30 s", "1 h 1 min"]
