"""What ladders of ranks cost against a budget, whatever its costs are. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from search_spaces.budgets import Budget
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.fitting import fit_to_budget
from search_spaces.rank_space import Rank, RankSpace, RankVector

__all__ = ["PricedLadders"]


@dataclass(frozen=True)
class PricedLadders:
    """A `Price` whose variables are the layers: level n is the n-th entry of the layer's ladder.

    Attributes:
        ladders: by layer of the space, ranks from small to large; None is dense and comes last.
    """

    space: RankSpace
    budget: Budget
    ladders: tuple[tuple[Rank | None, ...], ...]

    def ranks(self, levels: Sequence[int]) -> RankVector:
        """The rank vector at these levels."""
        return tuple(ladder[level] for ladder, level in zip(self.ladders, levels, strict=True))

    def start(self) -> list[int]:
        """Levels to begin filling a budget from: the lowest, or where these do not fit, some that do.

        Of several devices' latencies one may be longer at a low rank than dense. The lowest, too, where nothing is
        found that fits.
        """
        lowest = [0] * len(self.ladders)
        if max(self.used(lowest)) <= 1:
            return lowest
        flat = [[0.0] * (layer.useful + 1) for layer in self.space.layers]
        try:
            ranks = fit_to_budget(self.space, self.budget, flat)
        except InfeasibleBudgetError:
            return lowest
        known = all(rank in ladder for rank, ladder in zip(ranks, self.ladders, strict=True))
        return [ladder.index(rank) for rank, ladder in zip(ranks, self.ladders, strict=True)] if known else lowest

    def used(self, levels: Sequence[int]) -> tuple[float, ...]:
        """The share of every limit in use."""
        ranks = self.ranks(levels)
        return tuple(self.space.cost(cost, ranks) / allowed for cost, allowed in self._allowed)

    def used_after(
        self, levels: Sequence[int], used: tuple[float, ...], variable: int, level: int
    ) -> tuple[float, ...]:
        """The share in use once one layer has changed."""
        old, new = self.ladders[variable][levels[variable]], self.ladders[variable][level]
        costs = [(self.space.costs[cost].of, allowed) for cost, allowed in self._allowed]
        return tuple(
            share + (of(variable, new) - of(variable, old)) / allowed
            for share, (of, allowed) in zip(used, costs, strict=True)
        )

    @cached_property
    def _allowed(self) -> tuple[tuple[str, float], ...]:
        return tuple((cost, (1 - target) * self.space.dense_cost[cost]) for cost, target in self.budget.targets)
