"""The Pareto front of points that should be large in both coordinates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["pareto_front"]


def pareto_front(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points no other point dominates (at least as large in both coordinates, larger in one).

    Args:
        first, second: `(n,)` float; a point with a NaN is never on the front and dominates nothing.

    Returns:
        `(n,)` bool. Points that coincide on the front are all on it. O(n log n).
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    front = np.zeros(len(x), dtype=bool)
    known = ~(np.isnan(x) | np.isnan(y))
    if not known.any():
        return front
    values, group = np.unique(x[known], return_inverse=True)
    highest = np.full(len(values), -np.inf)
    np.maximum.at(highest, group, y[known])
    # The highest `second` among all points of a strictly larger `first`.
    beyond = np.append(np.maximum.accumulate(highest[::-1])[::-1][1:], -np.inf)
    # A lone point at -inf is beaten by nothing, so the last group needs no strict comparison.
    unbeaten = (highest > beyond) | (np.arange(len(values)) == len(values) - 1)
    front[known] = unbeaten[group] & (y[known] == highest[group])
    return front
