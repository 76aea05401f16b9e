"""The Pareto front against its definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.pareto import pareto_front

# Few distinct values, so that ties and coinciding points are common.
COORDINATE = st.one_of(st.integers(-3, 3).map(float), st.floats(-1, 1), st.just(float("nan")))
POINTS = st.lists(st.tuples(COORDINATE, COORDINATE), max_size=40)


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """At least as large in both coordinates, and larger in one."""
    return one[0] >= other[0] and one[1] >= other[1] and one != other


@given(POINTS)
def test_it_is_what_no_other_point_dominates(points: list[tuple[float, float]]) -> None:
    known = [point for point in points if not np.isnan(point).any()]
    expected = [point in known and not any(dominates(other, point) for other in known) for point in points]
    front = pareto_front([point[0] for point in points], [point[1] for point in points])
    assert front.tolist() == expected


def test_a_staircase_by_hand() -> None:
    compression = [0.0, 0.1, 0.1, 0.2, 0.3, 0.3]
    accuracy = [0.9, 0.8, 0.9, 0.7, 0.8, 0.8]
    assert pareto_front(compression, accuracy).tolist() == [False, False, True, False, True, True]


def test_nothing_has_no_front() -> None:
    assert pareto_front([], []).tolist() == []
    assert pareto_front([float("nan")], [1.0]).tolist() == [False]
