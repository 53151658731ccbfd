"""Groups of runs on many machines, by Ray: `KD_RAY=auto dvc repro`. How to start a cluster: docs/cluster.md.

The machines share nothing but Ray. This package goes to every node with the job, data and teachers through Ray's object store, once a
node; finished runs come back to the store here as they end, checkpoints every few minutes. When a worker or its node dies, what it had
under way goes on elsewhere, from the checkpoint that came here last or, on the same machine, from its own.
"""

import os
import platform
import queue
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import numpy
import torch
from filelock import FileLock

from kd.checkpoints import write_atomically
from kd.errors import ConfigError
from kd.loggers import logger_asked
from kd.places import PACKAGE
from kd.processes import same_environment
from kd.study import store
from kd.study.group import KEEP_MEMORY, groups, train_group
from kd.study.runs import key_of
from kd.study.settings import on_gpus

PIECE = 2**26  # bytes in which files travel: a node needs no room for all of a file in its object store
CHECKPOINT_SECONDS = 300  # between two checkpoints of a run that come here; a node keeps one every 30 seconds for itself
DEATHS = 5  # of a group's workers, after which the group itself is to blame
UNUSED = 7 * 24 * 3600  # seconds after which a node removes what no run has used


def train_all(wanted, found, tell):
    """Train runs on the cluster at `found.ray` (Settings), each into the store as it ends. To be called in a process of its own.

    wanted: [(run, paths, keep the weights?), ...]. tell: as for kd.study.group.train_group, and called with an int: how many groups
    the cluster trains at a time. ConfigError where Ray or its cluster is not there; the failure of a run as `train_group` raises it.
    """
    ray, log = import_ray(found.ray), store.STORE / "ray.log"
    log.parent.mkdir(exist_ok=True)
    with open(log, "ab") as file:  # of what Ray prints nothing belongs into a notebook
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        join(ray, found.ray)
        device = os.environ.get("KD_DEVICE", "").partition(":")[0] or ("cuda" if ray.cluster_resources().get("GPU") else "cpu")
        demand = {"num_cpus": found.threads if device == "cpu" else 1, "num_gpus": found.gpu_share if device == "cuda" else 0}
        if not places(ray, **demand):
            tell(f"no node of the cluster has {demand['num_cpus']} CPUs and {demand['num_gpus']:g} GPUs for a group of runs; waiting for one")
        tasks = groups(wanted, replace(found, device=device, workers=max(1, places(ray, **demand))))
        files = {path: in_pieces(ray, path) for path in sorted({path for _, paths, _ in wanted for path in paths.values()})}
        environment = {**KEEP_MEMORY, **same_environment(), **{name: value for name, value in os.environ.items() if name.startswith("KD_")}}
        environment |= {"KD_DEVICE": device, "KD_RAY": "", "KD_PROGRESS": ""}
        train = ray.remote(train_on_node).options(
            **demand, max_retries=0, num_returns="streaming", scheduling_strategy="SPREAD", runtime_env={"env_vars": environment}
        )
        going, done = {}, set()

        def begin(task, deaths):
            left = [item for item in task if key_of(item[0]) not in done]
            needed = {path: files[path] for _, paths, _ in left for path in paths.values()}
            going[train.remote(left, needed, running(left), device, found.threads, versions())] = left, deaths

        tell(max(1, places(ray, **demand)))
        for task in tasks:
            begin(task, 0)
        while going:
            (stream,), _ = ray.wait(list(going), num_returns=1)
            try:
                message, content = ray.get(next(stream))
            except StopIteration:
                del going[stream]
                tell(max(1, places(ray, **demand)))
            except ray.exceptions.RayTaskError as error:
                error.cause.add_note(str(error))  # where on the node it was
                raise error.cause from None
            except ray.exceptions.RayError as error:
                task, deaths = going.pop(stream)
                reason = " ".join(str(error).split()).partition(". ")[0]  # the rest is advice on Ray's own logs
                if deaths == DEATHS:
                    raise ConfigError(f"a group of runs lost its worker {DEATHS + 1} times ({reason:.200}); see {log}") from None
                tell(f"a worker was lost ({reason:.200}); its runs go on elsewhere")
                begin(task, deaths + 1)
            else:
                put(content)
                if isinstance(message, tuple) and message[3]:
                    done.add(message[0])
                tell(message)
    finally:
        ray.shutdown()  # and with the job Ray ends all its workers


# --- here


def import_ray(address):
    """The module ray; ConfigError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError(f"KD_RAY={address}: Ray is not installed here; `pip install 'kd-companion[ray]'`, in a clone `make ray`") from None
    return ray


def join(ray, address):
    """Join a running cluster; ConfigError where there is none, or where it runs another Ray or Python."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and host:  # Ray itself would knock for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        modules = [str(PACKAGE), *logger_path()]
        ray.init(address, log_to_driver=False, logging_level="ERROR", runtime_env={"py_modules": modules, "excludes": ["__pycache__"]})
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        remedy = "start one with `ray start --head` on this machine and say KD_RAY=auto, or give the HOST:PORT of one that this machine has joined"
        raise ConfigError(f"KD_RAY={address}: no cluster of Ray's ({reason:.300}); {remedy}") from None


