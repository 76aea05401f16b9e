"""Which marks of a dense scatter are drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.thinning import one_per_cell

COORDINATES = st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1)), min_size=1, max_size=60)


@given(COORDINATES, st.integers(1, 20))
def test_never_more_than_the_limit_and_each_point_once(points: list[tuple[float, float]], limit: int) -> None:
    kept = one_per_cell([x for x, _ in points], [y for _, y in points], limit=limit).tolist()
    assert 1 <= len(kept) <= limit or len(kept) == len(points) <= limit
    assert kept == sorted(set(kept))


def test_few_points_are_all_drawn() -> None:
    assert one_per_cell([0.0, 0.0, 1.0], [0.0, 0.0, 1.0], limit=3).tolist() == [0, 1, 2]


def test_every_point_left_out_lies_close_to_one_that_is_drawn() -> None:
    points = np.random.default_rng(0).normal(size=(20_000, 2))
    kept = one_per_cell(points[:, 0], points[:, 1], limit=1500)
    # So many marks fit into cells a thirtieth of the picture wide, or narrower.
    span = np.ptp(points, axis=0)
    nearest = np.array([np.abs((points[kept] - point) / span).max(axis=1).min() for point in points[::50]])
    assert nearest.max() < 1 / 30
