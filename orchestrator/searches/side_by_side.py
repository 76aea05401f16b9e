"""Several searches on one pool, the best answer kept; no rank vector is scored twice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.searches.contract import Answer, ScreeningSearch, Search
from orchestrator.searches.objective import objective_value
from search_spaces.candidates import Candidate, Key, Precision, Score
from search_spaces.rank_space import RankVector

__all__ = ["SideBySide"]


class SideBySide:
    """Runs searches interleaved: while one waits for the end of its level, the others keep the pool busy.

    Every score is remembered for the whole run and handed to whichever search asks for the same rank vector in the same
    precision.

    Args:
        searches: by name, in the order in which equal answers are preferred.
        objective: by which answers are compared.
    """

    def __init__(self, searches: Mapping[str, Search], objective: str) -> None:
        self._searches = dict(searches)
        self._objective = objective
        self._scores: dict[Key, Score] = {}
        self._waiting: dict[Key, list[Search]] = {}
        self._asked: dict[Key, Candidate] = {}
        self._again: list[Candidate] = []

    @property
    def done(self) -> bool:
        """Whether every search is."""
        return all(search.done for search in self._searches.values())

    @property
    def level(self) -> int:
        """Levels finished by all searches together."""
        return sum(search.level for search in self._searches.values())

    @property
    def skipped(self) -> int:
        """Candidates that searches left unscored, over all of them."""
        return sum(search.skipped for search in self._searches.values())

    @property
    def best(self) -> Answer | None:
        """The best answer: one inside its window before any outside, what came closest there, then by objective."""
        answers = [search.best for search in self._searches.values()]
        found = [answer for answer in answers if answer is not None]
        if not found:
            return None
        return max(
            found,
            key=lambda one: (one.in_window, -one.missing, objective_value(self._objective, one.score)),
        )

    def ask(self) -> list[Candidate]:
        """What is new to the whole run; a candidate that was scored before is answered from memory."""
        fresh, self._again = self._again, []
        for search in self._searches.values():
            while asked := search.ask():
                known = []
                for candidate in asked:
                    if candidate.key in self._scores:
                        known.append(self._scores[candidate.key])
                    elif candidate.key in self._waiting:
                        self._waiting[candidate.key].append(search)
                    else:
                        self._waiting[candidate.key] = [search]
                        self._asked[candidate.key] = candidate
                        fresh.append(candidate)
                search.tell(known)
        return fresh

    def bound(self, ranks: RankVector) -> float | None:
        """The lowest bound among the searches that wait for the candidate."""
        bounds = [search.bound(ranks) for search in self._waiting.get((ranks, "float32"), [])]
        known = [bound for bound in bounds if bound is not None]
        return min(known) if known and len(known) == len(bounds) else None

    def tell(self, scores: Sequence[Score]) -> None:
        """Hands every score to whoever waits for it."""
        for score in scores:
            if score.stopped:
                self._tell_stopped(score)
                continue
            self._scores[score.key] = score
            self._asked.pop(score.key, None)
            for search in self._waiting.pop(score.key, []):
                search.tell([score])

    def screen_in(self, precision: Precision) -> None:
        """Passes it on."""
        for search in self._searches.values():
            if isinstance(search, ScreeningSearch):
                search.screen_in(precision)

    def _tell_stopped(self, score: Score) -> None:
        """Hands it to those for whom it is enough to know; for others, who came later, it is asked again."""
        waiting = self._waiting.pop(score.key, [])
        others = []
        for search in waiting:
            bound = search.bound(score.ranks)
            if bound is not None and score.at_most < bound:
                search.tell([score])
            else:
                others.append(search)
        candidate = self._asked.pop(score.key, None)
        if others and candidate is not None:
            self._waiting[score.key], self._asked[score.key] = others, candidate
            self._again.append(candidate)

    def state(self) -> dict[str, Any]:
        """The states of all searches by name."""
        return {name: search.state() for name, search in self._searches.items()}
