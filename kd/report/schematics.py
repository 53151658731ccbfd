"""A drawing of each method with the study's own networks in it: what the teacher passes on, when, and what is compared.

    kd.schematics.rco("resnet20", "resnet8", classes=100)

Each function takes the names of teacher and student (see kd.build) and, for the count of parameters, the number of classes; images
have three channels. It returns an IPython SVG: Jupyter shows it, `.data` is its text. A network is a row of slabs, a slab a block
(in plain networks a convolution), a slab's height the square root of its stage's channels; teacher and student have one scale.
Every colour has one meaning. Curves and bars are sketches, not measurements. Texts are paths, so that every viewer shows the same.
Raises ConfigError for names that kd.build does not know, and pwkd for a teacher that has no nested widths.
"""

import io
from functools import cache
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import nn

from kd.models import Supernet, Tapped, build, feature_shapes
from kd.report.figures import PASSED_ON, STUDENT, TEACHER

__all__ = ["combined", "iekd", "kd", "kr", "pwkd", "rco", "srm", "teacher"]

# beside those of kd.report.figures; colour-blind safe (Okabe and Ito)
AWAY, LABEL = "#CC79A7", "#333333"  # what the student moves away from, the truth
INK, FAINT = "#333333", "#9A9A9A"  # words and what only leads the eye
WIDTH = 7.2  # inches, of every drawing: a phone shows it at half its size, so texts are large
TEXT, SMALL, LEAST = 12, 11, 9  # points


# The toolkit: everything is placed by its centre, in inches from the lower left corner.