def logger_path():
    """The file or folder of KD_LOGGER's module, in a list, unless it is installed as a package: then nodes have it as well."""
    if not logger_asked():
        return []
    module = sys.modules[os.environ["KD_LOGGER"].partition(":")[0].partition(".")[0]]
    path = next(iter(getattr(module, "__path__", ())), getattr(module, "__file__", None))
    return [path] if path and "site-packages" not in path else []


def places(ray, num_cpus, num_gpus):
    """How many groups of this demand the nodes that live train at a time."""
    having = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(has.get("CPU", 0) / num_cpus) for has in having]
    return sum(min(fits, on_gpus(has.get("GPU", 0), num_gpus)) if num_gpus else fits for fits, has in zip(cpus, having, strict=True))


def in_pieces(ray, path):
    """(name, [pieces]): a file in Ray's object store, named by its md5."""
    digest, pieces = md5(), []
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            pieces.append(ray.put(piece))
    return digest.hexdigest(), pieces


def versions():
    """What must be the same on every node, for bits to be; torch's builds for CPU and GPU count as one version."""
    return {"python": platform.python_version().rpartition(".")[0], "torch": torch.__version__.partition("+")[0], "numpy": numpy.__version__}


def names(program, key):
    """Paths below the store of what a run leaves there: weights, record, checkpoint."""
    return [f"{program}/{key}.{ending}" for ending in ("weights.safetensors", "json", "running.safetensors")]


def running(task):
    """{path below the store: bytes} of the checkpoints that are here of a task's runs."""
    paths = [names(store.program_of_run(run), key_of(run))[-1] for run, *_ in task]
    return {path: (store.STORE / path).read_bytes() for path in paths if (store.STORE / path).exists()}


def put(content):
    """Put {path below the store: bytes, or None for a file to be removed} into the store, in this order."""
    for path, data in content.items():
        if data is None:
            (store.STORE / path).unlink(missing_ok=True)
        else:
            write_atomically(store.STORE / path, data)


# --- on a node


def train_on_node(task, files, checkpoints, device, threads, expected):
    """Train a group of runs in a worker of Ray's. A generator of (message of train_group, {path below the store: bytes or None}).

    files: {path: what `in_pieces` gave}. checkpoints: what `running` gave. expected: `versions` of where it began.
    """
    if (mine := versions()) != expected:
        raise ConfigError(f"node {platform.node()} has {mine}, and {expected} are asked for; install the same versions on every node")
    folder = Path(tempfile.gettempdir()) / f"kd-node-{os.getuid()}"  # not Ray's own, which goes with the cluster
    sweep(folder)
    store.STORE = folder / "store"
    task = [(run, {kind: laid(folder, *files[path]) for kind, path in paths.items()}, keep) for run, paths, keep in task]
    put({path: data for path, data in checkpoints.items() if not (store.STORE / path).exists()})
    programs, sent = {key_of(run): store.program_of_run(run) for run, *_ in task}, dict.fromkeys((key_of(run) for run, *_ in task), time.monotonic())
    messages = queue.SimpleQueue()

    def work():  # beside the generator, which must be free to pass on what is told
        try:
            torch.set_num_threads(threads)  # counts for the thread that asks
            train_group(task, device, messages.put)
            messages.put(None)
        except BaseException as error:
            messages.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (message := messages.get()) is not None:
        if isinstance(message, BaseException):
            raise message
        content = {}
        if isinstance(message, tuple):
            key, over = message[0], message[3]
            weights, record, checkpoint = names(programs[key], key)
            if over:
                content = {path: (store.STORE / path).read_bytes() for path in (weights, record) if (store.STORE / path).exists()}
                put(dict.fromkeys(content))
                content[checkpoint] = None
            elif time.monotonic() - sent[key] > CHECKPOINT_SECONDS:
                with suppress(FileNotFoundError):  # none yet, or meanwhile it came to its end
                    content[checkpoint], sent[key] = (store.STORE / checkpoint).read_bytes(), time.monotonic()
        yield message, content


def laid(folder, name, pieces):
    """The path of a file in the node's folder, brought there from Ray's object store by whoever needs it first."""
    import ray

    path = folder / "files" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            digest, part = md5(), path.with_suffix(".part")
            with open(part, "wb") as file:
                for piece in pieces:
                    data = ray.get(piece)
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != name:
                raise OSError(f"{path} did not arrive whole on {platform.node()}")
            os.replace(part, path)
    os.utime(path)
    return str(path)


def sweep(folder):
    """Remove from a node's folder what no run has used for long."""
    for path in folder.glob("*/**/*"):
        with suppress(OSError):
            if path.is_file() and path.suffix != ".lock" and time.time() - path.stat().st_mtime > UNUSED:
                path.unlink()
