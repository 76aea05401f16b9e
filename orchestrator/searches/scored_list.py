"""Scores a list of allocations in parallel and keeps the best: the search of every method that needs no beam."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.contract import Answer, Problem
from orchestrator.searches.objective import objective_value
from search_spaces.candidates import Candidate, Score
from search_spaces.rank_space import RankVector

__all__ = ["ScoredList", "answer_of"]

_FLOAT_NOISE = 1e-12


class ScoredList:
    """Asks for all allocations at once; the best one by the objective is the answer, the first of equals.

    Args:
        problem: what is searched for.
        allocations: by name; those with the same rank vector are scored once, under the first name.
        level: of its candidates.
    """

    skipped = 0

    def __init__(self, problem: Problem, allocations: Mapping[str, Allocation], level: int = 0) -> None:
        self._problem = problem
        self._wanted: dict[RankVector, tuple[str, Allocation]] = {}
        for name, allocation in allocations.items():
            self._wanted.setdefault(allocation.ranks, (name, allocation))
        self._first_level, self._asked = level, False
        self._scores: dict[RankVector, Score] = {}

    @property
    def done(self) -> bool:
        """Whether all are scored."""
        return len(self._scores) == len(self._wanted)

    @property
    def level(self) -> int:
        """One more once all are scored."""
        return self._first_level + self.done

    @property
    def best(self) -> Answer | None:
        """The best so far; None where none could be scored with a number."""
        values = {
            ranks: objective_value(self._problem.objective, self._scores[ranks])
            for ranks in self._wanted
            if ranks in self._scores
        }
        best = max(values, key=lambda ranks: values[ranks], default=None)
        if best is None or values[best] == -math.inf:
            return None
        name, allocation = self._wanted[best]
        return answer_of(self._problem, self._scores[best], name, allocation.note)

    def ask(self) -> list[Candidate]:
        """Every allocation that has no score yet, once."""
        if self._asked:
            return []
        self._asked = True
        dense = self._problem.space.dense
        return [
            Candidate(ranks, dense, None, self._first_level, name)
            for ranks, (name, _) in self._wanted.items()
            if ranks not in self._scores
        ]

    def bound(self, _ranks: RankVector) -> float | None:
        """The best so far: what is below it is not the answer."""
        return max((objective_value(self._problem.objective, one) for one in self._scores.values()), default=-math.inf)

    def tell(self, scores: Sequence[Score]) -> None:
        """Takes scores; those of others are ignored."""
        self._scores.update({score.ranks: score for score in scores if score.ranks in self._wanted})

    def state(self) -> dict[str, Any]:
        """Nothing: the list is made again, and recorded scores are told again."""
        return {}


def answer_of(problem: Problem, score: Score, search: str, note: Mapping[str, Any]) -> Answer:
    """A scored rank vector as an answer of a search that never goes over the budget."""
    gap = problem.budget.gap(problem.space, score.ranks)
    within = gap >= -_FLOAT_NOISE
    return Answer(score.ranks, score, within, search, 0.0 if within else -gap, note)