class Place(NamedTuple):
    """Where something was drawn: its edges, and the middle of each side for arrows to start from and end at."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def centre(self):
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def left(self):
        return self.x0, self.centre[1]

    @property
    def right(self):
        return self.x1, self.centre[1]

    @property
    def top(self):
        return self.centre[0], self.y1

    @property
    def bottom(self):
        return self.centre[0], self.y0


def around(centre, width, height):
    return Place(centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2)


def tint(colour, share):
    """The colour mixed with white; 0 is white, 1 the colour itself."""
    return tuple(1 - share * (1 - value) for value in to_rgb(colour))


def canvas(height):
    """Axes in inches, WIDTH x height, on a white panel with round corners: legible on a dark page too."""
    figure = Figure(figsize=(WIDTH, height), layout="none")  # the notebooks' style asks for another layout
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.axis("off")
    style = "round,pad=0,rounding_size=0.14"
    axes.add_patch(FancyBboxPatch((0.02, 0.02), WIDTH - 0.04, height - 0.04, style, facecolor="white", edgecolor="#D8D8D8", linewidth=0.8))
    return axes


def svg(axes, title):
    """The drawing as an IPython SVG that never grows wider than the page; title: one sentence, for those who cannot see it."""
    from IPython.display import SVG

    text = io.StringIO()
    settings = {"svg.fonttype": "path", "svg.hashsalt": "kd"}  # the salt: ids are the same in every run
    with matplotlib.rc_context(settings):
        axes.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    return SVG(data=text.getvalue().replace("<svg ", '<svg role="img" style="max-width: 100%; height: auto" ', 1))


def write(axes, place, text, colour=INK, size=SMALL, bold=False, align="center"):
    if "\n" not in text:  # by the line on which letters stand, not by the middle of those in it: words side by side stay level
        place = place[0], place[1] - 0.36 * size / 72
    axes.text(
        *place, text, color=colour, size=size, weight="bold" if bold else "normal", family="DejaVu Sans", ha=align,
        va="center" if "\n" in text else "baseline", linespacing=1.25,
    )  # fmt: skip


def arrow(axes, start, end, colour=FAINT, bend=0.0, width=1.6):
    """From point to point; bend: 0 is straight, positive to the right of its way."""
    head, way = "-|>,head_length=0.35,head_width=0.18", f"arc3,rad={bend}"
    shape = {"arrowstyle": head, "connectionstyle": way, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0, "joinstyle": "miter"}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, linewidth=width, capstyle="butt", **shape))


def box(axes, centre, width, height, text="", colour=INK, filled=False, size=SMALL, bold=True):
    """A box with round corners and a text in it."""
    place, face = around(centre, width, height), tint(colour, 0.12) if filled else "white"
    style = f"round,pad=0,rounding_size={min(0.08, height / 3)}"
    axes.add_patch(FancyBboxPatch(place[:2], width, height, style, facecolor=face, edgecolor=colour, linewidth=1.3 if bold else 0.8))
    write(axes, centre, text, colour, size, bold)
    return place


def bars(axes, centre, width, height, values, colours):
    """Bars side by side on a line; values in [0, 1], colours: one, or one a bar."""
    place, step = around(centre, width, height), width / len(values)
    colours = [colours] * len(values) if isinstance(colours, str) else colours
    for number, (value, colour) in enumerate(zip(values, colours, strict=True)):
        axes.add_patch(Rectangle((place.x0 + (number + 0.14) * step, place.y0), 0.72 * step, value * height, facecolor=colour))
    axes.plot(place[0::2], [place.y0] * 2, color=INK, linewidth=0.9)
    return place


def maps(axes, centre, count, size, colours, shift=0.09):
    """A stack of `count` square feature maps, the first in front; colours: one, or one a map. Returns the place of the whole."""
    place = around(centre, size + (count - 1) * shift, size + (count - 1) * shift)
    colours = [colours] * count if isinstance(colours, str) else colours
    for number in range(count)[::-1]:
        corner = (place.x0 + number * shift, place.y0 + number * shift)
        axes.add_patch(Rectangle(corner, size, size, facecolor=tint(colours[number], 0.3), edgecolor=colours[number], linewidth=1))
    return place


def cells(axes, centre, size, colours, edge="white"):
    """A square map of cells; colours: a list of rows."""
    place, side = around(centre, size, size), size / len(colours)
    for row, line in enumerate(colours):
        for column, colour in enumerate(line):
            corner = (place.x0 + column * side, place.y1 - (row + 1) * side)
            axes.add_patch(Rectangle(corner, side, side, facecolor=colour, edgecolor=edge, linewidth=0.8))
    return place


def image(axes, centre, size=0.62):
    """A picture: hills and a sun."""
    place = around(centre, size, size)
    axes.add_patch(Rectangle(place[:2], size, size, facecolor="#F3F3F3", edgecolor=INK, linewidth=1))
    hills = [(0, 0.12), (0.3, 0.52), (0.52, 0.26), (0.7, 0.42), (1, 0.1), (1, 0), (0, 0)]
    axes.fill(*zip(*((place.x0 + size * x, place.y0 + size * y) for x, y in hills), strict=True), color="#B0B0B0")
    axes.add_patch(Circle((place.x0 + 0.74 * size, place.y0 + 0.74 * size), 0.1 * size, color="#B0B0B0"))
    return place


class Shape(NamedTuple):
    """What is drawn of a network: blocks and channels of each stage, and its number of parameters."""

    name: str
    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    parameters: int

    @property
    def size(self):
        return f"{count(self.parameters)} parameters"


def count(parameters):
    return f"{parameters / 1e6:.1f} M" if parameters >= 999_500 else f"{parameters / 1e3:.0f} k"


def fresh(name, classes):
    """The network; random numbers stay as they were."""
    with torch.random.fork_rng(devices=()):
        return build(name, classes)


@cache
def shape_of(name, classes):
    network = fresh(name, classes)
    tapped = isinstance(network, Tapped)  # torchvision's: the tapped layers are the stages
    blocks = tuple(
        sum(any(isinstance(module, nn.Conv2d) for module in block.modules()) for block in stage.children())
        for stage in ([network.module.get_submodule(tap.layer) for tap in network.taps] if tapped else network.stages)
    )
    channels = tuple(shape[0] for shape in feature_shapes(network, (3, 32, 32)))
    return Shape(name, blocks, channels, sum(parameter.numel() for parameter in network.parameters()))


def drawn(axes, shapes, shape, centre, length, height, colour, width=1.0):
    """A network as slabs. shapes: all in this drawing, the longest and widest of which fills length x height; width: share
    of the channels in use, the others are outlined."""
    room = max(sum(other.blocks) + 0.6 * (len(other.blocks) - 1) for other in shapes)
    most = max(max(other.channels) for other in shapes)
    unit = min(length / max(room, 6), 0.2)
    total = unit * (sum(shape.blocks) + 0.6 * (len(shape.blocks) - 1))
    x, line = centre[0] - total / 2, min(0.8, unit * 14)
    for blocks, channels in zip(shape.blocks, shape.channels, strict=True):
        tall = height * max(0.12, (channels / most) ** 0.5)
        for _ in range(blocks):
            low = centre[1] - tall / 2
            if width < 1:
                axes.add_patch(Rectangle((x, low), unit, tall, facecolor=tint(colour, 0.13), edgecolor="white", linewidth=line))
            axes.add_patch(Rectangle((x, low), unit, tall * width, facecolor=colour, edgecolor="white", linewidth=line))
            x += unit
        x += 0.6 * unit
    tallest = height * max(0.12, (max(shape.channels) / most) ** 0.5)
    return around(centre, total, tallest)


def captioned(axes, shapes, shape, centre, length, height, colour, below="", room=1.85):
    """A network with its name above it and, line by line, a text below it."""
    place = drawn(axes, shapes, shape, centre, length, height, colour)
    half = max((place.y1 - place.y0) / 2, 0.2)  # of a very flat one too, so that its texts are clear of what stands beside it
    named(axes, (centre[0], centre[1] + half + 0.14), shape.name, colour, room)
    for number, line in enumerate(below.splitlines()):
        write(axes, (centre[0], centre[1] - half - 0.14 - 0.21 * number), line)
    return place


def named(axes, place, name, colour, room=1.75, align="center"):
    """A network's name, in two lines or smaller where it is longer than `room` inches."""
    if 0.72 * len(name) * LEAST > 72 * room:
        name = name.replace("-", "\n-", 1)
    longest = max(map(len, name.splitlines()))
    write(axes, place, name, colour, min(TEXT, max(LEAST, 72 * room / (0.72 * longest))), bold=True, align=align)


