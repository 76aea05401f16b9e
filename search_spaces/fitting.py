"""Fitting a rank vector to a budget: lowered until it is within, then what is left over is spent. No training here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.budgets import Budget
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.rank_space import RankSpace, RankVector

__all__ = ["WINDOW", "fit_to_budget", "used_share"]

FloatArray = NDArray[np.float64]

WINDOW = 0.01
"""How far below its budget a result may be, as a share of the budget."""

_NEIGHBOURS = 24
"""Rungs on either side of a layer's that an exchange looks at."""

_EXCHANGES = 16


def fit_to_budget(
    space: RankSpace, budget: Budget, losses: Sequence[Sequence[float]], start: Sequence[int] | None = None
) -> RankVector:
    """A rank vector that is never over the budget and, where the ladders allow it, less than 1 % under.

    Ranks are lowered where that loses least for what it saves (with convex losses this is LC's rank rule: some penalty
    on cost, each layer at its minimum), then raised where that gains most, and at last exchanged in pairs.

    Args:
        losses: by layer, what is lost at the rungs 1, 2, ..., `useful` and, last, dense; finite, falling.
        start: rungs that another rule has chosen, from 1 on; above `useful` is dense. They are changed no more than the
            budget asks for: not at all if it is met and used up to 1 %. All dense where left out.

    Raises:
        InfeasibleBudgetError: no rank vector is within the budget.
    """
    fitting = _Fitting(space, budget, losses)
    full = [len(loss) - 1 for loss in fitting.losses]
    rungs = full if start is None else [min(max(rung - 1, 0), most) for rung, most in zip(start, full, strict=True)]
    if start is None or not fitting.in_window(rungs):
        rungs = fitting.raised(fitting.lowered(rungs))
    for _ in range(_EXCHANGES):
        if start is not None and fitting.in_window(rungs):
            break
        exchanged = fitting.exchanged(rungs)
        if exchanged is None:
            break
        rungs = fitting.raised(exchanged)
    return space.at([rung + 1 for rung in rungs])


def used_share(space: RankSpace, budget: Budget, ranks: RankVector) -> float:
    """How much of the tightest limit is used, over the space's layers: 1 is all of it, above 1 is over the budget."""
    return max(space.cost(cost, ranks) / ((1.0 - target) * space.dense_cost[cost]) for cost, target in budget.targets)


