"""Fresh clones of the project, and what runs in them."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(**more):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1", **more}


def command(folder, *arguments, check=True, **more):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, env=environment(**more))
    if check:
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def clone(target):
    """What git would bring: tracked files and new ones, nothing that is ignored."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)
    return target


def hashes(folder, *names):
    files = [f for name in names for f in ([folder / name] if (folder / name).is_file() else sorted((folder / name).rglob("*")))]
    return {str(f.relative_to(folder)): hashlib.md5(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def ran(done):
    """The stages that an output of `dvc repro` says it ran."""
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


def counted(done):
    """{title of a stage: (runs trained, runs known)} from the lines that stages say."""
    return {title: (int(n), int(m)) for title, n, m in re.findall(r"^(.+): trained (\d+) runs?, (\d+) known$", done.stdout + done.stderr, re.M)}


def trained(done):
    """{stage: runs trained} of those that trained any."""
    return {title: n for title, (n, _) in counted(done).items() if n}


@contextmanager
def edited(folder, name, before, after):
    """A file with every `before` replaced by `after`, for as long as the block runs."""
    path = folder / name
    original = path.read_text()
    assert before in original, f"{name} has no {before!r}"
    path.write_text(original.replace(before, after))
    try:
        yield
    finally:
        path.write_text(original)
