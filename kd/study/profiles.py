"""Profiles: profiles/base.yaml has every value with its reason, profiles/NAME.yaml what differs, params.yaml both together.

    profiles/base.yaml            profiles/mine.yaml              params.yaml
    kr:                           kr:                             kr:
      weight: 3.0 # ours            weight: 10.0 # searched         weight: 10.0 # searched
      keep: 0.5 # ours                                              keep: 0.5 # ours

A value without a comment of its own keeps the base's.
"""

import io
import itertools
import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from kd.checkpoints import write_atomically
from kd.data.fetch import archives
from kd.errors import ConfigError, nearest
from kd.study.parameters import check_study
from kd.study.paths import FILES, ROOT
from kd.study.yaml_files import parse_value

HEAD = """\
# What `dvc repro` runs. Written by `python -m kd use {name}`; from then on yours to edit:
# change a value, run `dvc repro`, and only the stages that read it run again.
"""


def names(root=FILES):
    """The names of the profiles in `root`/profiles, sorted."""
    return sorted(path.stem for path in (Path(root) / "profiles").glob("*.yaml") if path.stem != "base")


def compose(name, archive=None, root=FILES):
    """The text of params.yaml for the profile `name`; archive: the absolute path of a person's own images, where it reads such.

    Raises ConfigError for an unknown profile, a file that is not YAML, and a value or key that no study can have.
    """
    if name not in names(root):
        raise ConfigError(f"unknown profile {name!r}{nearest(name, names(root))}; there are {', '.join(names(root))}")
    yaml, folder = round_trip(), Path(root) / "profiles"
    try:
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        base, own = yaml.load((folder / "base.yaml").read_text(encoding="utf-8")), yaml.load(text)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"profiles/{name}.yaml or base.yaml: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(own, CommentedMap):
        raise ConfigError(f"profiles/{name}.yaml must hold a mapping, of what differs from profiles/base.yaml")
    merge(base, own)
    base.pop("about", None)  # for readers; no parameter, and too long for a column of `dvc exp show`
    base["profile"] = name
    if archive:
        base["data"]["source"] = DoubleQuotedScalarString(archive)
        if base["data"]["name"] != "jpegfolder":  # of which DVC would read everything
            base["data"]["watch"] = base["data"]["source"]
    found = io.StringIO()
    yaml.dump(base, found)
    head = re.match(r"(#.*\n)+", text)  # what the profile says of itself
    body = re.sub(r"^(#.*\n)+", "", found.getvalue())
    body = re.sub(r"(?m)(\S) {2,}(# .*)$", r"\1 \2", body)  # one space before a comment, whatever was longer in the base
    body = f"{HEAD.format(name=name)}{'#' + chr(10) + head[0] if head else ''}{body}"
    check_study(parse_value(body), f"profiles/{name}.yaml")
    return body


def about(name, root=FILES):
    """What a reader must know of a study of the profile `name`, a list of texts; empty without a file of that name."""
    path = Path(root) / "profiles" / f"{name}.yaml"
    return (parse_value(path.read_text(encoding="utf-8")).get("about") or []) if path.exists() else []


def round_trip():
    """ruamel.yaml's reader and writer that keeps comments and quotes, with this project's indents."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def merge(base, own):
    """Put the values of `own` and their comments over those of `base`, mapping by mapping; both are ruamel's."""
    for key, value in own.items():
        if isinstance(value, CommentedMap) and isinstance(base.get(key), CommentedMap):
            merge(base[key], value)
        else:
            base[key] = value
        mine, its = ((mapping.ca.items.get(key) or [None] * 3)[2] for mapping in (own, base))
        if its and mine:  # what follows its line, empty lines and headings, belongs to the base
            its.value = mine.value.partition("\n")[0] + "\n" + its.value.partition("\n")[2]
        elif mine:
            base.ca.items[key] = own.ca.items[key]
            mine.value = mine.value.partition("\n")[0] + "\n"
        if its and isinstance(value, CommentedSeq) and not value.fa.flow_style():
            its.value = its.value.partition("\n")[0] + "\n"  # an empty line between a key and its list would be none behind the list


def use(name, archive=None, root=ROOT, prepare=lambda root, profile: None):
    """Write `root`/params.yaml for the profile `name`; what a person had changed in it is kept as params.yaml.bak, .bak1, ...

    archive: path of the person's own images, for the profiles that read such and for no others. prepare(root, profile) makes what DVC
    must find before it can plan; everything is checked and made before params.yaml is touched. Raises ConfigError as `compose` does,
    and for an archive that is missing or not asked for.
    """
    root, layout, own = Path(root), "a folder or .tar archive of train/CLASS/* and test/CLASS/*", ("imagefolder", "jpegfolder")
    files = FILES if root == ROOT else root  # differ where the package is installed outside the repository
    text = compose(name, root=files)
    data = parse_value(text)["data"]["name"]
    if archive and data not in own:
        raise ConfigError(f"profile {name} reads no archive of yours; --archive goes with the imagefolder profiles and imagenet")
    if not archive and data in own:
        raise ConfigError(f"profile {name} reads your images: give --archive PATH, {layout}")
    if archive:
        path = Path(archive).expanduser()
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give --archive the path of {layout}")
        text = compose(name, path.resolve(), files)
    raw = archives(None if root == ROOT else root)[data].path if data in ("cifar10", "cifar100") else None
    target = root / "params.yaml"
    before = target.read_text(encoding="utf-8", errors="surrogateescape") if target.exists() else text
    prepare(root, name)
    if before != text and not unedited(before, files):
        backups = (root / f"params.yaml.bak{number or ''}" for number in itertools.count())
        backup = next(path for path in backups if not path.exists() or path.read_bytes() == target.read_bytes())
        write_atomically(backup, target.read_bytes())
        print(f"Your edited params.yaml is kept as {backup.name}.")
    write_atomically(target, text)
    print(f"params.yaml now says: profile {name}. Next: make repro (or: dvc repro)")
    if raw and not raw.exists():
        print(f"First: python -m kd fetch {data}")


def unedited(text, root=FILES):
    """Whether a params.yaml is word for word what `use` writes for some profile, and so need not be kept."""
    try:
        values = parse_value(text)
        return compose(values["profile"], values["data"]["source"], root) == text
    except (ConfigError, KeyError, TypeError):
        return False
