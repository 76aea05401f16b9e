"""HALOC's candidates: which ranks each layer may take, and how a choice among them meets the budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from search_spaces.budget_filling import fill_budget
from search_spaces.costs import COST_NAMES
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.priced_ladders import PricedLadders
from search_spaces.rank_space import LayerRanks, Rank, RankVector, number
from workers.training.contract import Setup
from workers.training.thinning import TOLERANCE

__all__ = ["RankCandidates", "candidates"]


def candidates(layer: LayerRanks, step: int, least: int) -> tuple[Rank | None, ...]:
    """A layer's candidates from the lowest rank up, dense last.

    Args:
        layer: a ladder of measured ranks is offered as it is.
        step: halved until there are `least` multiples among the ranks that shrink the layer.
    """
    offered = layer.offered
    if layer.ladder is None:
        while step > 1 and len(offered) // step < least:
            step //= 2
        offered = [rank for rank in offered if number(rank) % step == 0]
    return (*offered, None)


class RankCandidates:
    """The candidates of a set-up's layers.

    Args:
        step, least: see `candidates`. While the smallest candidates exceed the budget, all layers' step is halved.
        strict: whether neither that nor a rank off the step may be resorted to.

    Attributes:
        ladders: by layer.

    Raises:
        InfeasibleBudgetError: no choice meets the budget, or none comes within `TOLERANCE` of one that shapes decide.
            How close measured ranks come to a latency is the device's affair.
    """

    def __init__(self, setup: Setup, step: int, least: int, strict: bool) -> None:
        self._space, self._budget, self._strict = setup.space, setup.budget, strict
        while True:
            self._price = self._priced(tuple(candidates(one, step, least) for one in setup.space.layers))
            used = self._price.used([0] * len(setup.layers))
            if max(used) <= 1 or strict or step == 1:
                break
            step //= 2
        self._check(used)

    @property
    def ladders(self) -> tuple[tuple[Rank | None, ...], ...]:
        """By layer, its candidates."""
        return self._price.ladders

    def shares(self, cost: str) -> list[torch.Tensor]:
        """By layer, what its candidates cost, as shares of the dense network's cost."""
        of, whole = self._space.costs[cost].of, self._space.dense_cost[cost]
        return [torch.tensor([of(index, rank) / whole for rank in ladder]) for index, ladder in enumerate(self.ladders)]

    def choose(self, probabilities: Sequence[torch.Tensor]) -> RankVector:
        """The most probable candidates, repaired to meet the budget.

        Args:
            probabilities: by layer, `(candidates,)`.
        """
        ranks = self._fill([_worths(one) for one in probabilities])
        assert ranks is not None, "the smallest candidates were found to fit"
        return ranks

    def _fill(self, worths: Sequence[Sequence[float]]) -> RankVector | None:
        levels = fill_budget(worths, self._price, TOLERANCE, self._price.start())
        if levels is None:
            return None
        ranks = self._price.ranks(levels)
        if self._strict or max(self._price.used(levels)) >= 1 - TOLERANCE:
            return ranks
        every = tuple((*layer.offered, None) for layer in self._space.layers)
        finer = self._priced(every)
        start = [ladder.index(rank) for ladder, rank in zip(every, ranks, strict=True)]
        # Every rank up to a layer's next candidate is worth what that candidate is.
        between = []
        for ladder, coarse, values in zip(every, self._price.ladders, worths, strict=True):
            places = [ladder.index(rank) for rank in coarse]
            above = (sum(place < level for place in places) for level in range(1, len(ladder)))
            between.append([values[count - 1] if count else values[0] for count in above] if values else [])
        filled = fill_budget(between, finer, TOLERANCE, start)
        return ranks if filled is None else finer.ranks(filled)

    def _priced(self, ladders: tuple[tuple[Rank | None, ...], ...]) -> PricedLadders:
        return PricedLadders(self._space, self._budget, ladders)

    def _check(self, least: Sequence[float]) -> None:
        """Whether the budget can be met, and closely: known before anything is trained.

        Args:
            least: the share of each limit that the smallest candidates use.
        """
        targets = self._budget.targets
        found = self._fill([[1 / place for place in range(1, len(ladder))] for ladder in self.ladders])
        cost, target = targets[max(range(len(least)), key=least.__getitem__)]
        if found is None:
            closest = 1 - (1 - target) * max(least)
            raise InfeasibleBudgetError(
                f"sweep.budget.{cost}",
                f"haloc's candidates cannot reach a compression of {target:.4g}; every layer at its smallest one has "
                f"{closest:.4f}" + (": take a smaller step" if self._strict else ""),
                {cost: closest},
            )
        used = [(1 - self._space.compression(one, found)) / (1 - most) for one, most in targets]
        if max(used) < 1 - TOLERANCE and all(one in COST_NAMES for one, _ in targets):
            cost, target = targets[max(range(len(used)), key=used.__getitem__)]
            reached = self._space.compression(cost, found)
            raise InfeasibleBudgetError(
                f"sweep.budget.{cost}",
                f"haloc's candidates come no closer to a compression of {target:.4g} than {reached:.4f}"
                + ("; take a smaller step, or allow ranks off it (strict_step: false)" if self._strict else ""),
                {cost: reached},
            )


def _worths(chances: torch.Tensor) -> list[float]:
    """Of a layer's candidates from the second on: the probability that their rank is reached.

    And 1 more up to the most probable one: filled down to a worth of 1, every layer has its most probable candidate.
    """
    reached = chances.flip(0).cumsum(0).flip(0).tolist()
    best = int(chances.argmax())
    return [reached[place] + (place <= best) for place in range(1, len(reached))]
