"""What training costs: fronts by their definition, measured times."""

import numpy as np
import pytest
from made_up import additive, grid, made_up_costs, record_of, write_runs

from kd.errors import ConfigError
from kd.report import cost
from kd.study import store

pytest_plugins = ["made_up_root"]


def test_front_against_its_definition():
    generator = np.random.default_rng(0)
    spent, value = generator.integers(0, 5, 40).astype(float), generator.integers(0, 5, 40).astype(float)
    expected = [
        not any(s <= spent[i] and v >= value[i] and (s < spent[i] or v > value[i]) for s, v in zip(spent, value, strict=True)) for i in range(40)
    ]
    assert cost.on_front(spent, value).tolist() == expected and 0 < sum(expected) < 40


def test_costs_relative_to_kd():
    spent = made_up_costs(grid(additive)).set_index("name")
    assert spent.loc["kd", "cost"] == 1 and spent.loc["rco * kd", "cost"] == 1
    assert spent.loc["pwkd * kd", "cost"] == pytest.approx((6000 + 20 * (0.75 * 100 + 0.25 * 1000)) / (6000 + 20 * 1000))
    assert spent["front"].any() and spent.loc[spent["mean"].idxmax(), "front"]


def test_measured_cost_by_hand_of_each_method(root):
    """Seconds and memory come from the store's entries of the runs under runs/, and only of those trained here."""
    machine = {"device": "abacus", "threads": 1}
    runs = [("a", {}, 20, 5), ("b", {}, 40, 7), ("c", {"knowledge": ["kd", "kr"], "curriculum": "rco"}, 90, 6)]
    place = {"table": "kd_main", "row": "KD", "pair": "big -> small"}
    made = [record_of(key, **method, epochs=10) | place for key, method, _, _ in runs]
    write_runs(root, [*made, record_of("pulled", epochs=10) | place], "p")
    for record, (_, _, seconds, memory) in zip(made, runs, strict=True):
        kept = {name: value for name, value in record.items() if name not in place}
        store.save("p", kept, machine | {"seconds": seconds, "peak_memory_mib": memory})
    store.save("p", record_of("pulled"), {})
    store.save("p", record_of("of another profile"), machine | {"seconds": 1000.0, "peak_memory_mib": 1})
    text = cost.cost("p")
    assert "| kd | 2 | 3.00 | 1.00 | 7 |" in text and "| rco * (kd + kr) | 1 | 9.00 | 3.00 | 6 |" in text
    assert "3 runs of students took 2 min 30 s" in text and "(abacus, 1 thread a run)" in text
    with pytest.raises(ConfigError, match="the store has no times of profile q's runs"):
        cost.cost("q")
