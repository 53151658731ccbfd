"""Settings of the machine, all from the environment. None of them changes a result, but KD_THREADS and KD_RANKS may change last bits.

    KD_DEVICE=cpu          where to train; default: the GPU where torch sees one, else the CPU
    KD_WORKERS=4           processes side by side; default: one a core on the CPU, on GPUs one for each KD_GPU_SHARE of them
    KD_GPU_SHARE=0.25      share of a GPU that a process takes, for small runs; default 1. Processes go round all GPUs that torch sees
    KD_RAY=auto            train on a cluster instead: the one that Ray runs here, or the one at HOST:PORT (docs/cluster.md)
    KD_THREADS=1           threads a process computes with on the CPU; one, so that no result depends on the number of cores
    KD_RANKS=2             processes that train one run together, on a GPU each; default: 1 (kd/ranks.py)
    KD_MEMORY_SHARE=0.5    share of the free memory that images may take before they are read from disk as they are needed
    KD_DECODERS=2          processes that decode JPEG files, beside each that trains; default: the cores, shared out among those that train
    KD_SIDE_BY_SIDE=8      runs that advance together in one process and share batches and teachers; 1: each alone
    KD_LOGGER=mine:log     called as log(run, entry) after every epoch of every student, teacher and supernet (kd/loggers.py)
    KD_GRAPHS=1            on a GPU: each training step as one CUDA graph (kd/graphs.py)
"""

import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from kd import graphs, ranks
from kd.errors import ConfigError

MOST_WORKERS = 256  # more than that is a slip of the keyboard: every worker is a process with torch in it


FEWEST_FILES = 256  # that a notebook's kernel with its libraries, pipes and workers has open at once


@dataclass(frozen=True)
class Settings:
    """What the environment says, checked: device, workers (runs or groups of runs at once), threads (of each process, on the CPU),
    memory_share, decoders (processes beside each), side_by_side (runs that advance together in a process), ranks (processes that train
    one run together), gpu_share (of a GPU, that a process takes), ray (a cluster's address, or "")."""

    device: str
    workers: int
    threads: int
    memory_share: float
    decoders: int
    side_by_side: int
    ranks: int
    gpu_share: float
    ray: str


def settings():
    """The Settings in force. ConfigError for a device that is not there and for a number out of its range."""
    device = os.environ.get("KD_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if torch.zeros(1, device=device).device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
    except (RuntimeError, AssertionError):
        raise ConfigError(f"KD_DEVICE={device}: there is no such device here; cpu always is, cuda where torch sees a GPU") from None
    cores, several, share = os.cpu_count(), number("KD_RANKS", int, 1, MOST_WORKERS), number("KD_GPU_SHARE", float, 1, 1)
    gpus = {"cpu": 0, "cuda": torch.cuda.device_count()}.get(device, 1)
    if device.startswith("cuda") and several > torch.cuda.device_count():
        raise ConfigError(f"KD_RANKS={several}: each needs a GPU of its own, and torch sees {torch.cuda.device_count()} here")
    if several > 1 and os.environ.get("KD_RAY"):
        raise ConfigError("KD_RANKS and KD_RAY do not go together: a cluster trains many runs, ranks train one; unset either")
    if on_gpus(gpus, share) > MOST_WORKERS:
        raise ConfigError(f"KD_GPU_SHARE={share:g}: that makes {on_gpus(gpus, share):.3g} processes here, at most {MOST_WORKERS}; give a larger share")
    together = 1 if gpus else max(1, cores // several)  # groups at a time where each run has several processes
    workers = number("KD_WORKERS", int, together if several > 1 else on_gpus(gpus, share) or cores, MOST_WORKERS)
    return Settings(
        device,
        workers,
        number("KD_THREADS", int, 1, cores),
        number("KD_MEMORY_SHARE", float, 0.5, 1),
        number("KD_DECODERS", int, max(1, cores // (workers * several)), MOST_WORKERS),
        # a recorded step replays its own teacher's passes, so that nothing could be shared
        1 if graphs.wanted(torch.device(device)) or several > 1 else number("KD_SIDE_BY_SIDE", int, 8, MOST_WORKERS),
        several,
        share,
        os.environ.get("KD_RAY", ""),
    )


def on_gpus(count, share):
    """How many processes, each with `share` of a GPU, fit onto `count` GPUs: a process's share lies on one of them."""
    return int(count) * int(1 / share + 1e-9)


def devices(found):
    """The device of each worker under the Settings `found`, a list of names: "cuda" is every GPU that torch sees, in turn."""
    gpus = torch.cuda.device_count() if found.device == "cuda" else 0
    return [f"cuda:{number % gpus}" if gpus else found.device for number in range(found.workers)]


def number(name, kind, default, most):
    """The environment variable `name`, in (0, most]; unset or empty: the default. ConfigError for anything else."""
    text = os.environ.get(name)
    try:
        value = kind(text) if text else default
    except ValueError:
        value = 0
    if not 0 < value <= most:
        raise ConfigError(f"{name}={text}: give a {'whole ' * (kind is int)}number above 0, at most {most}")
    return value


def check_files_allowed():
    """ConfigError where a process may open too few files at once for workers and kernels; as many as are allowed are asked for first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < FEWEST_FILES:
        raise ConfigError(f"a process may open {soft} files here, and {FEWEST_FILES} are needed; raise the limit with `ulimit -n`")


def use_device():
    """The device for training in this process, which on the CPU computes with as many threads as the settings say."""
    found = settings()
    if found.device == "cpu":
        torch.set_num_threads(found.threads)
    return found.device


def machine(device):
    """What a run was trained on, for the machine's own record: device, ranks, threads, peak memory in MiB, versions; of rank 0."""
    import numpy

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    found = {"device": device_name(device), "ranks": ranks.count(), "threads": torch.get_num_threads()}
    return found | {"peak_memory_mib": peak_memory(device), "versions": versions}


def device_name(device):
    """The GPU's name; of a CPU what it calls itself, and the number of its cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def peak_memory(device="cpu"):
    """The most memory that this process has used on the device so far, in MiB."""
    if device.startswith("cuda"):
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    if Path("/proc/self/status").exists():  # Linux's ru_maxrss is no less than that of the process which started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
