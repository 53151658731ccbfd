"""Files of weights: one safetensors file each, never pickle, written whole or not at all.

Tensors lie in the file's body; everything else (positions, histories) is JSON in its header, under one key, so that the
same content gives the same bytes.
"""

import json
import os
import shutil
import time
from hashlib import md5
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kd.errors import ConfigError


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
    write_atomically(path, save(tensors, metadata={"kd": header}))


def load_state(path, device="cpu", **expected):
    """The state saved at `path`, its tensors on `device`.

    Raises ConfigError when the file is missing, truncated, no file of ours, or when what `expected` asks for
    (network="resnet20", ...) is not what the file says of itself.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})["kd"])
            check_about(path, header["about"], expected)
            return unpack({name: file.get_tensor(name) for name in file.keys()}, header["state"])
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run the stage that makes it (`dvc repro`)") from None
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"{path} is truncated or damaged ({error}); delete it and run `dvc repro` again") from None
    except KeyError:
        raise ConfigError(f"{path} is a safetensors file, but not one that kd wrote; give one that kd saved") from None


def about(path):
    """What a file says of itself, without reading its tensors. Raises ConfigError as `load_state` does."""
    try:
        with safe_open(Path(path), framework="pt") as file:
            return json.loads(file.metadata()["kd"])["about"]
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; run the stage that makes it (`dvc repro`)") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = f"{path} is not a whole file of kd's ({error})"
        raise ConfigError(f"{reason}; delete it and run `dvc repro` again") from None


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
        self.path.unlink(missing_ok=True)


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
    """The md5 of a file's bytes, in hexadecimal."""
    digest = md5()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