def divider(axes, x, low, high):
    axes.plot([x, x], [low, high], color="#D8D8D8", linewidth=0.8)


SOFT_TEACHER, SOFT_STUDENT = (0.3, 0.95, 0.5, 0.18, 0.4), (0.4, 0.8, 0.34, 0.3, 0.36)
HARD_TEACHER, HARD_STUDENT = (0.04, 1.0, 0.12, 0.02, 0.07), (0.12, 0.86, 0.1, 0.08, 0.14)
ONE_HOT = (0, 1, 0, 0, 0)


def accuracy(epochs):
    """A teacher's accuracy over its epochs, both in [0, 1], as it usually looks: steep, flat, a step where the rate falls."""
    return 0.74 * (1 - np.exp(-7 * epochs)) + 0.2 / (1 + np.exp(-40 * (epochs - 0.6)))


# The drawings.


def teacher(teacher, classes=10):
    """A network learns from labels, and its states are kept along the way: the route."""
    axes = canvas(2.9)
    shapes = (shape := shape_of(teacher, classes),)
    shown = image(axes, (0.52, 1.85))
    place = captioned(axes, shapes, shape, (1.82, 1.85), 1.2, 0.8, TEACHER, f"{shape.size}\nlearns")
    outputs = bars(axes, (3.3, 1.85), 0.8, 0.62, HARD_TEACHER, TEACHER)
    arrow(axes, shown.right, place.left, TEACHER)
    arrow(axes, (place.x1 + 0.05, 1.85), outputs.left, TEACHER)
    badge = box(axes, (3.3, 1.05), 0.62, 0.3, "CE", LABEL, filled=True)
    bars(axes, (3.3, 0.42), 0.8, 0.3, ONE_HOT, LABEL)
    arrow(axes, badge.top, outputs.bottom, LABEL)
    arrow(axes, (3.3, 0.63), badge.bottom, LABEL)
    write(axes, (2.6, 0.42), "label", LABEL)
    divider(axes, 3.95, 0.25, 2.65)
    plot = Place(4.3, 0.62, 6.85, 2.35)
    route(axes, plot, 12)
    arrow(axes, (plot.x0, plot.y0), (plot.x1 + 0.15, plot.y0), FAINT)
    write(axes, (5.6, 2.62), "its route: saved states", TEACHER, TEXT, bold=True)
    write(axes, (plot.x0 + 0.1, 2.05), "accuracy", align="left")
    write(axes, (5.6, 0.4), "epochs")
    write(axes, (6.9, 2.0), "converged", align="right")
    write(axes, (5.8, 1.15), "distillation asks the last one,\nnotebook 4 goes along them")
    return svg(axes, f"The teacher {teacher} learns from labels; states saved along the way are its route, the last one has converged.")


