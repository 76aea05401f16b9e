"""The score memory: what searches on one pool have had scored, and who waits for what; nothing is scored twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from search_spaces.candidates import Candidate, Key, Score
from search_spaces.rank_space import RankVector

__all__ = ["Delivery", "ScoreMemory"]

BoundOf = Callable[[str, RankVector], float | None]


@dataclass(frozen=True)
class Delivery:
    """A score for a search that asked for it.

    Attributes:
        asker: the search.
        candidate: as it asked: each search has its own parent and level for one rank vector.
        score: the rank vector's.
        first: whether this search is the one that had it scored; the others are given what is there already.
        seconds: what of the score's seconds the search is charged with: those that wait for it when it comes divide
            them, later ones get it for nothing.
    """

    asker: str
    candidate: Candidate
    score: Score
    first: bool
    seconds: float


@dataclass
class ScoreMemory:
    """Hands every score to all searches that ask for its rank vector in its precision, now or later. Pure bookkeeping.

    A candidate whose scoring was stopped has no score: that is handed to the searches for which it is enough to know,
    and for those that came later it is asked again.
    """

    _scores: dict[Key, Score] = field(default_factory=dict)
    _waiting: dict[Key, dict[str, Candidate]] = field(default_factory=dict)  # who had it scored comes first
    _again: list[tuple[str, Candidate]] = field(default_factory=list)

    def remember(self, scores: Iterable[Score]) -> None:
        """Takes scores of former processes."""
        self._scores.update({score.key: score for score in scores})

    def ask(self, asker: str, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Delivery]]:
        """Takes what a search asks for.

        Returns:
            The candidates that must be scored, and what is known already. The others are on their way for another
            search; `told` hands them out.
        """
        fresh, known = [], []
        for candidate in candidates:
            score = self._scores.get(candidate.key)
            if score is not None:
                known.append(Delivery(asker, candidate, score, first=False, seconds=0.0))
                continue
            if candidate.key not in self._waiting:
                fresh.append(candidate)
            self._waiting.setdefault(candidate.key, {})[asker] = candidate
        return fresh, known

    def waiting(self, ranks: RankVector) -> Sequence[str]:
        """The searches that wait for a candidate in float32: no others have bounds."""
        return list(self._waiting.get((ranks, "float32"), {}))

    def told(self, scores: Sequence[Score], bound: BoundOf) -> Mapping[str, list[Delivery]]:
        """Takes scores that came; returns them by the searches that wait for them.

        Args:
            bound: what a candidate must reach to matter to a search, by the search's name.
        """
        found: dict[str, list[Delivery]] = {}
        for score in scores:
            waiting = self._waiting.pop(score.key, {})
            if score.stopped:
                waiting = self._for_whom_it_is_enough(score, waiting, bound)
            else:
                self._scores[score.key] = score
            for place, (asker, candidate) in enumerate(waiting.items()):
                delivery = Delivery(asker, candidate, score, place == 0, score.seconds / len(waiting))
                found.setdefault(asker, []).append(delivery)
        return found

    def again(self) -> list[tuple[str, Candidate]]:
        """What must be scored once more, since this was asked last, and for which search."""
        again, self._again = self._again, []
        return again

    def _for_whom_it_is_enough(
        self, score: Score, waiting: Mapping[str, Candidate], bound: BoundOf
    ) -> dict[str, Candidate]:
        enough: dict[str, Candidate] = {}
        others: dict[str, Candidate] = {}
        for asker, candidate in waiting.items():
            least = bound(asker, score.ranks)
            (enough if least is not None and score.at_most < least else others)[asker] = candidate
        if others:
            self._waiting[score.key] = others
            self._again.append(next(iter(others.items())))
        return enough
