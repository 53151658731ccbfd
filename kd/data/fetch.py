"""The raw archives: what they are (data.dvc alone knows), how they come here, what files are in them."""

import errno
import hashlib
import http.client
import io
import json
import os
import shutil
import tarfile
import urllib.request
import zlib
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml
from tqdm import tqdm

from kd.checkpoints import file_md5, write_atomically
from kd.errors import ConfigError, nearest
from kd.places import FILES, ROOT

BLOCK = 1 << 18  # bytes read at a time: small, so that a broken connection loses little
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
BROKEN = (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError)  # what a damaged archive raises
FULL = {errno.ENOSPC, errno.EDQUOT}


class Archive(NamedTuple):
    """One entry of data.dvc: `path` on this machine, `size` in bytes, `md5` in hex, published `addresses`."""

    name: str
    path: Path
    size: int
    md5: str
    addresses: tuple


def archives(folder=None):
    """Every archive of `folder`/data.dvc (default: the project's) as {name: Archive}. ConfigError if unreadable."""
    listed, folder = Path(folder or FILES) / "data.dvc", Path(folder or ROOT)
    try:
        outs = yaml.safe_load(listed.read_text())["outs"]
        return {
            out["meta"]["name"]: Archive(
                out["meta"]["name"],
                folder / out["path"],
                out["size"],
                out["md5"],
                tuple(out["meta"]["addresses"]),
            )
            for out in outs
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{listed} cannot be read ({what}): restore it from git") from None


def archive(name, folder=None):
    """The Archive called `name`, here or not. ConfigError, with the nearest name, if it is not in data.dvc."""
    known = archives(folder)
    if name not in known:
        raise ConfigError(f"no archive {name!r}{nearest(name, known)}: data.dvc lists {', '.join(sorted(known))}")
    return known[name]


def require_space(folder, needed, what):
    """ConfigError unless the disk of `folder` (which may not exist yet) has `needed` bytes free for `what`."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"{what} needs {needed / 1e6:,.0f} MB in {folder}, {free / 1e6:,.0f} MB are free"
        raise ConfigError(f"{what}: make room and run again")


def fetch(name, addresses=None, folder=None):
    """Download the archive `name` to its place in data.dvc, check it, and return its path.

    name:      cifar10 or cifar100.
    addresses: tried in order; each the full address of the file, or of the folder it lies in. Default: the
               environment variable KD_MIRRORS (the same, separated by commas), else those of data.dvc.
    folder:    where data.dvc lies and below which the archive goes; default the project.
    A broken download goes on where it stopped (a .part file beside the archive; HTTP Range); a server that
    cannot do that starts again. The file takes its name when size and md5 are right. Raises ConfigError: unknown
    name, too little disk, another file in its place, no address with the right content (a part with wrong
    content is deleted, an incomplete one stays for the next try).
    """
    wanted = archive(name, folder)
    path, part = wanted.path, wanted.path.with_name(wanted.path.name + ".part")
    if path.exists():
        if path.stat().st_size != wanted.size or file_md5(path) != wanted.md5:
            raise ConfigError(
                f"{path} is not the archive of data.dvc: delete it and run `python -m kd fetch {name}`"
            )
        print(f"{path} is here already, size and md5 are right")
        return path
    if addresses is None:
        addresses = os.environ.get("KD_MIRRORS", "").split(",")
    addresses = [address.strip() for address in addresses if address.strip()] or list(wanted.addresses)
    others = [other.path.name for other in archives(folder).values() if other.name != name]
    addresses = [_full(each, path.name) for each in addresses if not any(other in each for other in others)]
    if not addresses:
        raise ConfigError(f"no address for {path.name}: give one with --from or KD_MIRRORS")

    require_space(path.parent, wanted.size - (part.stat().st_size if part.exists() else 0), f"{path.name}")
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for address in addresses:
            failure = _from(address, part, wanted)
            if failure is None:
                os.replace(part, path)
                print(f"{path}: {wanted.size:,} bytes from {address}, md5 is right")
                return path
            failures.append(f"{address} {failure}")
    except OSError as error:  # the network's own errors end in `failures`: this is the disk
        what = f"{error.filename or part} ({error.strerror})"
        raise ConfigError(f"cannot write {what}: make room or mend the folder's rights") from None
    raise ConfigError(
        f"{name}: {'; '.join(failures)}: run it again to go on, or give --from ADDRESS of another copy"
    )


def _from(address, part, wanted):
    """Complete `part` from one address, as often as it breaks, while it grows. None if right, else what is wrong."""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if before < wanted.size:
                _download(address, part, before, wanted)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and (error.errno in FULL or error.filename == str(part)):
                raise
            if part.exists() and before < part.stat().st_size < wanted.size:
                continue
            return f"failed ({' '.join(str(error).split()) or type(error).__name__})"
        if part.stat().st_size == wanted.size and (found := file_md5(part)) == wanted.md5:
            return None
        elif part.stat().st_size != wanted.size:
            found = f"another size ({part.stat().st_size:,} bytes or more)"
        part.unlink()
        # With an earlier download's beginning, that may be what is wrong: then once more from the start.
        if before == 0:
            return f"holds other content: {found} where data.dvc says {wanted.size:,} bytes, md5 {wanted.md5}"


def _download(address, part, before, wanted):
    """Append to `part` from byte `before` on, at most a block beyond the wanted size. OSError when it breaks."""
    request = urllib.request.Request(address, headers={"User-Agent": "kd-fetch"})
    if before:
        request.add_header("Range", f"bytes={before}-")
    with urllib.request.urlopen(request, timeout=60) as answer:
        has = answer.headers.get("Content-Range", "")
        goes_on = answer.status == 206 and has.startswith(f"bytes {before}-")
        before = before if goes_on else 0
        length = answer.headers.get("Content-Length", "")
        with open(part, "ab" if goes_on else "wb") as file, _bar(wanted.size, before, part.stem) as bar:
            size = before
            while size <= wanted.size and (block := answer.read(BLOCK)):
                file.write(block)
                size += len(block)
                bar.update(len(block))
    if size < wanted.size and (not length.isdigit() or size - before < int(length)):
        raise ConnectionError(f"the connection ended after {size:,} of {wanted.size:,} bytes")


def _full(address, file_name):
    """An address that names the file stays (some append ?download=1 or /content); else it is a folder's."""
    return address if file_name in address else f"{address.rstrip('/')}/{file_name}"


def _bar(total, initial, label):
    """A progress bar in bytes; none where nobody watches (logs and executed notebooks stay byte-stable)."""
    return tqdm(total=total, initial=initial, desc=label, unit="B", unit_scale=True, disable=None)


def source_of(name, source, cache, md5=None):
    """(path to read, md5 of its bytes; of a folder's names, sizes and times). ConfigError if missing or not right.

    md5: what the archive at `source` must have; None: anything.
    """
    wanted = archive(name) if source is None and name != "imagefolder" else None
    if source is None and wanted is None:
        raise ConfigError("imagefolder needs a source: a folder or archive with train/CLASS/* and test/CLASS/*")
    path = Path(wanted.path if wanted else source)
    if not path.exists():
        remedy = f"run `python -m kd fetch {name}`" if wanted else "correct `source`"
        raise ConfigError(f"{path} is missing: {remedy}")
    if path.is_dir():
        if md5:
            raise ConfigError(f"{path} is a folder, and this profile was made for one archive (md5 {md5}): give that archive, or set data.md5 to null")
        digest = hashlib.md5(usedforsecurity=False)
        for file in sorted(
            Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names
        ):
            about = look(file, Path.stat)
            digest.update(
                json.dumps([file.relative_to(path).as_posix(), about.st_size, about.st_mtime_ns]).encode()
            )
        return path, digest.hexdigest()
    digest = "another size"
    if not wanted or path.stat().st_size == wanted.size:
        digest = _remembered_md5(path, cache)
    if wanted and digest != wanted.md5:
        what = f"{path} is not the archive of data.dvc ({digest})"
        raise ConfigError(f"{what}: delete it and run `python -m kd fetch {name}`")
    if md5 and digest != md5:
        raise ConfigError(f"{path} is not the archive this profile was made for (md5 {digest}, not {md5}): get it again, or set data.md5 to null")
    return path, digest


def _remembered_md5(path, cache):
    """md5 of a file, from `cache`/md5.json while its name, size and time are those it was computed for."""
    memory = cache and Path(cache) / "md5.json"
    try:
        known = dict(json.loads(memory.read_text())) if memory else {}
    except (OSError, ValueError, TypeError):
        known = {}
    key = json.dumps([str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns])
    if key not in known:
        known[key] = file_md5(path)
        if memory:
            try:
                write_atomically(memory, json.dumps(known, indent=1, sort_keys=True))
            except OSError as error:
                raise ConfigError(
                    f"cannot write {memory} ({error.strerror}): give another cache folder"
                ) from None
    return known[key]


def look(file, how):
    """how(file); ConfigError for a file that cannot be read, such as a broken link."""
    try:
        return how(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): mend or remove it") from None


def files_in(source):
    """(path inside, bytes or None for a folder) of all in a folder or tar archive; nothing is unpacked."""
    if source.is_dir():
        for folder, _, names in os.walk(source, followlinks=True):
            yield Path(folder).relative_to(source).as_posix(), None
            for file in map(Path(folder).joinpath, names):
                yield file.relative_to(source).as_posix(), look(file, Path.read_bytes)
        return
    try:
        with tarfile.open(source, "r:*") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if ".." in parts or member.name.startswith("/"):
                    raise ConfigError(
                        f"{source}: {member.name!r} points out of the archive: do not use this archive"
                    )
                if (member.issym() or member.islnk()) and Path(member.name).suffix.lower() in IMAGES:
                    how = "pack again with tar --dereference --hard-dereference"
                    raise ConfigError(f"{source}: {member.name} is a link: {how}")
                if member.isfile() or member.isdir():
                    yield "/".join(parts), tar.extractfile(member).read() if member.isfile() else None
            # A damaged header looks like the end to tarfile: the true end is a block of zeros, then a checksum.
            if isinstance(tar.fileobj, io.BufferedReader):
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise EOFError("its end is missing")
            while tar.fileobj.read(1 << 20):
                pass
    except BROKEN as error:
        raise ConfigError(f"{source} is not a whole tar archive ({' '.join(str(error).split())}): get or make it again") from None
