"""Budgets: one or more limits on what a rank vector may cost. Pure Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search_spaces.errors import InfeasibleBudgetError
from search_spaces.rank_space import Rank, RankSpace, RankVector

__all__ = ["Budget", "Limit"]


@dataclass(frozen=True)
class Limit:
    """One limit of a budget, as the user wrote it.

    Attributes:
        cost: name of the cost.
        value: in (0, 1), the compression C(r) over the space's layers; from 1 on, the most that the
            whole network (convolutions and linear layers) may cost.
    """

    cost: str
    value: float

    @property
    def is_ratio(self) -> bool:
        """Whether the value is a compression, not an absolute cost."""
        return self.value < 1

    def compression(self, space: RankSpace) -> float:
        """The compression C(r) that this limit asks of the space's layers."""
        if self.is_ratio:
            return self.value
        layers_may_cost = self.value - space.costs[self.cost].elsewhere
        return 1.0 - layers_may_cost / space.dense_cost[self.cost]


@dataclass(frozen=True)
class Budget:
    """Limits that must hold together, bound to a space: C_d of each cost.

    A search that approaches the budget from the dense network wants a rank vector whose *gap* lies in
    `[-tolerance, 0]`: the window [C_d - tau, C_d] of the thesis for one limit, and the same window for
    the limit that is furthest from being met where there are several.
    """

    targets: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, limits: Sequence[Limit], space: RankSpace) -> Budget:
        """Binds limits to a space.

        Raises:
            InfeasibleBudgetError: a limit that no rank vector meets, or that the dense network meets already.
        """
        targets = []
        for limit in limits:
            target = limit.compression(space)
            key = f"search.budget.{limit.cost}"
            closest = space.compression(limit.cost, space.smallest)
            if target > closest:
                reach = f"{closest:.4f}"
                if not limit.is_ratio:
                    reach = f"{space.network_cost(limit.cost, space.smallest):,.0f} {limit.cost}"
                raise InfeasibleBudgetError(
                    key,
                    f"no rank vector meets {limit.value:g}; the closest that can be reached is {reach} "
                    "(every layer at rank 1 where that shrinks it)",
                    {limit.cost: closest},
                )
            if target <= 0:
                raise InfeasibleBudgetError(
                    key,
                    f"the dense network already costs {space.network_cost(limit.cost, space.dense):,.0f} {limit.cost}, "
                    f"within {limit.value:g}; ask for less, or for a compression in (0, 1)",
                    {limit.cost: 0.0},
                )
            targets.append((limit.cost, target))
        return cls(tuple(targets))

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
