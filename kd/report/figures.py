"""Every plot that more than one notebook or the reports draw. Each returns its figure; none saves it."""

import io
import textwrap
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from PIL import Image, UnidentifiedImageError

# Colour-blind safe (Okabe and Ito, the wine red is Tol's). The first three mean one thing each, in every figure of the study.
TEACHER, STUDENT, PASSED_ON = "#0072B2", "#D55E00", "#009E73"
DARK = "0.2"  # whatever is measured and needs no colour
COLOURS = ["#000000", "#56B4E9", "#CC79A7", "#E69F00", "#882255", "#888888"]  # what a legend names: rows, data sets, curricula
DPI, WIDTH = 160, 5.6  # inches; text of 10 points is still ten pixels high in a picture shown 390 pixels wide


def style():
    """The notebooks' common look, whatever the reader's matplotlibrc says; call it once, in the first cell."""
    plt.rcdefaults()
    plt.rcParams.update(
        {
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "figure.figsize": (WIDTH, 3.2),
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.25,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "font.size": 10,
            "axes.titlesize": 10,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "image.cmap": "gray",
        }
    )


def with_palette(png, colours):
    """A PNG file (bytes) with at most so many colours, what was transparent on white.

    `png` itself is returned if it has a palette already, is no picture or would not become smaller.
    """
    try:
        image = Image.open(io.BytesIO(png))
    except UnidentifiedImageError:
        return png
    if image.mode == "P":
        return png
    flat, small = Image.new("RGB", image.size, "white"), io.BytesIO()
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    # covers rare strong colours too, which the median cut paints grey; one step of k-means brings back the common greys
    few = flat.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(small, format="PNG", optimize=True)
    return min(png, small.getvalue(), key=len)


def images(tensor, titles=None, columns=10, scale=WIDTH / 10):
    """A grid of images, `scale` inches each.

    tensor: (N, C, H, W), uint8 or float of any range, stretched to its own. titles: N strings, cut to fit.
    """
    tensor = tensor.float()
    rows = -(-len(tensor) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * scale, rows * (scale + (0.2 if titles else 0))), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    low, high = tensor.min(), tensor.max()
    for index, (axis, image) in enumerate(zip(axes.flat, tensor, strict=False)):
        picture = ((image - low) / (high - low + 1e-12)).permute(1, 2, 0).squeeze(-1)
        axis.imshow(picture.cpu().numpy(), vmin=0, vmax=1)
        if titles:
            axis.set_title(short(titles[index], int(15 * scale)), fontsize=8, pad=2)
    return figure


