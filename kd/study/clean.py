"""What the store holds, and taking away what nothing asks for: `python -m kd clean`."""

from collections import defaultdict

from kd.errors import ConfigError
from kd.study import store
from kd.study.paths import STAGES
from kd.study.runs import key_of
from kd.study.search import names, wanted_by
from kd.study.study import Study


def asked_for(study):
    """{(program, key)} of all that the tables and searches ask for under the parameters in force, run or not."""
    found = {(store.program_of_run(run), key_of(run)) for run in study.asked(*STAGES)}
    for name in names():
        found |= {(store.program_of_run(run), key) for _, wanted in wanted_by(name, study) for key, (run, *_) in wanted.items()}
    return found


def clean(prune=False):
    """The store's size by profile, as text; with `prune`, after removing what nothing asks for.

    That is, of the profile in force: runs of another program and of rows that no table or search has any longer, teachers of another
    program, and all that never came to its end and is of no run that is still wanted. Other profiles are only counted: which of their
    runs are wanted their own parameters say.
    """
    study, contents = Study("clean"), store.contents()
    try:
        wanted = asked_for(study)
    except ConfigError as problem:
        raise ConfigError(f"what is still wanted cannot be told ({problem})") from None
    labels_program = store.training_md5(("labels",))
    size, spare = defaultdict(lambda: [0, 0]), []
    for (profile, program, key), files in contents.items():
        teacher = key.startswith(("route-", "supernet-"))
        kept = program == labels_program if teacher else (program, key) in wanted
        if not kept and profile in ("", study.profile):
            spare.append(files)
        size[profile or "(unfinished)"][0] += 1
        size[profile or "(unfinished)"][1] += sum(map(store.size_of, files))
    lines = [f"{name:<24}{count:>6} entries {size / 2**20:>10.1f} MiB" for name, (count, size) in sorted(size.items())]
    removed = len(spare), sum(store.size_of(path) for files in spare for path in files)
    if prune:
        for files in spare:
            store.remove(files)
    what = "removed" if prune else "python -m kd clean --prune would remove"
    return "\n".join([*lines, f"{what} {removed[0]} entries, {removed[1] / 2**20:.1f} MiB, that no table or search of {study.profile} asks for"])
