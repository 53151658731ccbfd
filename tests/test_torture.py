"""A smoke study killed at random instants of every stage ends in the bytes of one that nobody disturbed. About an hour: `make torture`.

KD_TORTURE=5 kills so many times instead of 50; KD_TORTURE_SEED=1 at other instants.
"""

import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from pipeline import clone, command, environment, hashes

MADE = ["data/smoke", "models/smoke", "runs/smoke", "reports/smoke", "build/code"]
ALL = ["data", "models", "runs", "store", "build", "reports/smoke", ".dvc/cache", ".dvc/tmp", "dvc.lock"]


def begun(folder, stage):
    """The repro of a stage, in a process group of its own."""
    return subprocess.Popen([sys.executable, "-m", "kd", "repro", stage], cwd=folder, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill(main, chance):
    """kill -9 to all at once, or to one process of the tree by chance: then the others must end by themselves. Returns whose name it was."""
    tree = [psutil.Process(main.pid), *psutil.Process(main.pid).children(recursive=True)]
    victim = chance.choice(tree)
    name = " ".join(victim.cmdline()[1:6]) or "?"
    survivable = "resource_tracker" in name  # Python begins another one, and the study goes on
    if survivable or chance.random() < 0.5:
        for process in tree:
            process.kill()
        name = "all"
    else:
        victim.kill()
    try:
        main.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"killing {name} leaves the study waiting") from None
    _, left = psutil.wait_procs([process for process in tree if process.pid != main.pid], 60)
    assert not left, f"killing {name} leaves {[process.cmdline() for process in left]}"
    return name


@pytest.mark.slow
def test_a_study_killed_at_random_instants_ends_in_the_same_bytes(tmp_path):
    whole, torn = clone(tmp_path / "whole"), clone(tmp_path / "torn")
    for folder in (whole, torn):
        command(folder, "kd", "use", "smoke")
    stages, lasts = command(whole, "dvc", "stage", "list", "--name-only").stdout.split(), {}
    for stage in stages:
        began = time.monotonic()
        command(whole, "kd", "repro", stage)
        lasts[stage] = time.monotonic() - began
    kills, wanted, chance = Counter(), int(os.environ.get("KD_TORTURE", "50")), random.Random(int(os.environ.get("KD_TORTURE_SEED", "0")))
    expected = hashes(whole, *MADE)
    while kills.total() < wanted:
        for stage in stages:
            left = math.ceil((wanted - kills.total()) / (len(stages) - stages.index(stage)))  # even over the stages that are still to come
            while left and killed(torn, stage, chance.uniform(0.1, lasts[stage]), chance):
                left, kills[stage] = left - 1, kills[stage] + 1
            command(torn, "kd", "repro", stage)
        assert hashes(torn, *MADE) == expected, f"after {kills}"
        assert not [path for name in ("store", *MADE) for path in (torn / name).rglob(".*.tmp")]
        for name in ALL:  # from nothing, if there are kills left
            shutil.rmtree(torn / name, ignore_errors=True) if (torn / name).is_dir() else (torn / name).unlink(missing_ok=True)
        shutil.copy(whole / "params.yaml", torn / "params.yaml")
        command(torn, "kd", "use", "smoke")
    print(f"{kills.total()} kills: {dict(kills)}")


def killed(folder, stage, seconds, chance):
    """Begin or go on with a stage, and kill it after so many seconds. False if it was over by then."""
    main = begun(folder, stage)
    try:
        said = main.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        try:
            print(f"{stage} after {seconds:.1f} s: {kill(main, chance)}", flush=True)
            return True
        except psutil.NoSuchProcess:
            said = main.communicate()[1]
    assert main.returncode == 0, said[-3000:]
    return False
