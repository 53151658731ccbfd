"""The raw archives: what they are (data.dvc alone knows), how they come here, what files are in them."""

import bz2
import errno
import gzip
import hashlib
import http.client
import json
import lzma
import os
import shutil
import stat
import tarfile
import threading
import time
import urllib.request
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml
from tqdm import tqdm

from kd.checkpoints import file_md5, write_atomically
from kd.errors import ConfigError, nearest
from kd.places import FILES, ROOT
from kd.processes import alone
from kd.progress import say

BLOCK = 1 << 18  # bytes read at a time: small, so that a broken connection loses little
PATIENCE = 60  # seconds in which a server must begin to answer, and then bring SLOWEST bytes a second
SLOWEST = 1024  # bytes a second, below which a download of 170 MB would take two days
LITTLE = 1 << 20  # bytes: a connection that brings fewer before it breaks counts as a failure
FAILURES = 8  # that many at one address are enough
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
LARGEST = 1 << 28  # bytes of a file in an archive: CIFAR-100's largest has 155 million
UNPACKED = 100  # times the archive's own bytes is the most that is read out of it, and at least a gigabyte
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
    cannot do that starts again. The file takes its name when size and md5 are right. A second fetch waits for the first.
    Raises ConfigError: unknown name, too little disk, another file in its place, no address with the right content (a
    part with wrong content is deleted, an incomplete one stays for the next try), servers that break off too often.
    """
    wanted = archive(name, folder)
    path, part = wanted.path, wanted.path.with_name(wanted.path.name + ".part")
    if _is_here(wanted):
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
        with alone(path.parent.with_name(f".{path.name}.lock"), f"another fetch of {name}", waiting=say):
            if _is_here(wanted):  # the other one has brought it
                return path
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


def _is_here(wanted):
    """Whether the archive is in its place; ConfigError if another file is."""
    if not wanted.path.exists():
        return False
    if wanted.path.stat().st_size != wanted.size or file_md5(wanted.path) != wanted.md5:
        raise ConfigError(f"{wanted.path} is not the archive of data.dvc: delete it and run `python -m kd fetch {wanted.name}`")
    print(f"{wanted.path} is here already, size and md5 are right")
    return True


def _from(address, part, wanted):
    """Complete `part` from one address, as often as it breaks, while it grows. None if right, else what is wrong."""
    failures, content_was_wrong = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if before < wanted.size:
                _download(address, part, before, wanted)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and (error.errno in FULL or error.filename == str(part)):
                raise
            what, size = " ".join(str(error).split()) or type(error).__name__, part.stat().st_size if part.exists() else 0
            failures += size - before < LITTLE
            if before < size < wanted.size and failures < FAILURES:
                say(f"{address}: {what}; going on from there")
                continue
            return f"failed ({what}{f', and broke off {failures} times' if failures > 1 else ''})"
        if part.stat().st_size == wanted.size and (found := file_md5(part)) == wanted.md5:
            return None
        elif part.stat().st_size != wanted.size:
            size = part.stat().st_size
            found = f"another size ({f'more than {wanted.size:,}' if size > wanted.size else f'{size:,}'} bytes)"
        part.unlink()
        # With an earlier download's beginning, that may be what is wrong: then once more from the start.
        if before == 0 or content_was_wrong:
            return f"holds other content: {found} where data.dvc says {wanted.size:,} bytes, md5 {wanted.md5}"
        content_was_wrong = True


def _download(address, part, before, wanted):
    """Append to `part` from byte `before` on, at most a block beyond the wanted size. OSError when it breaks or drags on."""
    request = urllib.request.Request(address, headers={"User-Agent": "kd-fetch"})
    if before:
        request.add_header("Range", f"bytes={before}-")
    with _opened(request) as answer:
        has = answer.headers.get("Content-Range", "")
        goes_on = answer.status == 206
        if goes_on and not has.startswith(f"bytes {before}-"):
            raise ConnectionError(f"asked to go on from byte {before}, it answers with {has or 'another part'!r}")
        before = before if goes_on else 0
        length = answer.headers.get("Content-Length", "")
        with open(part, "ab" if goes_on else "wb") as file, _bar(wanted.size, before, part.stem) as bar:
            size, mark, since = before, before, time.monotonic()
            while size <= wanted.size and (block := answer.read1(BLOCK)):
                file.write(block)
                size += len(block)
                bar.update(len(block))
                if time.monotonic() - since > PATIENCE:
                    if size - mark < SLOWEST * PATIENCE:
                        raise TimeoutError(f"only {size - mark:,} bytes in {PATIENCE} seconds")
                    mark, since = size, time.monotonic()
    if size < wanted.size and (not length.isdigit() or size - before < int(length)):
        raise ConnectionError(f"the connection ended after {size:,} of {wanted.size:,} bytes")


def _opened(request):
    """The server's answer. TimeoutError where it has not begun within PATIENCE, though it may send a byte now and then."""
    found = []

    def ask():
        try:
            found.append(urllib.request.urlopen(request, timeout=PATIENCE))
        except Exception as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if not found:
        raise TimeoutError(f"no answer in {PATIENCE} seconds")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _full(address, file_name):
    """An address that names the file stays (some append ?download=1 or /content); else it is a folder's."""
    return address if file_name in address else f"{address.rstrip('/')}/{file_name}"


