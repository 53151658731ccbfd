"""Archives and images that mean harm: one line each, in bounded time and memory, and nothing is written anywhere."""

import io
import os
import pickle
import struct
import tarfile
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kd.data import fetch, load_data, readers
from kd.errors import ConfigError

MOST_SECONDS = 5  # that one archive of a few kilobytes may take on a busy machine


def picture(form="PNG", size=(6, 6)):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(len(form)).integers(0, 255, (*size, 3), dtype=np.uint8)).save(out, form)
    return out.getvalue()


IMAGES = {form: picture(form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}
FILES = {f"{split}/{name}/{i}.png": IMAGES["PNG"] for split in ("train", "test") for name in ("cat", "dog") for i in range(2)}


def tar(members=(), mode="w:"):
    """The bytes of an archive of FILES and then of (TarInfo, content) members; a size that is declared stays so, whatever the content."""
    plain = b""
    for name, content in FILES.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        plain += info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)
    for info, content in members:
        plain += info.tobuf(tarfile.GNU_FORMAT if info.size >= 0 else tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)
    plain += bytes(1024)
    if mode == "w:":
        return plain
    import bz2
    import gzip
    import lzma

    return {"w:gz": gzip.compress, "w:bz2": bz2.compress, "w:xz": lzma.compress}[mode](plain)


