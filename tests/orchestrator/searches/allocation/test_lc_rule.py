"""LC's rank rule: minimal for its penalty, and no smaller penalty fits."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given

from orchestrator.searches.allocation.lc_rule import lc_rule
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import (
    choice_of,
    closest_of,
    cost_of,
    layer,
    price_of,
    problems,
    within,
)


def _points(options, capacities):
    """(price, error^2 / 2, index) of every finite option, per layer."""
    return [
        [
            (price_of(one, index, capacities), 0.5 * error**2, index)
            for index, error in enumerate(one.errors.tolist())
            if math.isfinite(error)
        ]
        for one in options
    ]


def _objective(point, alpha):
    return alpha * point[0] + point[1]


def _penalties_between_ties(points):
    """One penalty inside every interval over which no layer changes its mind."""
    ties = {0.0}
    for layer_points in points:
        for first, second in itertools.combinations(layer_points, 2):
            if first[0] != second[0]:
                ties.add(max(0.0, (first[1] - second[1]) / (second[0] - first[0])))
    ordered = sorted(ties)
    return [(low + high) / 2 for low, high in itertools.pairwise(ordered) if high - low > 1e-9 * high]


@given(problems())
def test_minimal_for_its_penalty_and_no_smaller_one_fits(problem):
    options, capacities = problem
    points = _points(options, capacities)
    try:
        allocation = lc_rule(options, capacities)
    except InfeasibleBudgetError:
        smallest = [min(layer_points, key=lambda point: point[:2])[2] for layer_points in points]
        assert not within(options, smallest, capacities)
        return
    choice = choice_of(options, allocation)
    assert within(options, choice, capacities)
    smallest_alpha, largest_alpha = allocation.note["alpha"], allocation.note["largest_alpha"]
    for alpha in {smallest_alpha, smallest_alpha + 1 if largest_alpha is None else largest_alpha}:
        for layer_points, index in zip(points, choice, strict=True):
            taken = next(point for point in layer_points if point[2] == index)
            least = min(_objective(point, alpha) for point in layer_points)
            assert _objective(taken, alpha) <= least + 1e-9 * (1 + abs(least))
    for alpha in _penalties_between_ties(points):
        if alpha < smallest_alpha * (1 - 1e-6):
            minimal = [min(layer_points, key=lambda point: _objective(point, alpha)) for layer_points in points]
            assert not within(options, [point[2] for point in minimal], capacities)
    assert allocation == lc_rule(options, capacities)


@given(problems(costs=1))
def test_one_limit_within_reach_is_met(problem):
    options, capacities = problem
    dense = cost_of(options, [-1] * len(options), "parameters")
    if (1 - closest_of(options, "parameters")) * dense <= capacities["parameters"] * (1 - 1e-12):
        assert within(options, choice_of(options, lc_rule(options, capacities)), capacities)


def test_closed_form_for_costs_linear_in_the_rank():
    # A component stays exactly if s_i^2 / (2 N) > alpha * cost of one rank (the C step's closed form).
    spectra, unit = [[4.0, 2.0, 1.0, 0.5], [3.0, 2.5, 0.1, 0.05]], 3.0
    options = []
    for index, spectrum in enumerate(spectra):
        energy = sum(value**2 for value in spectrum)
        errors = [math.sqrt(sum(value**2 for value in spectrum[rank:]) / energy) for rank in (1, 2, 3)]
        options.append(layer(f"layer{index}", errors, parameters=[unit, 2 * unit, 3 * unit, 4 * unit]))
    allocation = lc_rule(options, {"parameters": 4 * unit})
    assert allocation.ranks == (2, 2)
    alpha = (allocation.note["alpha"] + allocation.note["largest_alpha"]) / 2
    for spectrum in spectra:
        energy = sum(value**2 for value in spectrum)
        assert sum(value**2 / (2 * energy) > alpha * unit for value in spectrum) == 2
    assert allocation.note["alpha"] == pytest.approx(1 / (2 * 21.25) / unit)
