"""Spending what a choice leaves of the budget: layer after layer is lowered in loss while that fits."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from orchestrator.searches.allocation.capacities import fits, total
from orchestrator.searches.allocation.options import Choice, FloatArray, LayerOptions
from orchestrator.searches.allocation.pareto import undominated

__all__ = ["LeftOver"]

# Running totals drift in the last digits: this near to a limit the sum is taken anew.
_ROUNDING = 1e-9


class LeftOver:
    """The ladders by which layers are improved; built once, used for any number of budgets.

    Args:
        options: of every layer.
        losses: `(options,)` per layer, smaller is better.
        costs: names of the costs that are limited.
    """

    def __init__(self, options: Sequence[LayerOptions], losses: Sequence[FloatArray], costs: Sequence[str]) -> None:
        self._options = options
        self._rising = len(costs) == 1
        self._costs = {name: [layer.costs[name].tolist() for layer in options] for name in costs}
        self._losses: list[list[float]] = [loss.tolist() for loss in losses]
        ladders = (
            undominated(loss, [layer.costs[name] for name in costs])
            for layer, loss in zip(options, losses, strict=True)
        )
        self._ladders: list[list[int]] = [ladder.tolist() for ladder in ladders]
        # Rising keys, because bisect wants them so: the gain on the ladder's way up.
        self._keys = [
            [-loss[index] for index in ladder] for loss, ladder in zip(self._losses, self._ladders, strict=True)
        ]

    def spend(
        self,
        choice: Choice,
        capacities: Mapping[str, float],
        urgency: Callable[[int, int, int], float] | None = None,
    ) -> list[int]:
        """The choice after repeatedly improving the most urgent layer that can still be improved within the limits.

        A layer is improved by its next option of smaller loss that fits; one that has none is left as it is.

        Args:
            choice: within the limits.
            urgency: of (layer, its option, the next better option); by default the layer's present loss, so that the
                worst layer comes first (leximax). Equally urgent layers come in their order.
        """
        chosen = list(choice)
        spent = {name: total(self._options, chosen, name) for name in capacities}
        improved = True
        while improved:
            improved = False
            heap: list[tuple[float, int]] = []
            for layer in range(len(chosen)):
                self._push(heap, layer, chosen, urgency)
            while heap:
                _, layer = heapq.heappop(heap)
                if self._improve(layer, chosen, spent, capacities):
                    improved = True
                    self._push(heap, layer, chosen, urgency)
            # Among several costs an improvement may lower one, and so make room for a layer that was given up before.
            improved &= not self._rising
        return chosen

    def _better(self, layer: int, option: int) -> list[int]:
        """The options of smaller loss, nearest first."""
        return self._ladders[layer][bisect_right(self._keys[layer], -self._losses[layer][option]) :]

    def _push(
        self,
        heap: list[tuple[float, int]],
        layer: int,
        chosen: list[int],
        urgency: Callable[[int, int, int], float] | None,
    ) -> None:
        better = self._better(layer, chosen[layer])
        if better:
            at = chosen[layer]
            urgent = self._losses[layer][at] if urgency is None else urgency(layer, at, better[0])
            heapq.heappush(heap, (-urgent, layer))

    def _improve(self, layer: int, chosen: list[int], spent: dict[str, float], capacities: Mapping[str, float]) -> bool:
        at = chosen[layer]
        better = self._better(layer, at)
        # Under one cost a ladder gets dearer step by step: what comes after a step that does not fit does not either.
        for option in better[:1] if self._rising else better:
            after = {
                name: total - self._costs[name][layer][at] + self._costs[name][layer][option]
                for name, total in spent.items()
            }
            if any(value > capacities[name] * (1 + _ROUNDING) for name, value in after.items()):
                continue
            chosen[layer] = option
            close = any(value > capacities[name] * (1 - _ROUNDING) for name, value in after.items())
            if not close or fits(self._options, chosen, capacities):
                spent.update(after)
                return True
            chosen[layer] = at
        return False
