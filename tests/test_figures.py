"""Figures show what their numbers say: which rows, which texts, which colours."""

import matplotlib
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


def test_a_table_shows_the_rows_that_ran_and_the_figures_that_are_reported():
    lines = summary(runs_of(TABLE_ACCURACY), TABLE)
    figure = figures.table_figure(lines)
    assert texts(figure.axes[0].get_yticklabels()) == ["student alone", "KD", "better", "alike", "once"]
    assert sorted(figure.axes[1].lines[0].get_xdata()[[0, 2, 3]]) == [60.5, 62.0, 63.0]
    assert figures.table_figure(lines[lines["n"] == 0]) is None


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
    assert axes.lines[0].get_color() == figures.OF_VERDICT["better"] and axes.lines[0].get_ydata()[0] == len(family) - 1


def test_the_cost_figure_names_the_front():
    spent = made_up_costs(grid(lambda c, k: 0.0))
    figure = figures.cost_figure(spent)
    assert len(texts(figure.axes[0].texts)) == spent["front"].sum()
    assert texts(figure.legends[0].get_texts()) == ["front, by means", "student alone", "fixed", "rco", "pwkd"]
