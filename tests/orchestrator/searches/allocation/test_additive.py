"""Least summed loss: exact under any number of limits, and the runners-up."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.additive import additive, near_optimal
from orchestrator.searches.allocation.integer_program import Effort
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import (
    assert_says_the_closest,
    choice_of,
    errors_of,
    every_choice,
    layer,
    problems,
    values_of,
    within,
)

EXACT = Effort(relative_gap=0.0)


@given(problems())
def test_no_choice_has_a_smaller_sum_of_errors(problem):
    options, capacities = problem
    best = min((sum(errors_of(options, choice)) for choice in every_choice(options, capacities)), default=None)
    if best is None:
        with pytest.raises(InfeasibleBudgetError) as raised:
            additive(options, capacities, effort=EXACT)
        assert_says_the_closest(raised.value, options, capacities)
        return
    allocation = additive(options, capacities, effort=EXACT)
    choice = choice_of(options, allocation)
    assert within(options, choice, capacities)
    assert sum(errors_of(options, choice)) == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert allocation.note["status"] == "optimal"
    assert allocation.note["loss"] == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert best - allocation.note["bound"] <= 1e-6 * best + 1e-9
    assert allocation == additive(options, capacities, effort=EXACT)


@given(problems(), st.randoms(use_true_random=False))
def test_measured_losses_may_be_negative_and_of_any_size(problem, random):
    options, capacities = problem
    losses = [np.array([random.choice([-1e-6, 1.0, 3e5]) * random.random() for _ in one.ranks]) for one in options]
    best = min((sum(values_of(losses, c)) for c in every_choice(options, capacities, losses)), default=None)
    if best is None:
        return
    choice = choice_of(options, additive(options, capacities, losses, effort=EXACT))
    assert within(options, choice, capacities)
    assert sum(values_of(losses, choice)) == pytest.approx(best, rel=1e-9, abs=1e-4)


@given(problems(), st.integers(2, 5))
def test_the_best_few_in_order(problem, count):
    options, capacities = problem
    expected = sorted(sum(errors_of(options, choice)) for choice in every_choice(options, capacities))[:count]
    if not expected:
        return
    found = [choice_of(options, one) for one in near_optimal(options, capacities, count, effort=EXACT)]
    assert [sum(errors_of(options, choice)) for choice in found] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert len({tuple(choice) for choice in found}) == len(found)
    assert all(within(options, choice, capacities) for choice in found)


@given(problems())
def test_runners_up_differ_in_as_many_layers_as_asked(problem):
    options, capacities = problem
    try:
        found = [choice_of(options, one) for one in near_optimal(options, capacities, 3, apart=2, effort=EXACT)]
    except InfeasibleBudgetError:
        return
    for first, second in itertools.combinations(found, 2):
        assert sum(a != b for a, b in zip(first, second, strict=True)) >= 2
    if len(found) > 1:
        apart = [
            sum(errors_of(options, choice))
            for choice in every_choice(options, capacities)
            if sum(a != b for a, b in zip(found[0], choice, strict=True)) >= 2
        ]
        assert sum(errors_of(options, found[1])) == pytest.approx(min(apart), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("smallest", [5e-324, 1e-300, 1e300])
def test_errors_at_the_ends_of_what_a_float_holds(smallest):
    options = [layer("a", [smallest], parameters=[1, 6]), layer("b", [], parameters=[6])]
    assert additive(options, {"parameters": 11.0}, effort=EXACT).ranks == (1, None)
    assert additive(options, {"parameters": 12.0}, effort=EXACT).ranks == (None, None)
    found = near_optimal(options, {"parameters": 12.0}, 2, effort=EXACT)
    assert [one.ranks for one in found] == [(None, None), (1, None)]


def test_options_without_a_finite_loss_are_left_out():
    options = [layer("a", [0.5, 0.4], parameters=[2, 3, 9])]
    assert additive(options, {"parameters": 5.0}, [np.array([math.nan, 0.7, 0.0])]).ranks == (2,)


@pytest.mark.parametrize(("count", "apart"), [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(count, apart):
    with pytest.raises(ValueError, match="at least 1"):
        near_optimal([layer("a", [0.5], parameters=[2, 9])], {"parameters": 5.0}, count, apart=apart)
