"""Names in words, for readers: Tiny-ImageNet's archives call their classes by WordNet's numbers."""

from functools import cache
from pathlib import Path


@cache
def wordnet():
    """{"n01443537": "goldfish", ...}: the first of WordNet's words for each class of tinyimagenet100-32, as its archive lists them."""
    lines = Path(__file__).with_name("wordnet.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def class_names(classes):
    """The names of classes as a list of strings: WordNet's numbers as words where we know them, all others as they are."""
    return [wordnet().get(str(name), str(name)) for name in classes]
