"""Files of weights: one safetensors file each, never pickle, written whole or not at all.

Tensors lie in the file's body; everything else (positions, histories) is JSON in its header, under one key, so that the
same content gives the same bytes. Beside it the header states a checksum, `md5`: that of the file as it is without this
entry. Whoever loads a file compares it first, so that a flipped bit is never taken for a weight.
"""

import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kd.errors import ConfigError

HEADER = b'{"__metadata__":{'  # how a header with metadata begins, behind the 8 bytes that hold its length
CHECKSUM = b'"md5":"%s",       '  # 48 bytes: a header's length is a multiple of 8, and spaces mean nothing in JSON
WITH_CHECKSUM = re.compile(rb'.{8}\{"__metadata__":\{"md5":"([0-9a-f]{32})", {7}', re.DOTALL)
REMEDY = "delete it and run `dvc repro` again"


def pack(state):
    """Split a nest of dicts, lists, tensors and scalars into ({name: tensor}, JSON-able skeleton)."""
    tensors = {}

    def walk(value, name):
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        if isinstance(value, dict):
            # pairs, because JSON would turn an optimizer's integer keys into strings
            return {"dict": [[k, walk(v, f"{name}/{k}")] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [walk(v, f"{name}/{i}") for i, v in enumerate(value)], "tuple": isinstance(value, tuple)}
        return value

    return tensors, walk(state, "")


def unpack(tensors, skeleton):
    """The inverse of `pack`."""
    if not isinstance(skeleton, dict):
        return skeleton
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "dict" in skeleton:
        return {k: unpack(tensors, v) for k, v in skeleton["dict"]}
    items = [unpack(tensors, v) for v in skeleton["list"]]
    return tuple(items) if skeleton["tuple"] else items


def check_writable(path):
    """Make the folder of `path`. ConfigError where nothing can be written: told before hours of work, not after."""
    folder = Path(path).absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} may not be written to; mend its permissions or write elsewhere")


def write_atomically(path, content):
    """Write bytes or text so that `path` holds either its old content or all of the new one, even after a kill -9."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    if shutil.disk_usage(path.parent).free < len(content) + 2**20:
        size = f"{len(content) / 2**20:.1f} MiB"
        raise ConfigError(f"{path}: too little disk for {size}; free some and go on with the same command")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def with_checksum(content):
    """The bytes of a safetensors file with metadata, with the md5 of themselves in its header; as they are if they have one."""
    if WITH_CHECKSUM.match(content):
        return content
    entry, begin = CHECKSUM % md5(content).hexdigest().encode(), 8 + len(HEADER)
    length = int.from_bytes(content[:8], "little") + len(entry)
    return b"".join([length.to_bytes(8, "little"), content[8:begin], entry, memoryview(content)[begin:]])


def checksums(path):
    """(the md5 that a file states in its header, the md5 of all the rest); the first is None where it states none."""
    with open(path, "rb") as file:
        begin = file.read(8 + len(HEADER) + len(CHECKSUM % (b"0" * 32)))
        stated = WITH_CHECKSUM.match(begin)
        if stated:
            length = (int.from_bytes(begin[:8], "little") - (len(begin) - 8 - len(HEADER))) % 2**64
            begin = length.to_bytes(8, "little") + HEADER
        digest = md5(begin)
        while block := file.read(2**20):
            digest.update(block)
    return stated and stated[1].decode(), digest.hexdigest()


def fault(path):
    """What is wrong with a file of weights, as words to follow its name; None if it is there and right.

    A file of another run or network is no fault: what a file is of, `load_state` asks.
    """
    try:
        stated, found = checksums(path)
    except FileNotFoundError:
        return "is missing"
    except IsADirectoryError:
        return "is a folder, not a file of weights"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stated is None:
        return "has no checksum: its beginning is damaged, or an older kd wrote it"
    return None if stated == found else f"is damaged (its md5 is {found}, and it states {stated})"


def save_state(path, state, **about):
    """Save a nest of tensors and JSON values. `about`: what it is (network=, data=, ...), checked when it is loaded."""
    tensors, skeleton = pack(state)
    header = json.dumps({"about": about, "state": skeleton}, sort_keys=True)
    # tensors that share memory cannot be saved twice by safetensors; a clone is cheap and always right
    seen = set()
    for name, tensor in tensors.items():
        pointer = tensor.data_ptr()
        if tensor.numel() and pointer in seen:
            tensors[name] = tensor.clone()
        seen.add(pointer)
    write_atomically(path, with_checksum(save(tensors, metadata={"kd": header})))


def load_state(path, device="cpu", **expected):
    """The state saved at `path`, its tensors on `device`.

    Raises ConfigError when the file is missing, truncated, damaged or without a checksum, no file of ours, or when what
    `expected` asks for (network="resnet20", ...) is not what the file says of itself.
    """
    path = Path(path)
    with opened(path, str(device)) as (file, header):
        if problem := fault(path):
            raise ConfigError(f"{path} {problem}; {REMEDY}")
        check_about(path, header["about"], expected)
        return unpack({name: file.get_tensor(name) for name in file.keys()}, header["state"])


def about(path):
    """What a file says of itself, without reading its tensors or comparing its checksum. Raises ConfigError as `load_state` does."""
    with opened(Path(path)) as (_, header):
        return header["about"]


@contextmanager
def opened(path, device="cpu"):
    """(a safetensors file, the JSON in its header). ConfigError for a path that is no whole file of kd's."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a file of weights; give a file in it")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file, json.loads((file.metadata() or {})["kd"])
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run the stage that makes it (`dvc repro`)") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is truncated or damaged ({error}); {REMEDY}") from None
    except KeyError:
        raise ConfigError(f"{path} is a safetensors file, but not one that kd wrote; give one that kd saved") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); mend its permissions or give another") from None


class Checkpoint:
    """Where a run saves itself, at the ends of epochs that lie `every` seconds or more apart.

    about: what the run is (network=, data=, method=, ...); a file of another run is refused by name.
    """

    def __init__(self, path, every=30.0, **about):
        self.path, self.every, self.about, self.saved = Path(path), every, about, time.monotonic()

    def load(self):
        """The state saved, or None. Raises ConfigError as `load_state` does."""
        return load_state(self.path, **self.about) if self.path.exists() else None

    def due(self):
        return time.monotonic() - self.saved >= self.every

    def save(self, state):
        save_state(self.path, state, **self.about)
        self.saved = time.monotonic()

    def remove(self):
        shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink(missing_ok=True)


def random_state(device):
    """The state of torch's generators, on the CPU and on `device`."""
    return {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state, device):
    """Put torch's generators into the state that `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)


def check_about(path, found, expected):
    """Raise ConfigError unless every expected entry stands in `found`."""
    for key, value in expected.items():
        if found.get(key) != value:
            reason = f"{path} is of {key} {found.get(key)!r}, not {value!r}"
            raise ConfigError(f"{reason}; give the matching file or setting")


def load_weights(network, weights, path):
    """`network.load_state_dict` with a one-line ConfigError when the weights are another network's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
        raise ConfigError(f"{path}: the weights do not fit {type(network).__name__} ({reason[:150]})") from None
    return network


def file_md5(path):
    """The md5 of a file's bytes, in hexadecimal; of a file that states a checksum, that of all the rest.

    So a file of weights has the md5 that records name it by, whether a kd wrote it that gave it a checksum or an older one.
    """
    return checksums(path)[1]