def route(axes, plot, states):
    """The curve of a teacher's accuracy with a dot at each of its saved states; returns these points."""
    x = np.linspace(0, 1, 200)
    axes.plot(plot.x0 + x * (plot.x1 - plot.x0), plot.y0 + accuracy(x) * (plot.y1 - plot.y0), color=TEACHER, linewidth=2)
    points = []
    for epoch in np.arange(1, states + 1) / states:
        point = plot.x0 + epoch * (plot.x1 - plot.x0), plot.y0 + accuracy(epoch) * (plot.y1 - plot.y0)
        axes.add_patch(Circle(point, 0.055, facecolor=TEACHER, edgecolor="white", linewidth=0.8, zorder=3))
        points.append(point)
    return points


def kd(teacher, student, classes=10):
    """Softened outputs of the teacher are the student's second target beside the labels."""
    axes = canvas(3.1)
    theirs, mine = shapes = shape_of(teacher, classes), shape_of(student, classes)
    shown = image(axes, (0.55, 1.72))
    top = captioned(axes, shapes, theirs, (2.2, 2.3), 1.4, 0.72, TEACHER, f"{theirs.size}, frozen")
    low = captioned(axes, shapes, mine, (2.2, 1.02), 1.4, 0.72, STUDENT, f"{mine.size}, learns")
    write(axes, (3.95, 2.85), "outputs")
    write(axes, (5.7, 2.85), "softened by T")
    rows = [(top, HARD_TEACHER, SOFT_TEACHER, TEACHER), (low, HARD_STUDENT, SOFT_STUDENT, STUDENT)]
    found = []
    for place, hard, soft, colour in rows:
        arrow(axes, shown.right, place.left, colour)
        y = place.centre[1]
        first, second = bars(axes, (3.95, y), 0.9, 0.62, hard, colour), bars(axes, (5.7, y), 0.9, 0.62, soft, colour)
        arrow(axes, (place.x1 + 0.06, y), first.left, colour)
        arrow(axes, first.right, second.left, colour)
        found.append((first, second))
    (_, soft), (hard, target) = found
    badge = box(axes, (5.7, 1.65), 0.62, 0.3, "KL", PASSED_ON, filled=True)
    arrow(axes, soft.bottom, badge.top, PASSED_ON)
    arrow(axes, badge.bottom, (5.7, target.y0 + max(SOFT_STUDENT) * 0.62 + 0.02), PASSED_ON)
    badge = box(axes, (3.95, 0.34), 0.62, 0.3, "CE", LABEL, filled=True)
    truth = bars(axes, (5.7, 0.34), 0.9, 0.28, ONE_HOT, LABEL)
    arrow(axes, truth.left, badge.right, LABEL)
    arrow(axes, badge.top, hard.bottom, LABEL)
    write(axes, (6.5, 0.34), "label", LABEL)
    return svg(axes, f"Knowledge distillation: {student} learns from the labels and from the softened outputs of {teacher}.")


