"""How much the layers may cost, by cost name, and whether a choice of options does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.searches.allocation.options import Choice, FloatArray, LayerOptions
from search_spaces.budgets import Budget
from search_spaces.rank_space import RankSpace

__all__ = ["capacity", "dense_total", "fits", "prices", "total"]

# Of C(r), on either side of C_d: far above rounding, far below what one rank changes.
_NEIGHBOURHOOD = 1e-12


def capacity(space: RankSpace, budget: Budget) -> dict[str, float]:
    """The most that the space's layers may cost, (1 - C_d) times their dense cost, for each cost of the budget.

    It is the largest float64 that `Budget.gap` does not call over the budget, so that both agree to the last
    bit: a rank vector that meets its limit exactly must not be lost to rounding, nor one let through. Of two
    limits on one cost the smaller counts.
    """
    capacities: dict[str, float] = {}
    for cost, target in budget.targets:
        most = _largest_within(space.dense_cost[cost], target)
        capacities[cost] = min(most, capacities.get(cost, most))
    return capacities


def _largest_within(dense: float, target: float) -> float:
    low = max(0.0, (1.0 - target - _NEIGHBOURHOOD) * dense)
    high = (1.0 - target + _NEIGHBOURHOOD) * dense
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            return low
        if 1.0 - middle / dense - target >= 0:
            low = middle
        else:
            high = middle


def total(options: Sequence[LayerOptions], choice: Choice, cost: str) -> float:
    """What a choice costs, summed as `RankSpace.cost` sums: in the order of the layers, by Python's `sum`."""
    return sum(float(layer.costs[cost][index]) for layer, index in zip(options, choice, strict=True))


def dense_total(options: Sequence[LayerOptions], cost: str) -> float:
    """What the dense layers cost."""
    return total(options, [-1] * len(options), cost)


def fits(options: Sequence[LayerOptions], choice: Choice, capacities: Mapping[str, float]) -> bool:
    """Whether a choice is within every limit."""
    return all(total(options, choice, cost) <= most for cost, most in capacities.items())


def prices(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> list[FloatArray]:
    """One number per option that says what is cheap, `(options,)` per layer.

    The cost itself where there is one limit; the sum of the costs, each over what it may be, where there are several.
    """
    if len(capacities) == 1:
        (cost,) = capacities
        return [layer.costs[cost] for layer in options]
    units = {cost: most if most > 0 else 1.0 for cost, most in capacities.items()}
    return [np.sum([layer.costs[cost] / unit for cost, unit in units.items()], axis=0) for layer in options]
