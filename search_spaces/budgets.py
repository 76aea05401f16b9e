"""Budgets: one or more limits on what a rank vector may cost. Pure Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from search_spaces.errors import InfeasibleBudgetError
from search_spaces.rank_space import Rank, RankSpace, RankVector

__all__ = ["Budget", "Limit"]


@dataclass(frozen=True)
class Limit:
    """One limit of a budget.

    Attributes:
        cost: name of the cost.
        value: what is asked for.
        kind: `ratio`: the value is C_d in (0, 1), the compression over the space's layers; `absolute`: the most that
            the whole network (convolutions and linear layers; what was measured, for a latency) may cost.
        unit: of an absolute value, for messages: `parameters`, `ms`; the cost's name where left out.
        exact: whether a rank vector that misses it by however little is no answer; otherwise a search that approaches
            the budget from the dense network may miss it by its tolerance, as in the thesis.
    """

    cost: str
    value: float
    kind: Literal["ratio", "absolute"]
    unit: str = ""
    exact: bool = False

    def compression(self, space: RankSpace) -> float:
        """The compression C(r) that this limit asks of the space's layers."""
        if self.kind == "ratio":
            return self.value
        layers_may_cost = self.value - space.costs[self.cost].elsewhere
        return 1.0 - layers_may_cost / space.dense_cost[self.cost]

    def amount(self, value: float) -> str:
        """An absolute cost with its unit: `1,200,000 parameters`, `9.62 ms`."""
        unit = self.unit or self.cost
        return f"{value:,.0f} {unit}" if value == int(value) and unit != "ms" else f"{value:,.4g} {unit}"


@dataclass(frozen=True)
class Budget:
    """Limits that must hold together, bound to a space: C_d of each cost.

    A search that approaches the budget from the dense network wants a rank vector whose *gap* lies in
    `[-tolerance, 0]`: the window [C_d - tau, C_d] of the thesis for one limit, and the same window for
    the limit that is furthest from being met where there are several.

    Attributes:
        targets: (cost, C_d) of every limit.
        exact: whether no limit may be missed, not even by a tolerance: one of them is measured.
    """

    targets: tuple[tuple[str, float], ...]
    exact: bool = False

    @classmethod
    def of(cls, limits: Sequence[Limit], space: RankSpace) -> Budget:
        """Binds limits to a space.

        Raises:
            InfeasibleBudgetError: a limit that no rank vector meets, or that the dense network meets already.
        """
        targets = []
        for limit in limits:
            target = limit.compression(space)
            cheapest = space.cheapest(limit.cost)
            closest = space.compression(limit.cost, cheapest)
            if target > closest:
                reach = f"{closest:.4f}"
                if limit.kind == "absolute":
                    reach = limit.amount(space.network_cost(limit.cost, cheapest))
                raise InfeasibleBudgetError(
                    f"search.budget.{limit.cost}",
                    f"no rank vector meets {limit.value:g}; the closest that can be reached is {reach} "
                    "(every layer at its cheapest rank)",
                    {limit.cost: closest},
                )
            if target <= 0:
                raise InfeasibleBudgetError(
                    f"search.budget.{limit.cost}",
                    f"the dense network already costs {limit.amount(space.network_cost(limit.cost, space.dense))}, "
                    f"within {limit.value:g}; ask for less, or for a compression in (0, 1)",
                    {limit.cost: 0.0},
                )
            targets.append((limit.cost, target))
        return cls(tuple(targets), any(limit.exact for limit in limits))

    def gap(self, space: RankSpace, ranks: RankVector) -> float:
        """The smallest C(r) - C_d over the limits: negative while a limit is missed, positive once all are overshot."""
        return min(space.compression(cost, ranks) - target for cost, target in self.targets)

    def gap_after(self, space: RankSpace, parent: RankVector) -> Callable[[int, Rank | None], float]:
        """The gap of `parent`'s children: a function of the changed layer and its new rank.

        Costs are sums over layers, so a child costs its parent plus one difference, whatever the number of layers.
        """
        parents = [(space.costs[cost], space.cost(cost, parent), space.dense_cost[cost], c) for cost, c in self.targets]

        def gap(layer: int, rank: Rank | None) -> float:
            return min(
                1.0 - (total + cost.of(layer, rank) - cost.of(layer, parent[layer])) / dense - target
                for cost, total, dense, target in parents
            )

        return gap

    def from_within(self, space: RankSpace, tolerance: float) -> tuple[Budget, float]:
        """What a search that approaches a budget from the dense network should aim at, and in which window.

        An exact budget may not be missed: the window [C_d, C_d + width] takes the place of [C_d - tau, C_d]. It is as
        wide as the largest single step on a ladder, so that a search cannot step over it, and reaches no further than
        the space does.
        """
        if not self.exact:
            return self, tolerance
        steps = [space.largest_step(cost) for cost, _ in self.targets]
        reach = [space.compression(cost, space.cheapest(cost)) - target for cost, target in self.targets]
        width = max(0.0, min(max(tolerance, *steps), *reach))
        return Budget(tuple((cost, target + width) for cost, target in self.targets), exact=True), width