def kr(teacher, student, classes=10):
    """A stage's maps become one distribution over channels, and only its strongest part is taught."""
    axes = canvas(3.2)
    theirs, mine = shapes = shape_of(teacher, classes), shape_of(student, classes)
    top = captioned(axes, shapes, theirs, (1.46, 2.3), 1.05, 0.64, TEACHER, f"{theirs.size}\nfrozen")
    low = captioned(axes, shapes, mine, (1.46, 0.88), 1.05, 0.64, STUDENT, f"{mine.size}\nlearns")
    labels = box(axes, (0.45, 0.88), 0.7, 0.3, "labels", LABEL, filled=True)
    arrow(axes, labels.right, low.left, LABEL)
    code = (0.35, 0.9, 0.12, 0.6, 0.25, 1.0, 0.2, 0.75)
    guess = (0.5, 0.62, 0.3, 0.7, 0.2, 0.8, 0.45, 0.5)
    rows = [(top, theirs, 4, TEACHER, PASSED_ON, code), (low, mine, 3, STUDENT, STUDENT, guess)]
    ends = []
    for place, shape, number, colour, kept, values in rows:
        y = place.centre[1]
        stack = maps(axes, (2.82, y), number, 0.42, colour)
        write(axes, (2.82, stack.y0 - 0.14), f"{shape.channels[-1]} channels")
        whole = bars(axes, (4.75, y), 1.0, 0.56, values, colour)
        strong = [number for number, value in enumerate(code) if value > 0.5]
        colours = [kept if number in strong else "#DDDDDD" for number in range(len(code))]
        part = bars(axes, (6.35, y), 1.0, 0.56, [v if n in strong else 0.05 for n, v in enumerate(values)], colours)
        arrow(axes, (place.x1 + 0.05, y), stack.left, colour)
        arrow(axes, (stack.x1 + 0.03, y), whole.left, colour)
        arrow(axes, whole.right, part.left, colour)
        ends.append(part)
    box(axes, (3.66, 0.88), 0.8, 0.3, "1×1 conv", STUDENT, size=10)
    write(axes, (3.66, 0.6), "learns")
    write(axes, (2.82, 2.95), "a stage’s maps")
    write(axes, (3.66, 2.45), "average")
    write(axes, (4.75, 2.95), "distribution")
    write(axes, (6.35, 2.95), "strongest kept")
    badge = box(axes, (6.35, 1.6), 1.3, 0.3, "cross-entropy", PASSED_ON, filled=True)
    arrow(axes, ends[0].bottom, badge.top, PASSED_ON)
    arrow(axes, badge.bottom, (6.35, ends[1].y1 - 0.06), PASSED_ON)
    return svg(axes, f"Knowledge representing: {student} matches the strongest part of {teacher}'s distribution over channels.")


def srm(teacher, student, classes=10):
    """A codebook for the teacher's features, labels made of its codewords, then distillation."""
    axes = canvas(3.2)
    theirs, mine = shapes = shape_of(teacher, classes), shape_of(student, classes)
    for x, title in ((1.25, "1  find codewords"), (3.6, "2  predict them"), (5.97, "3  distil")):
        write(axes, (x, 2.93), title, INK, TEXT, bold=True)
    divider(axes, 2.4, 0.25, 3.0)
    divider(axes, 4.8, 0.25, 3.0)

    place = drawn(axes, shapes, theirs, (0.72, 2.15), 0.85, 0.62, TEACHER)
    named(axes, (0.72, 1.7), theirs.name, TEACHER, 1.05)
    write(axes, (0.72, 1.4), "frozen")
    shades = np.array([[0.25, 0.4, 0.3, 0.2], [0.3, 0.7, 0.55, 0.25], [0.2, 0.6, 0.45, 0.3], [0.25, 0.3, 0.2, 0.35]])
    grid = cells(axes, (1.85, 2.15), 0.68, [[tint(TEACHER, share) for share in row] for row in shades])
    arrow(axes, (place.x1 + 0.04, 2.15), grid.left, TEACHER)
    book = codebook(axes, (1.25, 0.9), 1.7, 0.44)
    arrow(axes, (1.74, grid.y0), (1.74, book.y1), TEACHER)
    arrow(axes, (1.98, book.y1), (1.98, grid.y0), PASSED_ON)
    write(axes, (1.25, 0.4), "few codewords\nrebuild each pixel")

    kinds = (0.15, 0.4, 0.7, 1.0)  # four codewords as shades
    strongest = [[0, 0, 1, 0], [0, 3, 2, 1], [1, 3, 2, 0], [0, 1, 0, 0]]
    grid = cells(axes, (2.98, 2.15), 0.68, [[tint(PASSED_ON, kinds[word]) for word in row] for row in strongest])
    shares = [sum(row.count(word) for row in strongest) / 9 for word in range(4)]
    image_label = bars(axes, (2.98, 0.98), 0.68, 0.56, shares, [tint(PASSED_ON, kind) for kind in kinds])
    write(axes, (2.98, 1.66), "pixel labels")
    write(axes, (3.0, 0.55), "image labels")
    place = drawn(axes, shapes, mine, (4.28, 1.565), 0.62, 0.46, STUDENT)
    named(axes, (place.x0 - 0.1, 1.36), mine.name, STUDENT, place.x0 - 2.3, "right")
    for label, name, end in ((grid, "CE", place.top), (image_label, "BCE", place.bottom)):
        badge = box(axes, (4.28, label.centre[1]), 0.54, 0.28, name, PASSED_ON, filled=True)
        arrow(axes, label.right, badge.left, PASSED_ON)
        arrow(axes, badge.bottom if name == "CE" else badge.top, end, PASSED_ON)

    top = drawn(axes, shapes, theirs, (6.22, 2.25), 0.75, 0.5, TEACHER)
    low = drawn(axes, shapes, mine, (6.22, 0.85), 0.75, 0.5, STUDENT)
    named(axes, (6.22, 2.64), theirs.name, TEACHER, 1.85)
    named(axes, (6.22, 0.43), mine.name, STUDENT, 1.85)
    badge = box(axes, (6.22, 1.55), 0.5, 0.28, "KL", PASSED_ON, filled=True)
    labels = box(axes, (5.27, 0.85), 0.74, 0.3, "labels", LABEL, filled=True)
    arrow(axes, (6.22, top.y0 - 0.02), badge.top, PASSED_ON)
    arrow(axes, badge.bottom, (6.22, low.y1 + 0.02), PASSED_ON)
    arrow(axes, labels.right, (low.x0 - 0.02, 0.85), LABEL)
    return svg(axes, f"Sparse representation matching: {student} first predicts which codewords {teacher} uses, then is distilled.")


