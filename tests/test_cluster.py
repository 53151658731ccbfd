"""A study on a cluster of two nodes, here: interrupted, and one node lost in the middle, it leaves the bytes of the process pool's."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from pipeline import clone, environment

STUDY = """
import sys

sys.path.insert(0, "tests")
import tiny
from kd.errors import ConfigError
from kd.processes import end_children, end_on_signals
from kd.study.executor import run_parallel
from kd.study.paths import ROOT
from kd.teachers import train_route

if __name__ == "__main__":
    end_on_signals()
    data, recipe, files, wanted = tiny.data(), tiny.RECIPE.replace(epochs=int(sys.argv[2])), ROOT / "files", []
    paths = {"data": str(files / "images.safetensors"), "route": str(files / "route.safetensors")}
    if not files.exists():
        data.save(paths["data"])
        train_route("cnn3x8", data, tiny.RECIPE, 1, paths["route"])
    for seed in range(3):
        for knowledge in ("kd", "at"):
            run = {"profile": "p", "data": "tiny", "data_md5": data.md5, "images_per_class": 0, "student": "cnn3x4", "teacher": sys.argv[1]}
            run |= {"teacher_md5": {}, "knowledge": [knowledge], "curriculum": "fixed", "parameters": {knowledge: {}, "fixed": {}}}
            wanted.append((run | {"recipe": recipe.as_dict(), "seed": seed}, paths, seed == 0))
    try:
        run_parallel(wanted, "study")
    except ConfigError as problem:
        sys.exit(f"kd: {problem}")
    finally:
        end_children()
"""
EPOCHS = "60"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = clone(tmp_path_factory.mktemp("clone"))
    (folder / "study.py").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU on this machine: the head, which a study joins, and cluster.killed."""
    pytest.importorskip("ray", reason="needs Ray: make ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node, made = {"num_cpus": 1, "object_store_memory": 100 * 2**20}, Cluster()
    try:
        made.add_node(**node, include_dashboard=False)
        made.killed = made.add_node(**node)
    except Exception as error:
        made.shutdown()
        if "timed out during startup" in str(error):  # Ray gives itself half a minute
            pytest.skip("this machine is too busy for Ray to start")
        raise
    yield made
    made.shutdown()


def begun(folder, *arguments, **more):
    """The study in a process of its own, with a worker for each run that it trains at a time."""
    more = {"PYTHONPATH": str(folder), "KD_WORKERS": "2", "KD_SIDE_BY_SIDE": "2", "KD_DEVICE": "cpu", **more}
    return subprocess.Popen([sys.executable, "study.py", *arguments], cwd=folder, env=environment(**more), stderr=subprocess.PIPE, text=True)


def kept(folder):
    """What the store holds: {name: a record, or a file's bytes}."""
    files = {path.name: path for path in (folder / "store").glob("*/*")}
    return {name: json.loads(path.read_text())["record"] if path.suffix == ".json" else path.read_bytes() for name, path in files.items()}


def wait_for(what, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not what() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert what(), process.communicate()[1]


def workers():
    """Processes of Ray's that train."""
    return [process for process in psutil.process_iter(["cmdline"]) if "train_on_node" in " ".join(process.info["cmdline"] or ())]


def test_interrupted_and_with_a_node_lost_it_leaves_the_bytes_of_the_process_pool(project, cluster):
    plain = begun(project, "cnn3x8", EPOCHS)
    assert plain.wait() == 0, plain.communicate()[1]
    expected = kept(project)
    assert len(expected) == 6 + 2
    (project / "store").rename(project / "plain")

    first = begun(project, "cnn3x8", EPOCHS, KD_RAY=cluster.address)
    wait_for(lambda: len(workers()) == 2, first)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)
    wait_for(lambda: not workers(), first, 20)

    second = begun(project, "cnn3x8", EPOCHS, KD_RAY=cluster.address)
    wait_for(lambda: len(workers()) == 2, second)
    cluster.remove_node(cluster.killed, allow_graceful=False)
    said = second.communicate(timeout=400)[1]
    assert second.returncode == 0, said
    assert "study: a worker was lost (" in said and "; its runs go on elsewhere" in said
    assert kept(project) == expected
    assert not workers()
