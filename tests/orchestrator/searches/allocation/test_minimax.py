"""ALDS' global step: exact, with a certificate, never over the budget, deterministic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from orchestrator.searches.allocation.integer_program import Effort
from orchestrator.searches.allocation.minimax import Frontiers, minimax
from orchestrator.searches.allocation.options import LayerOptions
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import (
    assert_says_the_closest,
    choice_of,
    cost_of,
    errors_of,
    every_choice,
    layer,
    nothing_can_be_improved,
    problems,
    within,
)


@given(problems())
def test_no_choice_has_a_smaller_maximum_error(problem):
    options, capacities = problem
    best = min((max(errors_of(options, choice)) for choice in every_choice(options, capacities)), default=None)
    if best is None:
        with pytest.raises(InfeasibleBudgetError) as raised:
            minimax(options, capacities)
        assert_says_the_closest(raised.value, options, capacities)
        return
    for spend in (False, True):
        allocation = minimax(options, capacities, spend=spend)
        choice = choice_of(options, allocation)
        assert within(options, choice, capacities)
        assert max(errors_of(options, choice)) == best == allocation.note["error"]
        assert allocation.note["proven"] is True
        assert allocation == minimax(options, capacities, spend=spend)


@given(problems(costs=1))
def test_certificate_under_one_limit(problem):
    options, capacities = problem
    try:
        note = minimax(options, capacities).note
    except InfeasibleBudgetError:
        return
    unlimited = {"parameters": math.inf}
    better = [c for c in every_choice(options, unlimited) if max(errors_of(options, c)) < note["error"]]
    assert note["budget"] == capacities["parameters"]
    if not better:
        assert note["next_smaller_error"] is None
        assert note["its_cost"] is None
        return
    assert note["next_smaller_error"] in {max(errors_of(options, choice)) for choice in better}
    assert note["its_cost"] == pytest.approx(min(cost_of(options, choice, "parameters") for choice in better))
    assert note["its_cost"] > note["budget"]


@given(problems(costs=2))
def test_certificate_under_several_limits(problem):
    options, capacities = problem
    try:
        note = minimax(options, capacities).note
    except InfeasibleBudgetError:
        return
    smaller = note["next_smaller_error"]
    if smaller is not None:
        assert smaller < note["error"]
        assert not any(max(errors_of(options, choice)) <= smaller for choice in every_choice(options, capacities))


@given(problems())
def test_left_over_is_spent_on_the_worst_layers(problem):
    options, capacities = problem
    try:
        spent = choice_of(options, minimax(options, capacities))
    except InfeasibleBudgetError:
        return
    kept = choice_of(options, minimax(options, capacities, spend=False))
    assert sorted(errors_of(options, spent), reverse=True) <= sorted(errors_of(options, kept), reverse=True)
    errors = [np.where(np.isfinite(one.errors), one.errors, math.inf) for one in options]
    assert nothing_can_be_improved(options, spent, capacities, errors)


def test_worked_example():
    # At most 0.4: 6 + 4 = 10. At most 0.3: 6 + 8 = 14, over 13. The 3 left buy the first layer's rank 2.
    options = [
        layer("a", [0.3, 0.1], parameters=[6, 9, 20]),
        layer("b", [0.4, 0.2], parameters=[4, 8, 20]),
    ]
    allocation = minimax(options, {"parameters": 13.0})
    assert allocation.ranks == (2, 1)
    assert allocation.note == {
        "solver": "frontiers",
        "proven": True,
        "error": 0.4,
        "next_smaller_error": 0.3,
        "its_cost": 14.0,
        "budget": 13.0,
    }


def _resnet56_like(seed: int) -> list[LayerOptions]:
    generator = np.random.default_rng(seed)
    layers = []
    for index in range(55):
        errors = np.sort(generator.random(100))[::-1] + 0.05 * generator.random(100)
        costs = np.arange(1, 101) * generator.integers(50, 400) + generator.integers(0, 500, 100)
        layers.append(layer(f"layer{index}", errors, parameters=[*costs, costs.max() * 1.5]))
    return layers


@pytest.mark.parametrize("seed", range(3))
def test_frontiers_serve_many_budgets_of_a_deep_network_exactly(seed):
    options = _resnet56_like(seed)
    frontiers = Frontiers(options, "parameters")
    attainable = np.unique(np.concatenate([one.errors for one in options]))
    for keep in (0.1, 0.3, 0.7, 1.0):
        most = keep * cost_of(options, [-1] * 55, "parameters")

        def needed(eps: float) -> float:
            return sum(one.costs["parameters"][one.errors <= eps].min() for one in options)

        best = next(eps for eps in attainable if needed(eps) <= most)
        allocation = frontiers.solve(most)
        assert allocation.note["error"] == best
        assert cost_of(options, choice_of(options, allocation), "parameters") <= most


def test_several_limits_in_a_deep_network_are_met_as_proven():
    options = _resnet56_like(0)
    generator = np.random.default_rng(1)
    for one in options:
        one.costs["macs"] = one.costs["parameters"] * generator.uniform(0.7, 1.3, len(one.ranks))
    capacities = {cost: 0.4 * cost_of(options, [-1] * 55, cost) for cost in ("parameters", "macs")}
    allocation = minimax(options, capacities, effort=Effort(time_limit_s=30))
    assert allocation.note["proven"] is True
    assert within(options, choice_of(options, allocation), capacities)
    alone = [minimax(options, {cost: most}).note["error"] for cost, most in capacities.items()]
    assert allocation.note["error"] >= max(alone)
