"""The energy threshold: the largest share of energy that all layers can keep."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from orchestrator.searches.allocation.energy import energy
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import (
    choice_of,
    errors_of,
    layer,
    price_of,
    problems,
    within,
)


def _at(options, capacities, threshold):
    """Each layer's cheapest option with an error up to the threshold; its cheapest of all where it has none."""
    choice = []
    for one in options:
        finite = [index for index, error in enumerate(one.errors) if math.isfinite(error)]
        kept = [index for index in finite if one.errors[index] <= threshold]
        choice.append(min(kept, key=lambda index: (price_of(one, index, capacities), one.errors[index])))
    return choice


@given(problems())
def test_no_larger_threshold_fits(problem):
    options, capacities = problem
    thresholds = sorted({error for one in options for error in one.errors.tolist() if math.isfinite(error)})
    choices = [_at(options, capacities, threshold) for threshold in thresholds]
    expected = next((choice for choice in choices if within(options, choice, capacities)), None)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            energy(options, capacities)
        return
    allocation = energy(options, capacities)
    assert choice_of(options, allocation) == expected
    assert allocation.note["energy"] == 1 - max(errors_of(options, expected)) ** 2
    assert allocation == energy(options, capacities)


def test_worked_example():
    options = [layer("a", [0.6, 0.1], parameters=[2, 5, 9]), layer("b", [0.8, 0.5], parameters=[1, 4, 9])]
    allocation = energy(options, {"parameters": 7.0})
    assert allocation.ranks == (1, 2)
    # A threshold above 0.64 asks the first layer for rank 2, which costs 9 in all.
    assert allocation.note == {"energy": pytest.approx(0.64), "next_energy": pytest.approx(0.75)}


def test_limits_that_only_other_rules_meet_are_said_so():
    # The cheapest by both costs together is rank 2 (4/3 + 1/9, not 3/3 + 9/9), but only rank 1 is within 3 parameters.
    options = [layer("a", [0.5, 0.5], parameters=[3, 4, 10], macs=[9, 1, 10])]
    with pytest.raises(InfeasibleBudgetError, match="no energy threshold meets") as raised:
        energy(options, {"parameters": 3.0, "macs": 9.0})
    assert raised.value.key == "search.budget.parameters"
    assert set(raised.value.closest) == {"parameters", "macs"}