def short(name, most=12):
    """A class's name, cut where it is longer than `most` letters: it has to stand beside others."""
    name = str(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def curves(series, xlabel="epoch", ylabel="test accuracy (%)", ax=None, marks=(), late=False):
    """Lines over epochs. series: {label: array (seeds, epochs) or (epochs,)}; several seeds show as mean and range.

    marks: x positions of vertical lines (starts of lessons, steps of the learning rate). late: leave out what lies more than a point below
    the means of the last two thirds, so that ends can be told apart.
    """
    if ax is None:
        _, ax = plt.subplots()
    for position in marks:
        ax.axvline(position, color="0.8", linewidth=0.8, zorder=0)
    lowest = []
    for label, values in series.items():
        values = np.atleast_2d(np.asarray(values, dtype=float))
        x, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
        (line,) = ax.plot(x, mean, label=label)
        lowest.append(mean[len(mean) // 3 :].min())
        if len(values) > 1:
            ax.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if late and lowest:
        ax.set_ylim(bottom=min(lowest) - 1)
    if any(series):
        ax.legend()
    return ax.figure


def interval_at(axis, mean, half, height, ends, decided, colour=DARK, marker="o"):
    """A dot with its interval, filled where `decided`; one outside of `ends` as an arrow at the figure's edge, with its value.

    mean, half: in points; half: half of the interval's width, nan for none. ends: the axis's limits (low, high).
    """
    low, high = ends
    look = {"color": colour, "markerfacecolor": colour if decided else "white", "zorder": 3}
    if low <= mean <= high:
        axis.errorbar(mean, height, xerr=np.nan_to_num(half), fmt=marker, capsize=2.5, markersize=5, **look)
        return
    right = mean > high
    edge, side = (high, {"xytext": (-7, 0), "ha": "right"}) if right else (low, {"xytext": (7, 0), "ha": "left"})
    axis.plot(edge, height, ">" if right else "<", markersize=6, clip_on=False, **look)
    axis.annotate(f"{mean:+.1f}, off the axis", (edge, height), textcoords="offset points", va="center", fontsize=9, color=DARK, **side)


def limits(means, halves, reported=()):
    """(low, high) of an axis of differences: it holds zero, all that is reported and every interval but those of rows far away.

    Far away is what lies beyond six times the median distance from zero, and beyond four points.
    """
    means, halves, reported = (np.asarray(values, dtype=float) for values in (means, np.nan_to_num(halves), reported))
    reach = max(4.0, 6 * float(np.median(np.abs(means))), *np.abs(reported))
    near = np.abs(means) <= reach
    ends = np.concatenate([[0.0], reported, (means - halves)[near], (means + halves)[near]]).clip(-reach, reach)
    low, high = ends.min() - (~near & (means < 0)).any() * 1.0, ends.max() + (~near & (means > 0)).any() * 1.0
    room = 0.05 * (high - low)
    return low - room, high + room


def rows_of_dots(axis, names, low_high):
    """The frame of a figure that has a row a comparison, from the top, around a line at zero."""
    axis.axvline(0, color="0.5", linewidth=1, zorder=1)
    axis.set_yticks(range(len(names))[::-1], [textwrap.fill(name, 32) for name in names], fontsize=9)
    axis.set(xlim=low_high, ylim=(-0.6, len(names) - 0.4))
    axis.grid(axis="y", visible=False)


def caption(figure, text):
    """What the figure draws, below it."""
    figure.supxlabel("\n".join(textwrap.fill(line, 84) for line in text.splitlines()), fontsize=9)


def table_figure(lines, title=""):
    """Paired differences from the table's baseline around zero, with 95 % intervals; one panel a pair.

    lines: the DataFrame of kd.report.summary; rows that were not compared are left out. Filled where the interval excludes zero. An
    open diamond is the reported difference: the row's reported figure minus the baseline's. Returns None without a comparison.
    """
    compared = lines[lines["difference"].notna()]
    if not len(compared):
        return None
    count = compared["pair"].nunique()
    heights = [0.5 + 0.25 * number for number in compared.groupby("pair", sort=False).size()]
    figure, axes = plt.subplots(
        count, 1, figsize=(WIDTH, sum(heights) + 0.6), height_ratios=heights, squeeze=False
    )
    drawn = False
    for axis, (pair, here) in zip(axes[:, 0], compared.groupby("pair", sort=False), strict=True):
        baseline = lines[(lines["pair"] == pair) & (lines["n"] > 0) & (lines["row"] == lines["baseline"])].iloc[0]
        reported = pd.to_numeric(here["reported"], errors="coerce")  # "+2.14 over KD" is no accuracy
        reported = (reported - pd.to_numeric(baseline["reported"], errors="coerce")).to_numpy(float)
        ends = limits(here["difference"], here["difference_interval"], reported[np.isfinite(reported)])
        rows_of_dots(axis, here["row"], ends)
        for height, line, there in zip(range(len(here))[::-1], here.to_dict("records"), reported, strict=True):
            decided = line["verdict"] in ("(higher)", "(lower)")
            interval_at(axis, line["difference"], line["difference_interval"], height, ends, decided)
            if np.isfinite(there):
                drawn = True
                axis.plot(there, height, "D", color=DARK, markerfacecolor="none", markersize=8, zorder=2)
        axis.annotate(
            f"{baseline['row']}: {baseline['mean']:.2f} %", (0, 1), xycoords=("data", "axes fraction"),
            xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9,
        )  # fmt: skip
        if count > 1:
            axis.set_title(pair, pad=16)
    text = f"points of test accuracy over {baseline['row']}, paired by seed, with 95 % intervals\n"
    text += "filled: the interval excludes zero; open: it does not"
    caption(figure, text + ("\nopen diamond: the same difference as reported, on the paper's data" if drawn else ""))
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def over_length(comparisons):
    """Differences from KD of the same length, a group of dots a method, short lengths on top. None where no two lengths ran.

    comparisons: the `controls` of the table `lengths`, whose rows are called "METHOD, LENGTH", short lengths first.
    """
    parts = comparisons["row"].str.rsplit(", ", n=1, expand=True) if len(comparisons) else None
    lengths = list(dict.fromkeys(parts[1])) if parts is not None else []
    if len(lengths) < 2:
        return None
    shades = [str(shade) for shade in np.linspace(0.65, 0.0, len(lengths))]
    methods = list(dict.fromkeys(parts[0]))
    figure, axis = plt.subplots(figsize=(WIDTH, 1.3 + 0.42 * len(methods)))
    ends = limits(comparisons["mean"], comparisons["interval"])
    rows_of_dots(axis, methods, ends)
    for (method, length), line in zip(parts.itertuples(index=False), comparisons.to_dict("records"), strict=True):
        place = lengths.index(length)
        height = len(methods) - 1 - methods.index(method) + 0.26 * ((len(lengths) - 1) / 2 - place)
        decided = line["verdict"] in ("(higher)", "(lower)")
        interval_at(axis, line["mean"], line["interval"], height, ends, decided, shades[place])
    for length, shade in zip(lengths, shades, strict=True):
        axis.plot([], [], "o-", color=shade, markersize=5, label=length)
    figure.legend(loc="outside upper center", ncols=len(lengths), title="length of training, of the method and of KD")
    text = "points of test accuracy over KD of the same length, with 95 % intervals"
    caption(figure, f"{text}\nfilled: the interval excludes zero; open: it does not")
    return figure


def bars(family, title=""):
    """A dot and its 95 % interval, in points, for each line of a family of kd.report.effects; filled where better or worse."""
    figure, axis = plt.subplots(figsize=(WIDTH, 1.0 + 0.25 * len(family) + (0.2 if title else 0)))
    ends = limits(family["mean"], family["interval"])
    rows_of_dots(axis, family["name"], ends)
    for height, line in zip(range(len(family))[::-1], family.to_dict("records"), strict=True):
        interval_at(axis, line["mean"], line["interval"], height, ends, line["verdict"] in ("better", "worse"))
    axis.set_title(title)
    caption(figure, "points of test accuracy, with 95 % interval\nfilled: better or worse, after Holm's correction; open: neither is shown")
    return figure


def heat_map(means, texts):
    """Gains over KD in points, from the two DataFrames of kd.report.effects.gain_grid."""
    reach = max(float(np.nanmax(np.abs(means))), 1e-6)
    figure, ax = plt.subplots(figsize=(WIDTH, 1.2 + 0.3 * len(means)))
    shown = ax.imshow(means, cmap="BrBG", vmin=-reach, vmax=reach, aspect="auto")
    for (i, j), text in np.ndenumerate(texts):
        colour = "white" if abs(means.iloc[i, j]) > 0.6 * reach else "black"
        weight = "bold" if "*" in text else None
        ax.text(j, i, text, ha="center", va="center", fontsize=10, color=colour, fontweight=weight)
    ax.set_xticks(range(means.shape[1]), means.columns)
    ax.set_yticks(range(len(means)), means.index)
    ax.set(xlabel="curriculum", ylabel="knowledge")
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, label="gain over KD (points)")
    ax.set_facecolor("0.85")
    notes = ["*: better or worse than KD, after Holm's correction"] if any("*" in text for text in texts.to_numpy().flat) else []
    notes += ["grey: not run"] if means.isna().any(axis=None) else []
    if notes:
        caption(figure, "; ".join(notes))
    return figure


def cost_figure(spent):
    """Cost of training against accuracy, a marker a curriculum, the methods on the front joined; each named, where few ran.

    spent: the DataFrame of kd.report.cost.costs.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.4))
    for (label, mine), colour, marker in zip(spent.groupby("curriculum", sort=False), COLOURS, "oDs^v", strict=False):
        errors = {"yerr": mine["interval"].fillna(0), "elinewidth": 0.8, "alpha": 0.5, "ecolor": colour}
        axis.errorbar(mine["cost"], mine["mean"], fmt="none", **errors)
        axis.plot(mine["cost"], mine["mean"], marker, color=colour, label=label, markersize=5)
    front = spent[spent["front"]].sort_values("cost")
    axis.step(front["cost"], front["mean"], where="post", color="0.3", linewidth=3, alpha=0.3, zorder=0, label="front, by means")
    axis.set(ylabel="test accuracy (%), with 95 % interval")
    axis.margins(x=0.15)
    figure.legend(loc="outside upper center", ncols=3)
    text = "multiply-adds of training, of student and teacher, relative to plain KD"
    caption(figure, f"{text};\nthe teacher's own training, once for all methods, is not among them")
    named = spent if len(spent) <= 16 else front  # of many points all names would not fit
    corners = [(x, y) for before, after in pairwise(front[["cost", "mean"]].to_numpy()) for x, y in (before, (after[0], before[1]))]
    beside(axis, named["cost"], named["mean"], named["name"].replace("labels", "student alone"), [*corners, tuple(front[["cost", "mean"]].iloc[-1])])
    return figure


NEAR = [  # where a name may stand beside its point: offset in points, and the text's alignment
    ((dx * reach, dy * reach), ha, va)
    for reach in (6, 14, 26, 40, 56)
    for dx, ha in ((1, "left"), (-1, "right"), (0, "center"))
    for dy, va in ((0, "center"), (1, "bottom"), (-1, "top"))
    if dx or dy
]


def beside(axis, x, y, names, line=()):
    """Each point's name beside it, where it meets fewest of the other points, names and pieces of the `line` through these (x, y):
    the last thing to be drawn."""
    axis.figure.draw_without_rendering()  # the layout must be settled
    renderer, room, taken = axis.figure.canvas.get_renderer(), axis.get_window_extent(), []
    points, together = axis.transData.transform(np.column_stack([x, y])), {}
    for number, point in enumerate(points):  # points that lie on each other have one name between them
        first = next((other for other in together if np.hypot(*(points[other] - point)) < 6), number)
        together.setdefault(first, []).append(names.iloc[number])
    pieces = [Bbox([*ends]).padded(1) for ends in pairwise(axis.transData.transform(line))] if len(line) else []
    for number in sorted(together, key=lambda number: -points[number, 1]):
        others = [Bbox.from_bounds(px - 16, py - 16, 32, 32) for px, py in np.delete(points, number, axis=0)]
        found = []
        for offset, ha, va in NEAR:
            text = axis.annotate(
                "\n".join(together[number]), (x.iloc[number], y.iloc[number]), xytext=offset, textcoords="offset points", ha=ha, va=va,
                fontsize=8, bbox={"facecolor": "white", "alpha": 0.7, "pad": 0, "linewidth": 0}, zorder=4,
                arrowprops={"arrowstyle": "-", "linewidth": 0.5} if max(map(abs, offset)) > 10 else None,
            )  # fmt: skip
            text.set_in_layout(False)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            found.append((3 * (not inside) + sum(map(box.padded(3).overlaps, taken + others + pieces)), len(found), text, box))
        _, best, _, box = min(found, key=lambda place: place[:2])
        for _, place, text, _ in found:
            if place != best:
                text.remove()
        taken.append(box)
