"""Every plot that more than one notebook or the reports draw. Each returns its figure; none saves it."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from PIL import Image, UnidentifiedImageError

# colour-blind safe (Okabe and Ito), in the order in which things are usually named
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
OF_VERDICT = {"better": COLOURS[2], "(higher)": COLOURS[2], "worse": COLOURS[1], "(lower)": COLOURS[1]}


def style():
    """The notebooks' common look, whatever the reader's matplotlibrc says; call it once, in the first cell."""
    plt.rcdefaults()
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "font.size": 10,
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
    few = flat.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(small, format="PNG", optimize=True)
    return min(png, small.getvalue(), key=len)


def images(tensor, titles=None, columns=10, scale=0.9):
    """A grid of images.

    tensor: (N, C, H, W), uint8 or float of any range, stretched to its own. titles: N strings, cut to fit.
    """
    tensor = tensor.float()
    rows = -(-len(tensor) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * scale, rows * (scale + (0.25 if titles else 0))), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    low, high = tensor.min(), tensor.max()
    for index, (axis, image) in enumerate(zip(axes.flat, tensor, strict=False)):
        picture = ((image - low) / (high - low + 1e-12)).permute(1, 2, 0).squeeze(-1)
        axis.imshow(picture.cpu().numpy(), vmin=0, vmax=1)
        if titles:
            axis.set_title(short(titles[index], int(14 * scale)), fontsize=8)
    return figure


def short(name, most=12):
    """A class's name, cut where it is longer than `most` letters: it has to stand beside others."""
    name = str(name)
    return name if len(name) <= most else name[: most - 1] + "…"


