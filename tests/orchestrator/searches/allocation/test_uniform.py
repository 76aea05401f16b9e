"""The same ratio everywhere: the largest share of every layer's dense cost that fits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from orchestrator.searches.allocation.uniform import uniform
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import choice_of, cost_of, layer, problems, within


def _share(options, one, index, capacities):
    return max(
        float(one.costs[cost][index])
        / (float(one.costs[cost][-1]) * (most / cost_of(options, [-1] * len(options), cost)))
        for cost, most in capacities.items()
    )


def _at(options, capacities, rho):
    choice = []
    for one in options:
        shares = {
            index: _share(options, one, index, capacities)
            for index, error in enumerate(one.errors)
            if math.isfinite(error)
        }
        kept = [index for index, share in shares.items() if share <= rho]
        if not kept:
            kept = [index for index, share in shares.items() if share == min(shares.values())]
        choice.append(min(kept, key=lambda index: (one.errors[index], shares[index])))
    return choice


@given(problems())
def test_no_larger_share_fits(problem):
    options, capacities = problem
    shares = {_share(options, one, index, capacities) for one in options for index in range(len(one.ranks))}
    choices = [_at(options, capacities, rho) for rho in [*sorted(shares, reverse=True), 0.0]]
    expected = next((choice for choice in choices if within(options, choice, capacities)), None)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            uniform(options, capacities)
        return
    allocation = uniform(options, capacities)
    assert choice_of(options, allocation) == expected
    assert _at(options, capacities, allocation.note["share"]) == expected
    assert allocation == uniform(options, capacities)


@given(problems())
def test_share_one_always_fits_where_every_layer_can_go_there(problem):
    options, capacities = problem
    if all(
        min(_share(options, one, i, capacities) for i, e in enumerate(one.errors) if math.isfinite(e)) <= 1 - 1e-9
        for one in options
    ):
        next_share = uniform(options, capacities).note["next_share"]
        assert next_share is None or next_share > 1 - 1e-9


def test_worked_example():
    # Half of everything: 5 of 10 and 10 of 20. The second layer has no option between 8 and 20.
    options = [
        layer("a", [0.6, 0.4, 0.2], parameters=[3, 5, 7, 10]),
        layer("b", [0.5, 0.3], parameters=[4, 8, 20]),
    ]
    allocation = uniform(options, {"parameters": 15.0})
    assert allocation.ranks == (3, 2)
    assert allocation.note == {"share": pytest.approx(1.4), "next_share": pytest.approx(2.0)}
    assert uniform(options, {"parameters": 14.0}).ranks == (2, 2)
