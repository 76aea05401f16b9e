"""Frontiers and convex hulls against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.pareto import convex_frontier, frontier, slopes, undominated

_ROWS = st.lists(st.tuples(*[st.integers(0, 6).map(float)] * 3), min_size=1, max_size=12)


def _undominated(points):
    """Every point that none beats; of equal ones the first."""
    return {
        j
        for j, point in enumerate(points)
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and (other != point or i < j)
            for i, other in enumerate(points)
            if i != j
        )
    }


@given(_ROWS)
def test_nothing_on_the_frontier_is_beaten(rows):
    losses, prices, costs = (np.array(column) for column in zip(*rows, strict=True))
    flat = frontier(losses, prices).tolist()
    assert set(flat) == _undominated(list(zip(losses, prices, strict=True)))
    assert all(prices[a] < prices[b] and losses[a] > losses[b] for a, b in itertools.pairwise(flat))
    assert undominated(losses, [prices]).tolist() == flat
    many = undominated(losses, [prices, costs]).tolist()
    assert set(many) == _undominated(rows)
    assert all(losses[a] >= losses[b] for a, b in itertools.pairwise(many))


@given(_ROWS, st.floats(0, 20))
def test_some_corner_is_minimal_for_every_penalty(rows, penalty):
    losses, prices, _ = (np.array(column) for column in zip(*rows, strict=True))
    corners = convex_frontier(losses, prices)
    objective = penalty * prices + losses
    assert objective[corners].min() <= objective.min() + 1e-9
    steps = slopes(losses, prices, corners)
    assert len(steps) == len(corners) - 1
    assert all(a > b > 0 for a, b in itertools.pairwise(steps))
