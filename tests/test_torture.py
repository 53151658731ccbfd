"""A smoke study killed at random instants ends in the bytes of one that nobody disturbed. Hours: `make torture`.

KD_TORTURE=5 kills so many times instead of 50; KD_TORTURE_SEED=1 at other instants.
"""

import os
import random
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from pipeline import clone, command, environment, hashes

MADE = ["data/smoke", "models/smoke", "runs/smoke", "reports/smoke", "build/code"]
ALL = ["data", "models", "runs", "store", "build", "reports/smoke", ".dvc/cache", ".dvc/tmp", "dvc.lock"]


def begun(folder):
    """A repro of its own process group."""
    return subprocess.Popen([sys.executable, "-m", "kd", "repro"], cwd=folder, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill(main, chance):
    """kill -9 to all at once, or to one process of the tree by chance: then the others must end by themselves. Returns whose name it was."""
    tree = [psutil.Process(main.pid), *psutil.Process(main.pid).children(recursive=True)]
    victim = chance.choice(tree)
    name = " ".join(victim.cmdline()[2:6]) or "?"
    if chance.random() < 0.5:
        for process in tree:
            process.kill()
        name = "all"
    else:
        victim.kill()
    main.communicate(timeout=60)
    _, left = psutil.wait_procs([process for process in tree if process.pid != main.pid], 20)
    assert not left, f"killing {name} leaves {[process.cmdline() for process in left]}"
    return name


@pytest.mark.slow
def test_a_study_killed_at_random_instants_ends_in_the_same_bytes(tmp_path):
    whole, torn = clone(tmp_path / "whole"), clone(tmp_path / "torn")
    for folder in (whole, torn):
        command(folder, "kd", "use", "smoke")
    began = time.monotonic()
    command(whole, "kd", "repro")
    lasts, expected = time.monotonic() - began, hashes(whole, *MADE)
    kills, wanted, chance = 0, int(os.environ.get("KD_TORTURE", "50")), random.Random(int(os.environ.get("KD_TORTURE_SEED", "0")))
    while True:
        main = begun(torn)
        instant = time.monotonic() + (chance.uniform(0.1, 3 * lasts / max(wanted, 3)) if kills < wanted else 10 * lasts)
        while main.poll() is None and time.monotonic() < instant:
            time.sleep(0.02)
        if main.poll() is None:
            kills += 1
            try:
                print(f"kill {kills} of {wanted}: {kill(main, chance)}", flush=True)
            except psutil.NoSuchProcess:
                main.wait()
            continue
        said = main.communicate()[1]
        assert main.returncode == 0, said[-3000:]
        assert hashes(torn, *MADE) == expected, f"after {kills} kills"
        assert not [path for name in ("store", *MADE) for path in (torn / name).rglob(".*.tmp")]
        if kills >= wanted:
            return
        for name in ALL:  # once more from nothing
            shutil.rmtree(torn / name, ignore_errors=True) if (torn / name).is_dir() else (torn / name).unlink(missing_ok=True)
        shutil.copy(whole / "params.yaml", torn / "params.yaml")
        command(torn, "kd", "use", "smoke")
