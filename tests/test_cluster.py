"""A study on a cluster of two nodes, here: interrupted, and one node lost in the middle, it leaves the bytes of the process pool's."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pipeline import clone, command, environment, hashes

from kd.errors import ConfigError
from kd.study import cluster as cluster_module

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
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
OTHER = {**NODE, "node_ip_address": "127.0.0.2"}  # a study joins the cluster at the address of the node that began last here


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = clone(tmp_path_factory.mktemp("clone"))
    (folder / "study.py").write_text(STUDY)
    return folder


@pytest.fixture
def cluster():
    """A head, which trains nothing, and two nodes of one CPU on this machine, one of them cluster.killed."""
    pytest.importorskip("ray", reason="needs Ray: make ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster()
    try:
        made.add_node(**NODE | {"num_cpus": 0}, include_dashboard=False)
        made.killed = made.add_node(**OTHER)
        made.add_node(**NODE)
    except Exception as error:
        made.shutdown()
        if "timed out during startup" in str(error):  # Ray gives itself half a minute
            pytest.skip("this machine is too busy for Ray to start")
        raise
    yield made
    made.shutdown()


def begun(folder, *arguments, **more):
    """The study in a process of its own, with a worker for each run that it trains at a time."""
    more = {"PYTHONPATH": str(folder), "KD_WORKERS": "2", "KD_SIDE_BY_SIDE": "2", "KD_DEVICE": "cpu", "KD_TEST": str(folder), **more}
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


def workers(folder):
    """Processes of Ray's that train for the study in a folder."""
    found = [process.info for process in psutil.process_iter(["cmdline", "environ"])]
    return [one for one in found if "train_on_node" in " ".join(one["cmdline"] or ()) and (one["environ"] or {}).get("KD_TEST") == str(folder)]


def test_what_is_missing_is_named_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^KD_RAY=auto: Ray is not installed here; `pip install 'kd-companion\[ray\]'`[^\n]*$"):
        cluster_module.train_all([], SimpleNamespace(ray="auto"), print)


@pytest.mark.parametrize("address, reason", [("127.0.0.1:1", "refused"), ("nonsense", "Invalid address"), ("auto", "Could not find any running Ray")])
def test_a_cluster_that_is_not_there_is_named_in_a_line(monkeypatch, tmp_path, address, reason):
    ray = pytest.importorskip("ray", reason="needs Ray: make ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    with pytest.raises(ConfigError, match=rf"^KD_RAY={address}: no cluster of Ray's \(.*{reason}[^\n]*ray start --head[^\n]*$"):
        cluster_module.join(ray, address)


def test_a_file_reaches_a_node_once_and_whole(monkeypatch, tmp_path):
    """Ray's object store is a dictionary here."""
    kept, asked = {}, []
    ray = SimpleNamespace(put=lambda data: (kept.setdefault(len(kept), data) and None) or len(kept) - 1, get=lambda ref: asked.append(ref) or kept[ref])
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster_module, "PIECE", 1000)
    (tmp_path / "file").write_bytes(os.urandom(2500))
    name, pieces = cluster_module.in_pieces(ray, tmp_path / "file")
    assert len(pieces) == 3
    for _ in range(2):
        path = Path(cluster_module.laid(tmp_path / "node", name, pieces))
        assert path.read_bytes() == (tmp_path / "file").read_bytes() and asked == pieces
    path.unlink()
    kept[pieces[1]] = b"other"
    with pytest.raises(OSError, match="did not arrive whole"):
        cluster_module.laid(tmp_path / "node", name, pieces)
    assert not path.exists()


def test_a_node_with_other_versions_is_refused_by_name():
    theirs = cluster_module.versions() | {"torch": "1.0"}
    with pytest.raises(ConfigError, match=r"^node .+ has .*'torch': '2.* are asked for; install the same versions on every node$"):
        next(cluster_module.train_on_node([], {}, {}, "cpu", 1, theirs))


def test_groups_fit_where_cpus_and_gpus_are_on_one_node():
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}}, {"Alive": True, "Resources": {"CPU": 3.0}}, {"Alive": False, "Resources": {"CPU": 9.0}}]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert cluster_module.places(ray, 1, 0) == 7 and cluster_module.places(ray, 2, 0) == 3
    assert cluster_module.places(ray, 1, 1) == 2 and cluster_module.places(ray, 1, 0.25) == 4


