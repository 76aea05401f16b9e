"""One knob for all layers: each layer climbs its options as the knob is turned; how far it may be turned.

An error threshold, a share of the cost, a penalty: each makes every layer's choice a step function of one number, so
the network's cost is a step function too. Merging all layers' steps in order of the knob gives the cost of every
setting that matters in one cumulative sum: O(N log N), exact, and kept for any number of budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.searches.allocation.capacities import fits
from orchestrator.searches.allocation.options import FloatArray, LayerOptions
from orchestrator.searches.allocation.pareto import IndexArray, frontier

__all__ = ["Staircases"]

# A cumulative sum may differ in the last digits from the sum of one choice: settings this near are summed anew.
_ROUNDING = 1e-9


class Staircases:
    """Every layer's options in the order in which the knob takes them, merged.

    Setting 0 has every layer on its lowest rung; setting g is what the first g distinct levels lead to.

    Args:
        options: of every layer.
        rungs: per layer, indices of its options from the lowest rung up.
        levels: per layer, the knob's value at which each rung but the lowest is stepped on, rising.
        together: whether steps at one and the same level are taken as one; otherwise one by one, in the layers' order.
    """

    def __init__(
        self,
        options: Sequence[LayerOptions],
        rungs: Sequence[IndexArray],
        levels: Sequence[FloatArray],
        *,
        together: bool = True,
    ) -> None:
        self.options, self.rungs = options, rungs
        counts = [len(level) for level in levels]
        layer = np.repeat(np.arange(len(options)), counts)
        level = np.concatenate(levels)
        # Stable: a layer's own steps are in order already.
        self._order = np.argsort(level, kind="stable")
        self._layer = layer[self._order]
        sorted_level = level[self._order]
        last = np.ones(len(level), dtype=bool)
        if together:
            last[:-1] = sorted_level[1:] > sorted_level[:-1]
        self._taken = np.concatenate(([0], np.flatnonzero(last) + 1))
        self.levels: FloatArray = sorted_level[last]
        self._totals: dict[str, FloatArray] = {}

    @classmethod
    def of_thresholds(
        cls, options: Sequence[LayerOptions], losses: Sequence[FloatArray], prices: Sequence[FloatArray]
    ) -> Staircases:
        """The knob is a threshold on the loss, turned down: each layer takes its cheapest option not above it.

        A layer steps on as soon as the threshold falls below its present loss, so the levels are the negated losses
        that are left behind, and the largest loss of a setting falls strictly from one to the next.
        """
        rungs = [frontier(loss, price) for loss, price in zip(losses, prices, strict=True)]
        return cls(options, rungs, [-loss[rung[:-1]] for loss, rung in zip(losses, rungs, strict=True)])

    @property
    def highest(self) -> int:
        """The last setting: every layer on its highest rung."""
        return len(self.levels)

    def choice(self, setting: int) -> list[int]:
        """The option of every layer, by index."""
        climbed = np.bincount(self._layer[: self._taken[setting]], minlength=len(self.rungs))
        return [int(rung[step]) for rung, step in zip(self.rungs, climbed.tolist(), strict=True)]

    def total(self, cost: str) -> FloatArray:
        """What each setting costs, `(settings,)`; to rounding in the last digits."""
        if cost not in self._totals:
            along = [layer.costs[cost][rung] for layer, rung in zip(self.options, self.rungs, strict=True)]
            steps = np.concatenate([np.diff(costs) for costs in along])[self._order]
            lowest = sum(float(costs[0]) for costs in along)
            self._totals[cost] = (lowest + np.concatenate(([0.0], np.cumsum(steps))))[self._taken]
        return self._totals[cost]

    def highest_within(self, capacities: Mapping[str, float]) -> int | None:
        """The highest setting within every limit; None if there is none."""
        near = np.ones(len(self._taken), dtype=bool)
        for cost, most in capacities.items():
            near &= self.total(cost) <= most + _ROUNDING * abs(most)
        for setting in np.flatnonzero(near)[::-1].tolist():
            if fits(self.options, self.choice(setting), capacities):
                return int(setting)
        return None