def member(name="train/cat/9.png", size=None, kind=tarfile.REGTYPE, content=b"", **more):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content) if size is None else size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def negative(content):
    """An archive whose second header says that its file has minus one block: tarfile of older Pythons reads it for ever."""
    head = bytearray(content[512 + len(IMAGES["PNG"]) + -len(IMAGES["PNG"]) % 512 :][:512])
    head[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    begin = 512 + len(IMAGES["PNG"]) + -len(IMAGES["PNG"]) % 512
    return content[:begin] + bytes(head) + content[begin + 512 :]


MODES = ("w:", "w:gz", "w:bz2", "w:xz")
HOSTILE = {
    "an image of a terabyte": ([member(size=10**12)], "do not use this archive"),
    "a note of a terabyte": ([member("notes.txt", size=10**12)], "unpacked it has more than|unexpected end|end is missing|ended before"),
    "a long name of a terabyte": ([member("././@LongLink", size=10**12, kind=tarfile.GNUTYPE_LONGNAME)], "a header says that"),
    "an extended header of a terabyte": ([member("x", size=10**12, kind=tarfile.XHDTYPE)], "a header says that"),
    "headers upon headers": ([member("x", kind=tarfile.XHDTYPE, content=b"9 path=a\n")] * 2000, "not a whole tar archive|do not use"),
    "a pipe": ([member("train/cat/x.png", kind=tarfile.FIFOTYPE)], "is a pipe or a device"),
    "a device": ([member("train/cat/x.png", kind=tarfile.CHRTYPE)], "is a pipe or a device"),
    "the way out": ([member("train/../../x.png")], "points out of the archive"),
    "an absolute path": ([member("/tmp/x.png")], "points out of the archive"),
    "a link": ([member(kind=tarfile.SYMTYPE, linkname="/etc/passwd")], "is a link"),
    "a name of two lines": ([member("train/cat/a\nb.png")], "control characters"),
    "a name that colours the terminal": ([member("train/cat/\x1b[31m.png")], "control characters"),
    "a program as image": ([member(content=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n(/tmp/pwned) (w) file\n")], "cannot be decoded"),
    "an image of 4 gigapixels": ([member(content=IMAGES["PNG"][:16] + struct.pack(">II", 65535, 65535) + IMAGES["PNG"][24:])], "cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("members, said", HOSTILE.values(), ids=HOSTILE)
def test_an_archive_that_means_harm_is_refused_in_one_line(tmp_path, members, said, mode):
    source = tmp_path / "a.tar"
    source.write_bytes(tar(members, mode))
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said) as caught:
        load_data("imagefolder", source, cache=None)
    assert "\n" not in str(caught.value) and time.monotonic() - began < MOST_SECONDS
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_header_that_points_back_ends(tmp_path):
    (tmp_path / "a.tar").write_bytes(negative(tar()))
    with pytest.raises(ConfigError, match="do not use this archive|not a whole tar archive|says that it has"):
        load_data("imagefolder", tmp_path / "a.tar", cache=None)


@pytest.mark.parametrize("mode", MODES[1:])
def test_what_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch, mode):
    bounded = fetch._Bounded  # the bound itself is a gigabyte at least
    monkeypatch.setattr(fetch, "_Bounded", lambda stream, source, _: bounded(stream, source, 1 << 20))
    source = tmp_path / "a.tar"
    source.write_bytes(tar([member("notes.txt", content=bytes(1 << 22))], mode))
    with pytest.raises(ConfigError, match="unpacked it has more than"):
        load_data("imagefolder", source, cache=None)


def test_files_that_are_not_wanted_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST", 1 << 21)
    source = tmp_path / "a.tar"
    source.write_bytes(tar([member("notes.txt", content=bytes(1 << 22))]))
    found = dict(fetch.files_in(source, lambda path: path.endswith(".png")))
    assert found.pop("notes.txt") == b"" and found == FILES


def unpack(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_pipe_in_a_folder_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(unpack(tmp_path) / "train/cat/x.png")
    with pytest.raises(ConfigError, match=r"x.png is a pipe, a device or the like"):
        load_data("imagefolder", tmp_path, cache=None)


def test_a_pipe_in_an_archives_place_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "images.tar")
    for name in ("imagefolder", "jpegfolder"):
        for source in (tmp_path / "images.tar", "/dev/zero"):
            with pytest.raises(ConfigError, match="is a pipe, a device or the like, not an archive"):
                load_data(name, source=source, cache=None)


def test_a_link_to_a_folder_above_is_refused(tmp_path):
    (unpack(tmp_path) / "train/cat/all").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is a link to a folder that holds it"):
        load_data("imagefolder", tmp_path, cache=None)


def test_a_pickle_that_asks_for_memory_is_refused(tmp_path):
    batch = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        for name in ("data_batch_1", "test_batch", "batches.meta"):
            info, _ = member(f"cifar/{name}", size=len(batch))
            archive.addfile(info, io.BytesIO(batch))
    with pytest.raises(ConfigError, match="it remembers something as number"):
        readers._cifar("cifar10", tmp_path / "c.tar")
    readers._check_memo(pickle.dumps({"a": list(range(300)), "b": "x" * 300}))


# --- some thousand of them


def harmed(draw, content):
    """Bytes with some changed, cut off, or doubled."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 600))
        content[at:at] = content[at : at + length]
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


SIZES = st.sampled_from([None, 0, 1, 511, 513, 10**6, 2**31, 2**33, 10**12])
KINDS = st.sampled_from([bytes([kind]) for kind in b"\x0001234567gxXLKSDMNV~"])
NAMES = st.sampled_from(["train/cat/9.png", "train", "train/cat", "x", "", ".", "train/cat/9.png/", "../x", "/x", "a" * 90]) | st.text(max_size=20)


@st.composite
def archives(draw):
    made = []
    for _ in range(draw(st.integers(0, 3))):
        made.append(member(draw(NAMES), draw(SIZES), draw(KINDS), draw(st.sampled_from([b"", IMAGES["PNG"], b"9 path=a\n", b"20 size=99999999999\n", b"x" * 700]))))
    try:
        content = tar(made, draw(st.sampled_from(MODES[:2])))
    except (ValueError, UnicodeError):  # no header can say that
        content = tar()
    return harmed(draw, content) if draw(st.booleans()) else content


@st.composite
def images(draw):
    return harmed(draw, draw(st.sampled_from(list(IMAGES.values()))))


QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=1500, **QUIET)
@given(content=archives())
def test_no_archive_raises_hangs_or_writes(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(content)
    began = time.monotonic()
    try:
        for path, raw in fetch.files_in(folder / "a.tar", lambda path: path.endswith(".png")):
            assert ".." not in path.split("/") and not path.startswith("/") and (raw is None or len(raw) <= len(content) * 1100)
    except ConfigError as problem:
        assert "\n" not in str(problem)
    assert time.monotonic() - began < MOST_SECONDS and os.listdir(folder) == ["a.tar"]


@settings(max_examples=1500, **QUIET)
@given(content=images())
def test_no_image_raises_or_hangs(content):
    began = time.monotonic()
    try:
        (array,) = readers._decode([("x.png", content)], None)
        assert array.dtype == np.uint8
    except ConfigError as problem:
        assert "\n" not in str(problem)
    assert time.monotonic() - began < MOST_SECONDS
