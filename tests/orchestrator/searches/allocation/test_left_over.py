"""What is left of the budget is spent, and never more."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.left_over import LeftOver
from orchestrator.searches.allocation.options import usable
from tests.orchestrator.searches.allocation.small_spaces import layer, nothing_can_be_improved, problems, within


@given(problems(), st.data())
def test_ends_where_no_layer_can_be_improved(problem, data):
    options, capacities = problem
    layers, errors = usable(options)
    start = [data.draw(st.integers(0, len(one.ranks) - 1)) for one in layers]
    if not within(layers, start, capacities):
        return
    end = LeftOver(layers, errors, list(capacities)).spend(start, capacities)
    assert within(layers, end, capacities)
    assert all(error[b] <= error[a] for error, a, b in zip(errors, start, end, strict=True))
    assert nothing_can_be_improved(layers, end, capacities, errors)


def test_the_worst_layer_comes_first_and_urgency_may_say_otherwise():
    options = [layer("a", [0.5], parameters=[1, 3]), layer("b", [0.4], parameters=[1, 3])]
    left_over = LeftOver(options, [one.errors for one in options], ["parameters"])
    assert left_over.spend([0, 0], {"parameters": 4.0}) == [1, 0]
    assert left_over.spend([0, 0], {"parameters": 4.0}, lambda layer, at, better: float(layer)) == [0, 1]
    assert left_over.spend([0, 0], {"parameters": 3.0}) == [0, 0]


def test_room_made_by_an_improvement_is_used():
    # The first layer wants 5 more macs and is given up; then the second one gives 6 back by an option with fewer.
    options = [
        layer("a", [0.9], parameters=[1, 1], macs=[1, 6]),
        layer("b", [0.5, 0.4], parameters=[1, 2, 9], macs=[9, 3, 9]),
    ]
    left_over = LeftOver(options, [one.errors for one in options], ["parameters", "macs"])
    assert left_over.spend([0, 0], {"parameters": 3.0, "macs": 10.0}) == [1, 1]


def test_many_small_steps_do_not_drift_over_the_limit():
    # 0.1 has no exact float64: 300 steps of it, with the limit at exactly what they cost.
    options = [layer(f"layer{i}", np.linspace(1, 0.1, 100), parameters=0.1 * np.arange(1, 102)) for i in range(3)]
    most = sum(float(one.costs["parameters"][-1]) for one in options)
    left_over = LeftOver(options, [one.errors for one in options], ["parameters"])
    assert left_over.spend([0, 0, 0], {"parameters": most}) == [100, 100, 100]
    assert left_over.spend([0, 0, 0], {"parameters": np.nextafter(most, 0)}) != [100, 100, 100]
