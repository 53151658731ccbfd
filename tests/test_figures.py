"""Figures show what their numbers say: which rows, which texts, which colours."""

import matplotlib
import pandas as pd
import pytest
from made_up import TABLE, TABLE_ACCURACY, grid, made_up_costs, runs_of

from kd.report import effects, figures
from kd.report.summary import summary

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def texts(things):
    return [thing.get_text() for thing in things]


def dots(axis):
    """{height: (mean, low, high, filled?)} of the dots with intervals."""
    found = {}
    for container in axis.containers:
        (x,), (y,) = container.lines[0].get_data()
        ((low, _), (high, _)) = container.lines[2][0].get_segments()[0]
        found[y] = (x, low, high, container.lines[0].get_markerfacecolor() != "white")
    return found


def test_a_table_shows_paired_differences_around_its_baseline_and_the_reported_ones():
    table = TABLE | {"rows": [row | ({"reported": {"value": 60.0, "tier": "A", "source": "x"}} if row["row"] == "KD" else {}) for row in TABLE["rows"]]}
    lines = summary(runs_of(TABLE_ACCURACY), table)
    (axis,) = figures.table_figure(lines).axes
    assert texts(axis.get_yticklabels()) == ["student alone", "better", "alike", "once"]
    assert texts(axis.texts)[-1] == "KD: 90.33 %" and axis.texts[-1].xy[0] == 0
    found, known = dots(axis), lines.set_index("row")
    for height, row in zip((3, 2, 1, 0), ("student alone", "better", "alike", "once"), strict=True):
        mean, half = known.loc[row, ["difference", "difference_interval"]].astype(float)
        assert found[height][0] == pytest.approx(mean) and found[height][3] == (row in ("student alone", "better"))
        if half == half:
            assert found[height][1:3] == pytest.approx((mean - half, mean + half))
    diamonds = [tuple(line.get_xydata()[0]) for line in axis.lines if line.get_marker() == "D"]
    assert diamonds == [(0.5, 3), (3.0, 2), (2.0, 1)]  # 60.5, 63 and 62 against 60; on the same axis
    assert not [line for line in figures.table_figure(summary(runs_of(TABLE_ACCURACY), TABLE)).axes[0].lines if line.get_marker() == "D"]
    for nothing in (lines[lines["n"] == 0], lines[lines["row"] == "KD"]):
        assert figures.table_figure(nothing) is None


def test_a_row_far_away_is_an_arrow_with_its_value():
    near = {f"row {n}": {s: 90.0 + n + 0.1 * s * (n + 1) for s in range(3)} for n in range(3)}
    accuracy = {"KD": {0: 90.0, 1: 90.3, 2: 90.1}, **near, "far": {0: 19.0, 1: 30.0, 2: 8.0}}
    table = {"name": "made_up", "title": "T", "rows": [{"row": row} for row in accuracy]}
    (axis,) = figures.table_figure(summary(runs_of(accuracy), table)).axes
    assert axis.get_xlim()[0] > -6 and set(dots(axis)) == {1, 2, 3}
    (arrow,) = [line for line in axis.lines if line.get_marker() == "<"]
    assert tuple(arrow.get_xydata()[0]) == (axis.get_xlim()[0], 0) and "-71.1, off the axis" in texts(axis.texts)


def test_every_pair_has_its_panel_with_its_own_baseline():
    runs = runs_of(TABLE_ACCURACY)
    other = runs.assign(pair="huge -> small", top1_last=runs["top1_last"] - 10)
    axes = figures.table_figure(summary(pd.concat([runs, other]), TABLE)).axes
    assert [axis.get_title() for axis in axes] == ["big -> small", "huge -> small"]
    assert [texts(axis.texts)[-1] for axis in axes] == ["KD: 90.33 %", "KD: 80.33 %"]


def test_the_lengths_of_a_method_stand_below_each_other():
    rows = [("KD, short", 1.0, 0.5), ("KR, short", -20.0, 2.0), ("KD, long", 0.2, 0.5), ("KR, long", -1.0, 0.5)]
    comparisons = pd.DataFrame(rows, columns=["row", "mean", "interval"])
    comparisons["verdict"] = ["(higher)", "(lower)", "(open)", "(lower)"]
    figure = figures.over_length(comparisons)
    found = [(round(height), *dot) for height, dot in sorted(dots(figure.axes[0]).items(), reverse=True)]
    assert [(height, mean, filled) for height, mean, _, _, filled in found] == [(1, 1.0, True), (1, 0.2, False), (0, -1.0, True)]
    assert "-20.0, off the axis" in texts(figure.axes[0].texts) and texts(figure.legends[0].get_texts()) == ["short", "long"]
    assert figures.over_length(comparisons[:2]) is None


def test_the_grid_shows_every_cell_that_ran():
    accuracy = grid(lambda c, k: 3.0 * (effects.name_of(c, k) == "rco * (kd + srm)"))
    found = texts(figures.heat_map(*effects.gain_grid(accuracy)).axes[0].texts)
    starred = [text for text in found if text.endswith("*")]
    assert len(found) == 33 and "KD: 0" in found and len(starred) == 1 and float(starred[0][:-1]) == pytest.approx(3, abs=0.3)
    axes = figures.heat_map(*effects.gain_grid(accuracy[["kd", "kd + kr"]])).axes[0]
    assert texts(axes.get_yticklabels()) == ["kd", "kd + kr"] and texts(axes.get_xticklabels()) == ["fixed"]


def test_effects_stand_below_each_other_in_their_order():
    family = effects.main_effects(grid(lambda c, k: 3.0 * (c == "rco")))
    axes = figures.bars(family).axes[0]
    assert texts(axes.get_yticklabels())[:2] == ["rco", "pwkd"]
    found = dots(axes)
    assert found[len(family) - 1][0] == pytest.approx(3, abs=0.3) and [found[height][3] for height in (len(family) - 1, len(family) - 2)] == [True, False]


def test_the_cost_figure_names_the_front_of_many_and_all_of_a_few():
    spent = made_up_costs(grid(lambda c, k: 0.0))
    figure = figures.cost_figure(spent)
    assert len(texts(figure.axes[0].texts)) == spent["front"].sum() < len(spent)
    assert sorted(texts(figure.legends[0].get_texts())) == ["fixed", "front, by means", "pwkd", "rco", "student alone"]
    few = spent[:12]
    figure = figures.cost_figure(few)
    figure.draw_without_rendering()
    named = [text.split("\n") for text in texts(figure.axes[0].texts)]
    assert sorted(name for names in named for name in names) == sorted(few["name"].replace("labels", "student alone"))
    assert sorted(map(len, named)) == [1, 11]  # points that lie on each other have one text
    room = figure.axes[0].get_window_extent()
    for text in figure.axes[0].texts:
        box = matplotlib.text.Text.get_window_extent(text)
        assert room.x0 <= box.x0 and box.x1 <= room.x1, text


def test_a_colour_has_one_meaning():
    assert len({figures.TEACHER, figures.STUDENT, figures.PASSED_ON, *figures.COLOURS}) == 3 + len(figures.COLOURS)


def test_late_curves_begin_a_point_below_the_means_of_the_last_two_thirds():
    series = {"a": [[10.0, 90.0, 80.0], [30.0, 92.0, 84.0]], "b": [5.0, 85.0, 86.0]}
    (axis,) = figures.curves(series, late=True).axes
    assert axis.get_ylim()[0] == 81.0 and texts(axis.get_legend().get_texts()) == ["a", "b"]
    assert figures.curves(series).axes[0].get_ylim()[0] < 5
    assert figures.curves({}, late=True).axes[0].get_legend() is None