class _Fitting:
    """Costs and losses of all rungs as arrays; rungs count from 0 here, the last one is dense."""

    def __init__(self, space: RankSpace, budget: Budget, losses: Sequence[Sequence[float]]) -> None:
        self.losses = [np.asarray(loss, dtype=np.float64) for loss in losses]
        for layer, loss in zip(space.layers, self.losses, strict=True):
            if loss.shape != (layer.useful + 1,) or not np.isfinite(loss).all():
                raise ValueError(f"{layer.name}: expected {layer.useful + 1} finite losses, got {loss.tolist()}")
        self._targets = np.array([target for _, target in budget.targets])
        self._dense = np.array([space.dense_cost[cost] for cost, _ in budget.targets], dtype=np.float64)
        # (limits, rungs) per layer
        self._costs: list[FloatArray] = [
            np.array(
                [[space.costs[cost].of(index, layer.at(rung)) for rung in range(1, layer.useful + 2)]
                 for cost, _ in budget.targets],
                dtype=np.float64,
            )
            for index, layer in enumerate(space.layers)
        ]  # fmt: skip
        unit = np.maximum((1.0 - self._targets) * self._dense, 1e-12)
        self._prices = [(cost / unit[:, None]).sum(0) for cost in self._costs]
        self._names = [cost for cost, _ in budget.targets]

    def total(self, rungs: Sequence[int]) -> FloatArray:
        """Costs, `(limits,)`, added in the order in which `RankSpace.cost` adds them."""
        total = np.zeros(len(self._targets))
        for cost, rung in zip(self._costs, rungs, strict=True):
            total = total + cost[:, rung]
        return total

    def fits(self, total: FloatArray) -> NDArray[np.bool_]:
        """Whether costs, `(..., limits)`, are within the budget, by the expression of `Budget.gap`."""
        return np.asarray((1.0 - total / self._dense - self._targets >= 0).all(-1))

    def near(self, total: FloatArray) -> NDArray[np.bool_]:
        """Whether costs, `(..., limits)`, use up some limit to 1 %."""
        return np.asarray((total >= (1.0 - WINDOW) * (1.0 - self._targets) * self._dense).any(-1))

    def in_window(self, rungs: Sequence[int]) -> bool:
        """Whether they are within the budget and use it up to 1 %."""
        total = self.total(rungs)
        return bool(self.fits(total) & self.near(total))

    def lowered(self, rungs: Sequence[int]) -> list[int]:
        """Down the convex hulls of the layers' losses, the flattest slope first, until the budget is met."""
        rungs = list(rungs)
        steps = [self._step_down(layer, rung) for layer, rung in enumerate(rungs)]
        while not self.fits(self.total(rungs)):
            layer = min(range(len(rungs)), key=lambda one: steps[one][0])
            slope, rung = steps[layer]
            if slope == np.inf:
                over = 1.0 - self.total(rungs) / self._dense
                closest = dict(zip(self._names, over.tolist(), strict=True))
                raise InfeasibleBudgetError("search.budget", "no rank vector meets all its limits", closest)
            rungs[layer] = rung
            steps[layer] = self._step_down(layer, rung)
        return rungs

    def _step_down(self, layer: int, rung: int) -> tuple[float, int]:
        """(loss per price saved, rung) of the best lower rung; (infinity, rung) at the bottom."""
        if rung == 0:
            return np.inf, 0
        saved = self._prices[layer][rung] - self._prices[layer][:rung]
        lost = self.losses[layer][:rung] - self.losses[layer][rung]
        slopes = np.where(saved > 0, lost / np.where(saved > 0, saved, 1.0), np.inf)
        # Of equal slopes the smallest step.
        best = rung - 1 - int(np.argmin(slopes[::-1]))
        return float(slopes[best]), best

    def raised(self, rungs: Sequence[int]) -> list[int]:
        """Up wherever there is room, the greatest gain for its price first."""
        rungs, total = list(rungs), self.total(rungs)
        while True:
            best: tuple[float, int, int] | None = None
            for layer, rung in enumerate(rungs):
                added = self._costs[layer][:, rung + 1 :] - self._costs[layer][:, rung : rung + 1]
                open_rungs = np.flatnonzero(self.fits((total[:, None] + added).T))
                for step in open_rungs:
                    price = self._prices[layer][rung + 1 + step] - self._prices[layer][rung]
                    gain = self.losses[layer][rung] - self.losses[layer][rung + 1 + step]
                    worth = gain / price if price > 0 else np.inf
                    if best is None or worth > best[0]:
                        best = (worth, layer, rung + 1 + int(step))
            if best is None:
                return rungs
            rungs[best[1]] = best[2]
            total = self.total(rungs)

    def exchanged(self, rungs: Sequence[int]) -> list[int] | None:
        """One layer lower and another higher: the pair that loses least; None where no pair helps.

        A pair that brings the vector less than 1 % below the budget may cost something; any other one must gain, and
        none leads out of there.
        """
        total = self.total(rungs)
        moves = [
            (layer, other)
            for layer, rung in enumerate(rungs)
            for other in range(max(0, rung - _NEIGHBOURS), min(len(self.losses[layer]), rung + _NEIGHBOURS + 1))
            if other != rung
        ]
        layers = np.array([layer for layer, _ in moves])
        deltas = np.array(
            [self._costs[layer][:, other] - self._costs[layer][:, rungs[layer]] for layer, other in moves]
        )
        price = np.array([self._prices[layer][other] - self._prices[layer][rungs[layer]] for layer, other in moves])
        lost = np.array([self.losses[layer][other] - self.losses[layer][rungs[layer]] for layer, other in moves])
        down, up = np.flatnonzero(price < 0), np.flatnonzero(price > 0)
        if not len(down) or not len(up):
            return None
        after = total + deltas[down][:, None] + deltas[up][None]
        change = lost[down][:, None] + lost[up][None]
        possible = self.fits(after) & (layers[down][:, None] != layers[up][None])
        inside, gains = possible & self.near(after), change < -1e-12
        if self.in_window(rungs):
            possible = inside & gains
        elif inside.any():
            possible = inside
        else:
            possible &= gains
        if not possible.any():
            return None
        best = np.unravel_index(int(np.argmin(np.where(possible, change, np.inf))), change.shape)
        changed = list(rungs)
        for move in (moves[down[best[0]]], moves[up[best[1]]]):
            changed[move[0]] = move[1]
        return changed
