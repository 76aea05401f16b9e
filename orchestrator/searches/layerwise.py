"""Scores every layer alone at some of its ranks, then allocations that these scores suggest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.contract import Answer, Problem
from orchestrator.searches.objective import objective_value
from orchestrator.searches.scored_list import ScoredList
from search_spaces.candidates import Candidate, Score
from search_spaces.errors import ConfigError
from search_spaces.rank_space import Rank, RankVector

__all__ = ["Alone", "LayerwiseSearch", "spread_rungs"]

Alone = Mapping[tuple[int, Rank | None], Score]
"""Scores of the network with one layer at one rank and all others dense; `(any, None)` is the dense network."""


class LayerwiseSearch:
    """First level: one layer at a time; second level: the allocations.

    Args:
        problem: what is searched for.
        probes: by layer, the ranks at which it is scored alone.
        allocate: makes allocations, by name, from the first level's scores.
    """

    skipped = 0

    def __init__(
        self,
        problem: Problem,
        probes: Sequence[Sequence[Rank]],
        allocate: Callable[[Alone], Mapping[str, Allocation]],
    ) -> None:
        self._problem, self._allocate = problem, allocate
        dense = problem.space.dense
        self._probes: dict[RankVector, list[tuple[int, Rank | None]]] = {
            dense: [(index, None) for index in range(len(dense))]
        }
        for index, ranks in enumerate(probes):
            for rank in ranks:
                self._probes[(*dense[:index], rank, *dense[index + 1 :])] = [(index, rank)]
        self._known: dict[RankVector, Score] = {}
        self._asked = False
        self._list: ScoredList | None = None

    @property
    def done(self) -> bool:
        """Whether the allocations are scored."""
        return self._list is not None and self._list.done

    @property
    def level(self) -> int:
        """0 while layers are scored alone, 1 while allocations are, 2 at the end."""
        return 0 if self._list is None else self._list.level

    @property
    def best(self) -> Answer | None:
        """The best allocation so far."""
        return None if self._list is None else self._list.best

    def ask(self) -> list[Candidate]:
        """The layers alone, then the allocations."""
        if self._list is not None:
            return self._list.ask()
        if self._asked:
            return []
        self._asked = True
        dense = self._problem.space.dense
        return [
            Candidate(ranks, dense, None if ranks == dense else places[0][0], 0, "alone")
            for ranks, places in self._probes.items()
            if ranks not in self._known
        ]

    def bound(self, ranks: RankVector) -> float | None:
        """None while layers are scored alone: allocations are made from all their scores."""
        return None if self._list is None else self._list.bound(ranks)

    def tell(self, scores: Sequence[Score]) -> None:
        """Takes scores; when every layer is known, the allocations are made.

        Raises:
            ConfigError: the dense network could not be scored: nothing is known of what a layer alone changes.
            InfeasibleBudgetError: no allocation can be made.
        """
        self._known.update({score.ranks: score for score in scores})
        if self._list is None and all(ranks in self._known for ranks in self._probes):
            self._check_dense(self._known[self._problem.space.dense])
            alone = {place: self._known[ranks] for ranks, places in self._probes.items() for place in places}
            self._list = ScoredList(self._problem, self._allocate(alone), level=1)
            self._list.tell(list(self._known.values()))
        elif self._list is not None:
            self._list.tell(scores)

    def _check_dense(self, score: Score) -> None:
        if objective_value(self._problem.objective, score) == -math.inf:
            reason = score.reason or f"its {self._problem.objective} is no number"
            raise ConfigError("model", f"the dense network could not be scored: {reason}; start a new run")

    def state(self) -> dict[str, Any]:
        """Nothing: probes are made again, and recorded scores are told again."""
        return {}


def spread_rungs(offered: Sequence[Rank], count: int) -> list[Rank]:
    """At most `count` of a layer's ranks, evenly over its ladder, both ends included; the lowest, if it is only one.

    The lowest is always among them, so that what was scored alone reaches as far down as the space does.
    """
    if len(offered) <= count:
        return list(offered)
    if count == 1:
        return [offered[0]]
    return [offered[round(place * (len(offered) - 1) / (count - 1))] for place in range(count)]
