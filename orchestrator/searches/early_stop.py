"""What helps a search to say early what its candidates must reach (see `Bound`); none of it changes an answer."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

__all__ = ["Promise", "kth_best"]


def kth_best(values: Iterable[float], k: int) -> float:
    """The k-th largest value; minus infinity where there are fewer, or it is that."""
    best = heapq.nlargest(k, values)
    return best[-1] if len(best) == k else -math.inf


class Promise:
    """Which children are likely to be among the best: by what the same layer's step did to the objective lately.

    Who is scored first sets the bound for those who come later, so the best should come first.
    """

    def __init__(self) -> None:
        self._changes: dict[int, float] = {}

    def learn(self, changes: Iterable[tuple[int, float]]) -> None:
        """Takes (layer, change of the objective) of a level's children; the best of a layer's counts."""
        best: dict[int, float] = {}
        for layer, change in changes:
            if not math.isnan(change):
                best[layer] = max(change, best.get(layer, -math.inf))
        self._changes |= best

    def expected(self, layer: int | None, parent_value: float) -> float:
        """The objective that a child is expected to reach; minus infinity where there is no ground for a guess."""
        change = None if layer is None else self._changes.get(layer)
        return -math.inf if change is None or math.isnan(parent_value) else parent_value + change
