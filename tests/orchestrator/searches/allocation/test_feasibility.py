"""Budgets out of reach are said so, with the closest that can be reached."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from orchestrator.searches.allocation.feasibility import require_feasible
from orchestrator.searches.allocation.options import usable
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import (
    assert_says_the_closest,
    closest_of,
    cost_of,
    every_choice,
    layer,
    problems,
)


@given(problems())
def test_raises_exactly_where_no_choice_is_within_every_limit(problem):
    options, capacities = problem
    layers, _ = usable(options)
    if any(True for _ in every_choice(options, capacities)):
        require_feasible(layers, capacities)
        return
    with pytest.raises(InfeasibleBudgetError) as raised:
        require_feasible(layers, capacities)
    assert_says_the_closest(raised.value, layers, capacities)


def test_one_limit_out_of_reach():
    options = [layer("a", [0.5], parameters=[2, 10]), layer("b", [], parameters=[10])]
    with pytest.raises(
        InfeasibleBudgetError,
        match=r"budget\.parameters: no rank vector meets C = 0\.5000; the closest that can be reached is 0\.4000",
    ):
        require_feasible(options, {"parameters": 10.0})


def test_two_limits_that_exclude_each_other_are_named():
    options = [layer("a", [0.5, 0.5], parameters=[2, 8, 10], macs=[8, 2, 10], volume=[1, 1, 1])]
    with pytest.raises(InfeasibleBudgetError, match="can each be met but not together") as raised:
        require_feasible(options, {"volume": 1.0, "parameters": 5.0, "macs": 5.0})
    assert set(raised.value.closest) == {"parameters", "macs"}
    assert raised.value.closest == {"parameters": pytest.approx(0.2), "macs": pytest.approx(0.8)}
    assert "parameters C = 0.5000 and macs C = 0.5000" in str(raised.value)


def test_three_limits_of_which_any_two_go_together():
    options = [layer("a", [0.5] * 3, a=[9, 1, 1, 10], b=[1, 9, 1, 10], c=[1, 1, 9, 10])]
    with pytest.raises(InfeasibleBudgetError, match="not together") as raised:
        require_feasible(options, {"a": 5.0, "b": 5.0, "c": 5.0})
    assert set(raised.value.closest) == {"a", "b", "c"}


def test_no_limit_is_refused():
    with pytest.raises(ValueError, match="at least one limit"):
        require_feasible([layer("a", [0.5], parameters=[2, 10])], {})


def test_references_agree_on_a_hand_made_space():
    options = [layer("a", [0.5, math.nan], parameters=[4, 1, 10])]
    assert closest_of(options, "parameters") == pytest.approx(0.6)
    assert cost_of(options, [0], "parameters") == 4