def test_a_node_sends_checkpoints_now_and_then_and_what_has_finished_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster_module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(cluster_module.store, "STORE", tmp_path / "here")
    monkeypatch.setattr(cluster_module, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(cluster_module.store, "program_of_run", lambda run: "program")
    found = {}

    def train_group(task, device, tell):
        stem = cluster_module.store.place("program", "key")
        found["begins with"] = Path(f"{stem}.running.safetensors").read_bytes()
        Path(f"{stem}.running.safetensors").write_bytes(b"further")
        tell(("key", 1, 1.0, False, "lesson 1/2"))
        while "epoch" not in found:
            time.sleep(0.01)
        for ending in ("weights.safetensors", "json"):
            Path(f"{stem}.{ending}").write_bytes(ending.encode())
        tell(("key", 2, 2.0, True, "done"))
        raise ConfigError("another run failed")

    monkeypatch.setattr(cluster_module, "train_group", train_group)
    monkeypatch.setattr(cluster_module, "key_of", lambda run: "key")
    stream = cluster_module.train_on_node([({}, {}, True)], {}, {"program/key.running.safetensors": b"begun"}, "cpu", 1, cluster_module.versions())
    assert next(stream) == (("key", 1, 1.0, False, "lesson 1/2"), {"program/key.running.safetensors": b"further"})
    found["epoch"] = True
    content = {"program/key.weights.safetensors": b"weights.safetensors", "program/key.json": b"json", "program/key.running.safetensors": None}
    assert next(stream) == (("key", 2, 2.0, True, "done"), content) and next(iter(content)).endswith("weights.safetensors")
    assert found["begins with"] == b"begun"
    with pytest.raises(ConfigError, match="another run failed"):
        next(stream)
    assert not list((tmp_path / f"kd-node-{os.getuid()}").rglob("key.json"))


def test_a_run_that_fails_on_a_node_is_named_here_in_a_line(project, cluster):
    process = begun(project, "other", EPOCHS, KD_RAY=cluster.address)
    said = process.communicate(timeout=400)[1]
    assert process.returncode == 1 and "Traceback" not in said
    assert re.search(r"^kd: (kd|at), seed \d: .* is of network 'cnn3x8', not 'other'; give the matching file or setting$", said, re.M), said


def test_interrupted_and_with_a_node_lost_it_leaves_the_bytes_of_the_process_pool(project, cluster):
    plain = begun(project, "cnn3x8", EPOCHS)
    assert plain.wait() == 0, plain.communicate()[1]
    expected = kept(project)
    assert len(expected) == 6 + 2
    (project / "store").rename(project / "plain")

    first = begun(project, "cnn3x8", EPOCHS, KD_RAY=cluster.address)
    wait_for(lambda: len(workers(project)) == 2, first)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)
    wait_for(lambda: not workers(project), first, 20)

    second = begun(project, "cnn3x8", EPOCHS, KD_RAY=cluster.address)
    wait_for(lambda: len(workers(project)) == 2, second)
    cluster.remove_node(cluster.killed, allow_graceful=False)
    said = second.communicate(timeout=400)[1]
    assert second.returncode == 0, said
    assert "study: a worker was lost (" in said and "; its runs go on elsewhere" in said
    assert kept(project) == expected
    assert not workers(project)


@pytest.mark.slow
def test_a_whole_study_with_a_node_lost_in_the_middle_leaves_the_same_bytes(tmp_path, cluster):
    here, away = clone(tmp_path / "here"), clone(tmp_path / "away")
    for folder in (here, away):
        command(folder, "kd", "use", "smoke")
    command(here, "kd", "repro")
    with open(tmp_path / "said", "w") as said:
        main = subprocess.Popen([sys.executable, "-m", "kd", "repro"], cwd=away, env=environment(KD_RAY=cluster.address, KD_TEST=str(away)), stdout=said, stderr=said)
        wait_for(lambda: (away / "runs/smoke/kr/records.jsonl").exists() and len(workers(away)) == 2, main, 7200)
        cluster.remove_node(cluster.killed, allow_graceful=False)
        main.wait(7200)
    assert main.returncode == 0 and "a worker was lost (" in (tmp_path / "said").read_text()
    made = ["data/smoke", "models/smoke", "runs/smoke", "reports/smoke"]
    assert hashes(away, *made) == hashes(here, *made)
