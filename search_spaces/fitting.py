"""Fitting a rank vector to a budget: of those that use it up, the one that loses least. No training here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.budgets import Budget
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.rank_space import RankSpace, RankVector

__all__ = ["WINDOW", "fit_to_budget", "used_share"]

FloatArray = NDArray[np.float64]
Losses = Sequence[Sequence[float]]

WINDOW = 0.01
"""How far below its budget a result may be, as a share of the budget."""

_BINS = 4000
"""Partial rank vectors that cost the same to 1/4000 of the budget are compared; of each lot only the best goes on."""

_TIE = 1e-3


def fit_to_budget(space: RankSpace, budget: Budget, losses: Losses, start: Sequence[int] | None = None) -> RankVector:
    """A rank vector that is never over the budget and, where any such vector is found, at most 1 % below it.

    Of those the one that loses least in sum, by dynamic programming over the layers (a multiple-choice knapsack); under
    several limits it is enough that one of them is used up. With convex losses it is LC's rank rule (some penalty on
    cost, each layer at its minimum) but for the last percent.

    Args:
        losses: by layer, what is lost at the rungs 1, 2, ..., `useful` and, last, dense; finite.
        start: rungs that another rule has chosen, from 1 on; above `useful` is dense. If given, as few rungs as the
            budget asks for are gone up or down: none if it is met and used up.

    Raises:
        InfeasibleBudgetError: no rank vector is found within the budget.
    """
    lost = _checked(space, losses)
    if start is not None:
        lost = [_distances(loss, rung) + _TIE * loss for loss, rung in zip(lost, start, strict=True)]
    costs = [_layer_costs(space, budget, index) for index in range(len(space.layers))]
    found = [one for limit in range(len(budget.targets)) for one in _cheapest(costs, lost, limit)]
    # Rounding is added up in another order here than in `RankSpace.cost`.
    found = [one for one in found if budget.gap(space, space.at(one[2])) >= 0]
    if not found:
        closest = {cost: space.compression(cost, space.smallest) for cost, _ in budget.targets}
        raise InfeasibleBudgetError("search.budget", "no rank vector meets all its limits", closest)
    return space.at(min(found)[2])


def used_share(space: RankSpace, budget: Budget, ranks: RankVector) -> float:
    """How much of the tightest limit is used, over the space's layers: 1 is all of it, above 1 is over the budget."""
    return max(space.cost(cost, ranks) / ((1.0 - target) * space.dense_cost[cost]) for cost, target in budget.targets)


def _checked(space: RankSpace, losses: Losses) -> list[FloatArray]:
    arrays = [np.asarray(loss, dtype=np.float64) for loss in losses]
    for layer, loss in zip(space.layers, arrays, strict=True):
        if loss.shape != (layer.useful + 1,) or not np.isfinite(loss).all():
            raise ValueError(f"{layer.name}: expected {layer.useful + 1} finite losses, got {loss.tolist()}")
    return arrays


def _distances(loss: FloatArray, rung: int) -> FloatArray:
    """How far every rung is from a given one."""
    distances: FloatArray = np.abs(np.arange(1.0, len(loss) + 1) - min(max(rung, 1), len(loss)))
    return distances


def _layer_costs(space: RankSpace, budget: Budget, index: int) -> FloatArray:
    """Costs of one layer's rungs as shares of what all layers may cost, `(limits, rungs)`."""
    layer = space.layers[index]
    shares: list[list[float]] = []
    for cost, target in budget.targets:
        most = max((1.0 - target) * space.dense_cost[cost], 1e-12)
        shares.append([space.costs[cost].of(index, layer.at(rung)) / most for rung in range(1, layer.useful + 2)])
    return np.array(shares, dtype=np.float64)


def _cheapest(
    costs: Sequence[FloatArray], losses: Sequence[FloatArray], limit: int
) -> list[tuple[bool, float, list[int]]]:
    """(whether it is over 1 % below the limit, loss, rungs) of the best vectors, by what they cost of one limit.

    Bins hold, for what the layers so far cost by rounded shares, the least loss and the exact costs of one vector; a
    vector that cannot end within every limit is dropped. Rounding only decides which vectors are compared.
    """
    bins = _BINS + len(costs)
    least = np.full(bins + 1, np.inf)
    total = np.full((len(costs[0]), bins + 1), np.inf)
    least[0], total[:, 0] = 0.0, 0.0
    rest = np.sum([cost.min(1) for cost in costs], axis=0)
    choices = []
    for cost, loss in zip(costs, losses, strict=True):
        rest = rest - cost.min(1)
        steps = np.rint(cost[limit] * _BINS).astype(np.int64)
        new_least, new_total = np.full_like(least, np.inf), np.full_like(total, np.inf)
        choice = np.full(bins + 1, -1, dtype=np.int64)
        for rung in np.flatnonzero(steps <= bins):
            step = steps[rung]
            lost = least[: bins + 1 - step] + loss[rung]
            spent = total[:, : bins + 1 - step] + cost[:, rung : rung + 1]
            better = (lost < new_least[step:]) & (spent + rest[:, None] <= 1 + 1e-9).all(0)
            new_least[step:][better] = lost[better]
            new_total[:, step:][:, better] = spent[:, better]
            choice[step:][better] = rung
        least, total = new_least, new_total
        choices.append((choice, steps))
    ends = np.flatnonzero(np.isfinite(least))
    wasteful = np.all(total[:, ends] < 1 - WINDOW, axis=0).reshape(-1)
    order = np.lexsort((least[ends], wasteful))[:8]  # a few, in case rounding puts the best one over the budget
    return [(bool(wasteful[one]), float(least[ends[one]]), _traced(choices, int(ends[one]))) for one in order]


def _traced(choices: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], end: int) -> list[int]:
    """The rungs, from 1, that led to a bin."""
    rungs = []
    for choice, steps in reversed(choices):
        rung = int(choice[end])
        rungs.append(rung + 1)
        end -= int(steps[rung])
    return rungs[::-1]