def _bar(total, initial, label):
    """A progress bar in bytes; none where nobody watches (logs and executed notebooks stay byte-stable)."""
    return tqdm(total=total, initial=initial, desc=label, unit="B", unit_scale=True, disable=None)


def check_readable(source):
    """ConfigError for what is neither a folder nor a file: to open a pipe would wait for ever."""
    if not Path(source).is_dir() and not Path(source).is_file():
        raise ConfigError(f"{source} is a pipe, a device or the like, not an archive: correct `source`")


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
    check_readable(path)
    if path.is_dir():
        if md5:
            raise ConfigError(f"{path} is a folder, and this profile was made for one archive (md5 {md5}): give that archive, or set data.md5 to null")
        digest = hashlib.md5(usedforsecurity=False)
        for file in sorted(file for _, file in walk(path) if file is not None):
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


def files_in(source, wanted):
    """(path inside, bytes or None for a folder) of all in a folder or tar archive; nothing is unpacked.

    wanted: (path) -> whether the file is to be read; of others the bytes are none. ConfigError for what no archive of images
    holds: pipes and devices, links that lead in circles, a file of more than LARGEST bytes, and (UNPACKED) far more bytes than
    the archive has.
    """
    if source.is_dir():
        for folder, path in walk(source):
            if path is None:
                yield folder.relative_to(source).as_posix(), None
                continue
            inside = path.relative_to(source).as_posix()
            yield inside, _regular(path) if wanted(inside) else b""
        return
    try:
        with open(source, "rb") as raw, _unpacked(raw) as stream:
            bounded = _Bounded(stream, source, max(2**30, UNPACKED * source.stat().st_size))
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # else it remembers all of them
                    path = path_inside(source, member)
                    if member.isdir():
                        yield path, None
                    elif member.isfile():
                        if wanted(path) and member.size > LARGEST:
                            bounded.refuse(f"{path} says that it has {member.size:,} bytes, no file of images has")
                        yield path, tar.extractfile(member).read() if wanted(path) else b""
                # A damaged header looks like the end to tarfile: the true end is a block of zeros, then a checksum.
                if stream is raw:
                    raw.seek(tar.offset)
                    if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise EOFError("its end is missing")
                while bounded.read(1 << 20):
                    pass
    except ConfigError:
        raise
    except Exception as error:  # of a damaged archive tarfile raises TarError, zlib.error, ValueError, RecursionError and more
        what = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{source} is not a whole tar archive ({what}): get or make it again") from None


def walk(source):
    """(folder, None), then (folder, path) of each of its files, for a folder and all below it, links followed."""
    for folder, folders, names in os.walk(source, followlinks=True):
        here = Path(folder)
        for name in folders:
            if (here / name).is_symlink() and here.resolve().is_relative_to((here / name).resolve()):
                raise ConfigError(f"{here / name} is a link to a folder that holds it: remove the link")
        yield here, None
        yield from ((here, here / name) for name in names)


def _regular(path):
    """The bytes of a file; ConfigError unless it is a regular one, of at most LARGEST bytes."""
    about = look(path, Path.stat)
    if not stat.S_ISREG(about.st_mode):  # whoever opens a pipe waits for ever
        raise ConfigError(f"{path} is a pipe, a device or the like, not a file: remove it")
    if about.st_size > LARGEST:
        raise ConfigError(f"{path} has {about.st_size:,} bytes, no image has: remove it")
    return look(path, Path.read_bytes)


def path_inside(source, member):
    """The path of a tar's member; ConfigError for one that points out of the archive, is a special file or has an unprintable name."""
    parts = PurePosixPath(member.name).parts
    if ".." in parts or member.name.startswith("/"):
        raise ConfigError(f"{source}: {member.name!r} points out of the archive: do not use this archive")
    if any(ord(character) < 32 or ord(character) == 127 for character in member.name):
        raise ConfigError(f"{source}: {member.name!r} has control characters in its name: do not use this archive")
    if member.isdev():
        raise ConfigError(f"{source}: {member.name} is a pipe or a device: do not use this archive")
    if (member.issym() or member.islnk()) and Path(member.name).suffix.lower() in IMAGES:
        how = "pack again with tar --dereference --hard-dereference"
        raise ConfigError(f"{source}: {member.name} is a link: {how}")
    return "/".join(parts)


def _unpacked(raw):
    """The stream of what an open file holds, packed by gzip, bzip2, xz or not at all."""
    begin = raw.read(6)
    raw.seek(0)
    kinds = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    return next((opened(raw) for magic, opened in kinds.items() if begin.startswith(magic)), raw)


class _Bounded:
    """A stream for tarfile, which believes what a header says: no read of more than LARGEST bytes, nothing behind `end`, no way back."""

    def __init__(self, stream, source, end):
        self.stream, self.source, self.end = stream, source, end

    def refuse(self, what):
        raise ConfigError(f"{self.source}: {what}: do not use this archive")

    def tell(self):
        return self.stream.tell()

    def seek(self, position):
        if position < self.tell():
            self.refuse("a header points back to what lies before it")
        while (left := position - self.tell()) > 0 and self.read(min(left, 1 << 20)):
            pass

    def read(self, size):
        if not 0 <= size <= LARGEST:
            self.refuse(f"a header says that {size:,} bytes follow")
        found = self.stream.read(size)
        if self.tell() > self.end:
            self.refuse(f"unpacked it has more than {self.end:,} bytes, far more than it seems")
        return found