def codebook(axes, centre, width, height, words=12, used=(3, 8)):
    """Codewords side by side, the used ones in full colour."""
    place, step = around(centre, width, height), width / words
    for number in range(words):
        colour = tint(PASSED_ON, 1.0 if number in used else 0.22)
        axes.add_patch(Rectangle((place.x0 + (number + 0.12) * step, place.y0), 0.76 * step, height, facecolor=colour))
    return place


def rco(teacher, student, classes=10):
    """The student follows the states that the teacher passed through, lesson by lesson."""
    axes = canvas(3.2)
    shapes = shape_of(teacher, classes), (mine := shape_of(student, classes))
    plot = Place(0.5, 1.55, 4.7, 2.65)
    points = route(axes, plot, 12)[2::3]
    arrow(axes, (plot.x0, plot.y0), (plot.x1 + 0.2, plot.y0))
    named(axes, (0.3, 2.93), f"the route of {teacher}", TEACHER, 4, "left")
    write(axes, (0.3, 2.62), "accuracy", align="left")
    write(axes, (4.17, 1.39), "epochs")
    named(axes, (0.22, 0.98), mine.name, STUDENT, 1.0, "left")
    write(axes, (0.22, 0.35), "lesson", align="left")
    before = (0.95, 0.75)
    for number, (x, y) in enumerate(points, 1):
        axes.add_patch(Circle((x, y), 0.085, facecolor=PASSED_ON, edgecolor="white", linewidth=1, zorder=4))
        place = drawn(axes, shapes, mine, (x, 0.75), 0.5, 0.5, STUDENT)
        arrow(axes, (x, y - 0.08), (x, place.y1 + 0.03), PASSED_ON)
        arrow(axes, before, (place.x0 - 0.03, 0.75), STUDENT)
        write(axes, (x, 0.35), f"{number}")
        before = (place.x1 + 0.03, 0.75)
    divider(axes, 5.1, 0.25, 2.95)
    write(axes, (6.12, 2.93), "which states?", INK, TEXT, bold=True)
    write(axes, (6.12, 2.6), "one-stage: even steps")
    axes.plot([5.35, 6.9], [2.27, 2.27], color=TEACHER, linewidth=2)
    for number in range(12):
        chosen = number % 3 == 2
        centre, size, colour = (5.35 + 1.55 * (number + 1) / 12, 2.27), 0.085 if chosen else 0.05, PASSED_ON if chosen else TEACHER
        axes.add_patch(Circle(centre, size, facecolor=colour, edgecolor="white", linewidth=0.8, zorder=3))
    write(axes, (6.12, 1.75), "greedy: the furthest\nthat is still easy")
    hard = (0.2, 0.28, 0.42, 0.54, 0.72, 0.86, 1.0)
    bars(axes, (6.12, 0.85), 1.5, 0.9, hard, [PASSED_ON if value == 0.54 else tint(TEACHER, 0.4) for value in hard])
    axes.plot([5.3, 6.95], [0.4 + 0.62 * 0.9] * 2, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    write(axes, (5.42, 1.1), "δ")
    return svg(axes, f"Route constrained optimization: {student} learns from earlier states of {teacher} first, the converged one last.")


def iekd(teacher, student, classes=10):
    """One half of the student's channels is pulled towards the teacher's features, the other pushed away."""
    axes = canvas(3.2)
    theirs, mine = shapes = shape_of(teacher, classes), shape_of(student, classes)
    top = captioned(axes, shapes, theirs, (1.5, 2.4), 1.05, 0.62, TEACHER, f"{theirs.size}\nfrozen")
    low = captioned(axes, shapes, mine, (1.5, 0.95), 1.05, 0.62, STUDENT, f"{mine.size}\nlearns")
    labels = box(axes, (0.47, 0.95), 0.74, 0.3, "labels", LABEL, filled=True)
    arrow(axes, labels.right, low.left, LABEL)
    for x, title in ((3.65, "encoders"), (4.52, "factors"), (6.1, "their directions")):
        write(axes, (x, 2.93), title)
    rows = (
        (top, 2.4, 4, TEACHER, (0.5, 1.0, 0.3, 0.7)),
        (low, 1.38, 2, STUDENT, (0.4, 0.9, 0.4, 0.6)),
        (low, 0.58, 2, STUDENT, (1.0, 0.2, 0.8, 0.3)),
    )
    for place, y, number, colour, factor in rows:
        stack = maps(axes, (2.75, y), number, 0.36, colour)
        coder = box(axes, (3.65, y), 0.34, 0.34, "E", colour, filled=True)
        strip = bars(axes, (4.52, y), 0.6, 0.32, factor, colour)
        arrow(axes, (place.x1 + 0.05, place.centre[1]), stack.left, colour)
        arrow(axes, stack.right, coder.left, colour)
        arrow(axes, coder.right, strip.left, colour)
    write(axes, (3.65, 1.93), "learnt first,\nthen frozen")
    write(axes, (4.52, 1.08), "inherits", PASSED_ON, bold=True)
    write(axes, (4.52, 0.25), "explores", AWAY, bold=True)

    def around_the_circle(degrees, radius):
        return 6.1 + radius * np.cos(np.radians(degrees)), 1.5 + radius * np.sin(np.radians(degrees))

    axes.add_patch(Circle((6.1, 1.5), 0.78, facecolor="none", edgecolor="#D8D8D8", linewidth=1))
    for degrees, colour in ((65, TEACHER), (10, STUDENT), (155, STUDENT)):
        arrow(axes, (6.1, 1.5), around_the_circle(degrees, 0.78), colour, width=2.2)
    arrow(axes, around_the_circle(14, 0.88), around_the_circle(58, 0.88), PASSED_ON, bend=0.2, width=2.2)
    arrow(axes, around_the_circle(159, 0.88), around_the_circle(205, 0.88), AWAY, bend=0.2, width=2.2)
    return svg(axes, f"Inheritance and exploration: one half of {student}'s channels becomes like {teacher}'s features, the other unlike.")


def pwkd(teacher, student, classes=10):
    """Sub-networks of the teacher, narrow to wide, teach one after another."""
    axes = canvas(3.2)
    shapes = theirs, mine = shape_of(teacher, classes), shape_of(student, classes)
    supernet = Supernet(fresh(teacher, classes))
    named(axes, (0.2, 2.3), theirs.name, TEACHER, 1.15, "left")
    named(axes, (0.2, 1.02), mine.name, STUDENT, 1.15, "left")
    write(axes, (0.2, 2.93), "width", align="left")
    write(axes, (0.2, 0.4), "learning\nrate", align="left")
    before, rate = None, []
    x = np.linspace(0, 1, 60)
    for number, width in enumerate(supernet.widths):
        middle = 2.05 + 1.42 * number
        place = drawn(axes, shapes, theirs, (middle, 2.3), 0.95, 0.72, TEACHER, width)
        write(axes, (middle, 2.93), f"{100 * width:g} %", TEACHER, TEXT, bold=True)
        write(axes, (middle, place.y0 - 0.14), count(supernet.select(number).active_parameters()))
        low = drawn(axes, shapes, mine, (middle, 1.02), 0.95, 0.52, STUDENT)
        arrow(axes, (middle, place.y0 - 0.24), (middle, low.y1 + 0.03), PASSED_ON)
        if before:
            arrow(axes, before, (low.x0 - 0.04, 1.02), STUDENT)
        before = low.x1 + 0.04, 1.02
        rate.append((middle - 0.71 + 1.42 * x, 0.2 + 0.4 * (1 + np.cos(np.pi * x)) / 2))
    write(axes, (0.2, place.y0 - 0.14), "parameters", align="left")
    axes.plot(*np.concatenate(rate, axis=1), color=INK, linewidth=1.6)
    return svg(axes, f"From partial to whole knowledge: sub-networks of {teacher}, narrow to wide, teach {student} one after another.")


def combined(teacher, student, classes=10):
    """Two questions, which teacher speaks when and what is passed on, make a grid of methods."""
    axes = canvas(3.2)
    shapes = theirs, mine = shape_of(teacher, classes), shape_of(student, classes)
    columns, rows, wide = (2.62, 3.81, 5.0), (1.62, 1.22, 0.82, 0.42), 1.11
    write(axes, (columns[1], 2.95), "which teacher, when?", INK, TEXT, bold=True)
    write(axes, (0.2, 1.96), "what is passed on?", INK, TEXT, bold=True, align="left")
    for x, name in zip(columns, ("fixed", "RCO", "PWKD"), strict=True):
        write(axes, (x, 1.98), name, TEACHER, TEXT, bold=True)

    named(axes, (0.2, 2.45), theirs.name, TEACHER, align="left")
    drawn(axes, shapes, theirs, (columns[0], 2.45), 0.8, 0.5, TEACHER)
    plot = Place(columns[1] - 0.42, 2.2, columns[1] + 0.42, 2.72)
    route(axes, plot, 4)
    for number in range(4):
        x, tall = columns[2] - 0.42 + 0.22 * number, 0.13 * (number + 1)
        axes.add_patch(Rectangle((x, 2.2), 0.18, 0.52, facecolor=tint(TEACHER, 0.13)))
        axes.add_patch(Rectangle((x, 2.2), 0.18, tall, facecolor=TEACHER))

    for y, (name, what) in zip(rows, (("KD", "outputs"), ("KR", "channels"), ("SRM", "codewords"), ("IE-KD", "halves")), strict=True):
        write(axes, (0.2, y), name, PASSED_ON, TEXT, bold=True, align="left")
        write(axes, (0.95, y), what, align="left")
        for x, curriculum in zip(columns, ("", "RCO", "PWKD"), strict=True):
            alone = not curriculum or name == "KD"
            text = (curriculum or name) if alone else f"{curriculum} * {name}"
            box(axes, (x, y), wide, 0.32, text, PASSED_ON if alone else INK, filled=alone, size=10, bold=alone)
    box(axes, (6.45, 2.62), 1.0, 0.3, "a paper’s", PASSED_ON, filled=True, size=10)
    box(axes, (6.45, 2.24), 1.0, 0.3, "ours", INK, size=10, bold=False)
    place = captioned(axes, shapes, mine, (6.42, 1.02), 0.9, 0.55, STUDENT, f"{mine.size}\nlearns", room=1.05)
    arrow(axes, (columns[2] + wide / 2 + 0.06, 1.02), (place.x0 - 0.04, 1.02), PASSED_ON, width=2.2)
    return svg(axes, f"Curriculum times knowledge: which states of {teacher} teach {student} when, and what is passed on.")
