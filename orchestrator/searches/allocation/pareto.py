"""Options worth taking: Pareto frontiers and lower convex hulls of loss against price."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.searches.allocation.options import FloatArray

__all__ = ["IndexArray", "convex_frontier", "frontier", "slopes", "undominated"]

IndexArray = NDArray[np.intp]


def frontier(losses: FloatArray, prices: FloatArray) -> IndexArray:
    """The options that nothing else beats in loss and price, from the cheapest to the best.

    Args:
        losses, prices: `(options,)`, finite.

    Returns:
        Indices: prices strictly rise along them and losses strictly fall; of equal options the first one stays.
    """
    order = np.lexsort((losses, prices))
    sorted_losses = losses[order]
    best_before = np.minimum.accumulate(sorted_losses)[:-1]
    return order[np.concatenate(([True], sorted_losses[1:] < best_before))]


def convex_frontier(losses: FloatArray, prices: FloatArray) -> IndexArray:
    """The corners of the lower convex hull of the frontier, from the cheapest to the best.

    An option is one exactly if, for some penalty, it alone minimises penalty * price + loss.

    Args:
        losses, prices: `(options,)`, finite.

    Returns:
        Indices: along them the loss saved per price paid strictly falls.
    """
    corners: list[int] = []
    for index in frontier(losses, prices).tolist():
        while len(corners) > 1 and _slope(losses, prices, corners[-1], index) >= _slope(
            losses, prices, corners[-2], corners[-1]
        ):
            corners.pop()
        corners.append(index)
    return np.array(corners, dtype=np.intp)


def _slope(losses: FloatArray, prices: FloatArray, first: int, second: int) -> float:
    """The loss saved per price paid by going from the first option to the second."""
    return float((losses[first] - losses[second]) / (prices[second] - prices[first]))


def slopes(losses: FloatArray, prices: FloatArray, corners: IndexArray) -> FloatArray:
    """The loss saved per price paid by each step along a convex frontier, `(corners - 1,)`, falling."""
    steps = zip(corners[:-1].tolist(), corners[1:].tolist(), strict=True)
    return np.array([_slope(losses, prices, first, second) for first, second in steps], dtype=np.float64)


def undominated(losses: FloatArray, costs: Sequence[FloatArray]) -> IndexArray:
    """The options that nothing else beats in loss and in every cost, from the largest loss to the smallest.

    Args:
        losses: `(options,)`, finite.
        costs: `(options,)` each, finite.

    Returns:
        Indices; of options alike in all of this the first one stays.
    """
    if len(costs) == 1:
        return frontier(losses, costs[0])
    table = np.stack([losses, *costs])
    no_worse = (table[:, :, None] <= table[:, None, :]).all(axis=0)  # [i, j]: i is nowhere worse than j
    earlier = np.triu(np.ones_like(no_worse), k=1)
    beaten = (no_worse & (~no_worse.T | earlier)).any(axis=0)
    kept = np.flatnonzero(~beaten)
    return kept[np.argsort(-losses[kept], kind="stable")]