def curves(series, xlabel="epoch", ylabel="test accuracy (%)", ax=None, marks=()):
    """Lines over epochs. series: {label: array (seeds, epochs) or (epochs,)}; several seeds show as mean and range.

    marks: x positions of vertical lines (starts of lessons, steps of the learning rate).
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 3.4))
    for position in marks:
        ax.axvline(position, color="0.8", linewidth=0.8, zorder=0)
    for label, values in series.items():
        values = np.atleast_2d(np.asarray(values, dtype=float))
        x = np.arange(1, values.shape[1] + 1)
        (line,) = ax.plot(x, values.mean(0), label=label)
        if len(values) > 1:
            ax.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if any(series):
        ax.legend(fontsize=8)
    return ax.figure


def table_figure(lines, title=""):
    """A dot and its 95 % interval a row, one panel a pair; the reported value, where known, as an open diamond.

    lines: the DataFrame of kd.report.summary; rows that did not run are left out. Returns None when nothing ran.
    Reported values belong to other data, so they get an axis of their own on top.
    """
    lines = lines[lines["n"] > 0]
    if not len(lines):
        return None
    pairs = list(lines["pair"].unique())
    rows, count = max((lines["pair"] == pair).sum() for pair in pairs), len(pairs)
    figure, axes = plt.subplots(count, 1, figsize=(6.8, count * (0.9 + 0.32 * rows)), squeeze=False)
    for ax, pair in zip(axes[:, 0], pairs, strict=True):
        here = lines[lines["pair"] == pair].reset_index(drop=True)
        y = np.arange(len(here))[::-1]
        for position, line in zip(y, here.to_dict("records"), strict=True):
            colour = OF_VERDICT.get(line["verdict"], "0.25")
            ax.errorbar(
                line["mean"],
                position,
                xerr=np.nan_to_num(line["interval"]),
                fmt="o",
                color=colour,
                capsize=3,
                markersize=5,
            )
        ax.set_yticks(y, here["row"])
        ax.set_ylim(-0.6, len(here) - 0.4)
        ax.set_xlabel("top-1 accuracy on test, ours (%)")
        ax.grid(axis="y", visible=False)
        reported = pd.to_numeric(here["reported"], errors="coerce")  # "+2.14 over KD" has no place on the axis
        if reported.notna().sum() > 1:  # one value alone would stand anywhere on an axis of its own
            other = ax.twiny()
            other.plot(reported, y, "D", color=COLOURS[3], markerfacecolor="none", markersize=6)
            other.set_xlabel("reported (%), diamonds", color=COLOURS[3], fontsize=9)
            other.tick_params(axis="x", colors=COLOURS[3])
            other.grid(visible=False)
            other.spines["top"].set_visible(True)
        if len(pairs) > 1:
            ax.set_title(pair, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def over_length(comparisons):
    """Differences from KD of the same length, a line a method, over the length of training. None where no two lengths ran.

    comparisons: the `controls` of the table `lengths`, whose rows are called "METHOD, LENGTH", short lengths first.
    """
    parts = comparisons["row"].str.rsplit(", ", n=1, expand=True) if len(comparisons) else None
    lengths = list(dict.fromkeys(parts[1])) if parts is not None else []
    if len(lengths) < 2:
        return None
    figure, ax = plt.subplots(figsize=(6.8, 3.6))
    ax.axhline(0, color="0.5", linewidth=0.8)
    for number, (method, mine) in enumerate(comparisons.groupby(parts[0], sort=False)):
        x = np.array([lengths.index(length) for length in parts.loc[mine.index, 1]]) + 0.05 * (number - 3.5)
        style = {"fmt": "o-" if number < 7 else "s--", "capsize": 2, "markersize": 4, "label": method}
        ax.errorbar(x, mine["mean"], yerr=np.nan_to_num(mine["interval"]), color=COLOURS[number % len(COLOURS)], **style)
    ax.set_xticks(range(len(lengths)), lengths)
    ax.set(xlabel="length of training, of the method and of KD", ylabel="points over KD, with 95 % interval")
    figure.legend(fontsize=8, loc="outside right center")
    return figure


def bars(family, title=""):
    """A dot and interval, in points, for each line of a family of kd.report.effects; coloured where better or worse."""
    figure, ax = plt.subplots(figsize=(6.4, 0.9 + 0.28 * len(family)))
    for place, line in zip(range(len(family))[::-1], family.to_dict("records"), strict=True):
        colour = OF_VERDICT.get(line["verdict"], "0.4")
        ax.errorbar(
            line["mean"], place, xerr=np.nan_to_num(line["interval"]), fmt="o", color=colour, capsize=3, markersize=5
        )
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_yticks(range(len(family))[::-1], family["name"])
    ax.set_ylim(-0.6, len(family) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="percentage points, with 95 % interval", title=title)
    return figure


def heat_map(means, texts):
    """Gains over KD in points, from the two DataFrames of kd.report.effects.gain_grid."""
    reach = max(float(np.nanmax(np.abs(means))), 1e-6)
    figure, ax = plt.subplots(figsize=(5.6, 1.3 + 0.3 * len(means)))
    shown = ax.imshow(means, cmap="PuOr", vmin=-reach, vmax=reach, aspect="auto")
    for (i, j), text in np.ndenumerate(texts):
        colour = "white" if abs(means.iloc[i, j]) > 0.6 * reach else "black"
        weight = "bold" if "*" in text else None
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color=colour, fontweight=weight)
    ax.set_xticks(range(means.shape[1]), means.columns)
    ax.set_yticks(range(len(means)), means.index)
    ax.set(xlabel="curriculum", ylabel="knowledge")
    ax.grid(visible=False)
    figure.colorbar(shown, ax=ax, label="gain over KD (points)")
    return figure


def cost_figure(spent):
    """Cost of training against accuracy, the methods on the front joined and named.

    spent: the DataFrame of kd.report.cost.costs.
    """
    figure, ax = plt.subplots(figsize=(7, 4.2))
    for (label, mine), colour in zip(spent.groupby("curriculum", sort=False), ("0.4", *COLOURS), strict=False):
        ax.errorbar(
            mine["cost"],
            mine["mean"],
            yerr=mine["interval"].fillna(0),
            fmt="o",
            color=colour,
            label=label,
            alpha=0.7,
            elinewidth=0.7,
        )
    front = spent[spent["front"]].sort_values("cost")
    ax.step(front["cost"], front["mean"], where="post", color="0.3", linewidth=1, label="front, by means")
    named = spent.sort_values(["cost", "mean"]) if len(spent) <= 12 else front  # of many points all names would not fit
    for place, line in enumerate(named.to_dict("records")):
        name = line["name"].replace("labels", "student alone")
        ax.annotate(
            name, (line["cost"], line["mean"]), xytext=(6, 8 + 11 * (place % 2)), textcoords="offset points", fontsize=8
        )
    ax.set(xlabel="multiply-adds of training, relative to plain KD", ylabel="top-1 accuracy on test (%)")
    figure.legend(fontsize=8, loc="outside right center")
    return figure
