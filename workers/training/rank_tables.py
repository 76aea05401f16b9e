"""What ranks cost where only a table knows: a soft rank's cost is linear between the ranks that were measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from search_spaces.rank_space import Cost, number
from workers.training.contract import Setup

__all__ = ["RankTable", "interpolated", "rank_tables"]

RankTable = list[tuple[torch.Tensor, torch.Tensor]]
"""By layer, ranks and their shares of the dense network's cost, both `(n,)`; the full rank has the dense layer's."""


def rank_tables(setup: Setup) -> list[RankTable]:
    """By limit of the set-up's budget; known are the ranks that the space offers."""
    return [_table(setup, setup.space.costs[name]) for name, _ in setup.budget.targets]


def _table(setup: Setup, cost: Cost) -> RankTable:
    whole = setup.space.dense_cost[cost.name]
    table = []
    for index, (layer, scheme) in enumerate(zip(setup.layers, setup.schemes, strict=True)):
        offered = [number(rank) for rank in setup.space.layers[index].offered]
        ranks = [*offered, max(len(scheme.ranks(layer)), offered[-1] + 1 if offered else 1)]
        costs = [*(cost.of(index, rank) for rank in offered), cost.of(index, None)]
        table.append((torch.tensor(ranks, dtype=torch.float32), torch.tensor(costs) / whole))
    return table


def interpolated(table: RankTable, ranks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The share of the dense network's cost, linear between the ranks that are known, constant outside."""
    parts = []
    for (known, costs), rank in zip(table, ranks, strict=True):
        known, costs = known.to(rank), costs.to(rank)
        if len(known) == 1:
            parts.append(costs[0])
            continue
        right = torch.searchsorted(known, rank.detach()).clamp(1, len(known) - 1)
        share = ((rank - known[right - 1]) / (known[right] - known[right - 1])).clamp(0, 1)
        parts.append(costs[right - 1] + share * (costs[right] - costs[right - 1]))
    return torch.stack(parts).sum()
