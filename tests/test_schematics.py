"""Drawings of the methods: every one is whole, legible and the same in every run."""

import re
from itertools import combinations
from xml.dom import minidom

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

import kd
from kd.report import schematics

METHODS = ("teacher", "kd", "kr", "srm", "rco", "iekd", "pwkd", "combined")
PAIRS = (
    ("cnn6x16", "cnn3x8"),
    ("resnet56", "resnet20"),
    ("resnet50", "mobilenetv2-6-0.25"),
    ("torchvision-resnet34", "torchvision-resnet18"),  # the longest names
)


def draw(method, pair):
    return getattr(kd.schematics, method)(*(pair[:1] if method == "teacher" else pair))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("method", METHODS)
def test_texts_lie_within_the_drawing_and_apart(method, pair, monkeypatch):
    monkeypatch.setattr(schematics, "svg", lambda axes, title: axes)
    axes = draw(method, pair)
    agg = FigureCanvasAgg(axes.figure)
    agg.draw()
    found = [(text.get_text(), text.get_window_extent(agg.get_renderer())) for text in axes.texts]
    margin, (width, height) = 0.05 * axes.figure.dpi, agg.get_width_height()
    for text, place in found:
        assert margin < place.x0 and place.x1 < width - margin and margin < place.y0 and place.y1 < height - margin, text
    assert not [(one, other) for (one, here), (other, there) in combinations(found, 2) if here.overlaps(there)]
    assert min(text.get_size() for text in axes.texts) >= 9 and axes.figure.get_size_inches()[1] <= 3.2
    assert set(pair[: 1 if method == "teacher" else 2]) <= set(" ".join(text.replace("\n-", "-") for text, _ in found).split())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_whatever_was_set_before(method):
    state = torch.get_rng_state()
    first = draw(method, PAIRS[0]).data
    kd.figures.style()
    assert draw(method, PAIRS[0]).data == first
    assert torch.equal(state, torch.get_rng_state())  # a drawing must not move what follows it in a notebook
    svg = minidom.parseString(first).documentElement
    assert svg.tagName == "svg" and PAIRS[0][0] in svg.getElementsByTagName("title")[0].firstChild.data
    assert not re.search(r"<text|<image|<dc:date|Matplotlib", first)


def test_what_is_drawn_of_a_network_is_its_own():
    shape = schematics.shape_of("resnet20", 100)
    network = kd.build("resnet20", 100)
    assert (shape.blocks, shape.channels) == ((3, 3, 3), (16, 32, 64))
    assert shape.parameters == kd.complexity(network, (3, 32, 32))[0] and shape.size == "278 k parameters"
    shape = schematics.shape_of("torchvision-resnet34", 1000)
    assert (shape.blocks, shape.channels, shape.size) == ((3, 4, 6, 3), (64, 128, 256, 512), "21.8 M parameters")
