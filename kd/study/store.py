"""The store of finished runs: a run is trained once.

    store/PROGRAM/KEY.json                  its record, and the machine's
    store/PROGRAM/KEY.weights.safetensors   the student as trained, where a notebook looks into it
    store/PROGRAM/KEY.running.safetensors   how far an interrupted one came
    store/PROGRAM/route-KEY.safetensors     a teacher's route; supernet-KEY likewise

PROGRAM is the md5 of the program that trains (kd/program.py), KEY that of everything else that determines the run. So nothing is ever
invalidated: what has changed has another name. The store is no output of DVC's, which deletes outputs before a stage begins; what a
stage takes from it is copied into the stage's output, and what DVC has kept of that, here or on a remote, is taken back into an empty store.

What is damaged is named, removed and made anew. A file of weights that an older kd wrote, without a checksum, gets one if DVC's cache holds
the same bytes, for then they are known to be right; else it is made anew as well.
"""

import json
import shutil
from collections import defaultdict
from functools import cache
from hashlib import md5
from pathlib import Path

from kd import checkpoints
from kd.errors import ConfigError
from kd.methods import CURRICULA, KNOWLEDGE
from kd.processes import alone
from kd.program import closure, program
from kd.progress import say
from kd.study.paths import ROOT, STAGES, runs_path

STORE = ROOT / "store"


def module_of(method):
    """The module of a method's name in tables: "kd.methods.srm" for "srm"."""
    return f"kd.methods.{ {**KNOWLEDGE, **CURRICULA}[method].rpartition('.')[0] }"


@cache
def training_md5(methods):
    """md5, 12 hexadecimal digits, of the program that trains with the named methods, a tuple of names of tables.

    An executor's, a table's or a picture's code is no part of it.
    """
    return md5(program(closure(["kd.study.runs", "kd.training", *map(module_of, methods)])).encode()).hexdigest()[:12]


def program_of_run(run):
    """md5 of the program that trains a run."""
    return training_md5((*run["knowledge"], run["curriculum"]))


def place(program, key):
    """The path of an entry without its ending."""
    return STORE / program / key


def whole(path):
    """Whether a file or folder of weights is there and right throughout; one that is not is named and removed, to be made anew."""
    for file in path.glob("*.safetensors") if path.is_dir() else [path] if path.exists() else []:
        problem = checkpoints.fault(file)
        if problem and in_cache_of_dvc(checkpoints.file_md5(file)) and checkpoints.checksums(file)[0] is None:
            checkpoints.write_atomically(file, checkpoints.with_checksum(file.read_bytes()))
        elif problem:
            say(f"{file} {problem}; it is made anew")
            remove([path])
            return False
    return path.exists()


def one_at_a_time():
    """A context in which this process alone trains into the store: what another one has just trained need not be trained again."""
    return alone(STORE / "training.lock", "another training", waiting=say)


def in_cache_of_dvc(md5):
    """Whether DVC has kept content of this md5 here."""
    return (ROOT / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).exists()


def load(program, key, weights=False):
    """{"record", "machine"} of a finished run, or None: not known, damaged, or without the weights that are asked for."""
    stem = place(program, key)
    try:
        entry = json.loads(Path(f"{stem}.json").read_text())
        stated, record = entry.pop("md5", None), entry["record"]
        right = record["key"] == key and isinstance(entry["machine"], dict) and stated in (None, md5_of(record))  # None: an older kd's
    except IsADirectoryError:
        raise ConfigError(f"{stem}.json is a folder, not a record; delete it and run the same command again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not right:
        say(f"{stem}.json is damaged; its run is made anew")
        return None
    return entry if not weights or whole(Path(f"{stem}.weights.safetensors")) else None


def md5_of(record):
    """md5 of what a record says, in hexadecimal."""
    return md5(json.dumps(record, sort_keys=True).encode()).hexdigest()


def save(program, record, machine, weights=None):
    """Keep a finished run, the weights (a nest of tensors) first: an entry that can be read is whole."""
    stem = place(program, record["key"])
    if weights is not None:
        checkpoints.save_state(f"{stem}.weights.safetensors", weights, run=record["key"], network=record["run"]["student"])
    write_entry(stem, {**record, "program": program}, machine)
    Path(f"{stem}.running.safetensors").unlink(missing_ok=True)


def write_entry(stem, record, machine):
    """Write what `load` reads."""
    checkpoints.write_atomically(f"{stem}.json", json.dumps({"record": record, "machine": machine, "md5": md5_of(record)}))


def files_of_dvc():
    """All that DVC has, as a file system: the workspace, below it the cache and the default remote. None without a repository of DVC's."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo  # slow to import, seldom needed

    try:
        return Repo(str(ROOT)).dvcfs
    except DvcException:
        return None


def read_from_dvc(files, name):
    """The bytes of a file that DVC has, or None."""
    try:
        return files.cat_file(name) if files is not None and files.exists(name) else None
    except Exception:  # its content is nowhere, or whatever the client of a remote that does not answer raises: then it is trained
        return None


def absorb(profile):
    """Take into the store what DVC has of a profile's runs. Returns how many were new.

    A stage calls it when it misses a run: after `dvc pull` the store is empty, and the stage's own output, which DVC has just removed,
    lies in the cache alone.
    """
    files, found = files_of_dvc(), 0
    for stage in STAGES:
        folder = runs_path(profile, stage).relative_to(ROOT).as_posix()
        for line in (read_from_dvc(files, f"{folder}/records.jsonl") or b"").splitlines():
            try:
                record = json.loads(line)
                program, key = record.get("program"), record["key"]
            except (ValueError, KeyError, TypeError, AttributeError):
                say(f"a record of {folder}/records.jsonl is damaged; its run is made anew")
                continue
            weights = read_from_dvc(files, f"{folder}/{key}.safetensors") if record["run"]["seed"] == 0 else None
            if program and not load(program, key, weights=weights is not None):
                if weights is not None:
                    checkpoints.write_atomically(f"{place(program, key)}.weights.safetensors", checkpoints.with_checksum(weights))
                write_entry(place(program, key), record, {})
                found += 1
    return found


def absorb_teacher(path, about):
    """Take a teacher's file into the store if DVC has it and it is of the program and key in `about`."""
    files, name = files_of_dvc(), path.relative_to(ROOT).as_posix()
    try:
        stated = json.loads(read_from_dvc(files, f"{name.removesuffix('.safetensors')}.json") or b"{}")
    except ValueError:
        return
    if stated == about and (weights := read_from_dvc(files, name)):
        stem = place(about["program"], about["key"])
        checkpoints.write_atomically(f"{stem}.safetensors", checkpoints.with_checksum(weights))
        checkpoints.write_atomically(f"{stem}.json", json.dumps(about))


def contents():
    """{(profile, program, key): [files]} of everything in the store; profile "" for what cannot be told."""
    found = defaultdict(list)
    for path in sorted(STORE.glob("*/*")):
        found[path.parent.name, path.name.partition(".")[0]].append(path)
    return {(profile_of(files), *place): files for place, files in found.items()}


def profile_of(files):
    """The profile of an entry from its JSON, "" for one that never came to its end."""
    for path in files:
        if path.suffix == ".json":
            try:
                entry = json.loads(path.read_text())
                return entry["profile"] if "profile" in entry else entry["record"]["run"]["profile"]
            except (OSError, ValueError, KeyError, TypeError):
                return ""
    return ""


def size_of(path):
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def remove(paths):
    """Remove files and folders, and the program's folder once it is empty."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
