"""What a search is: it asks for candidates, is told their scores in any order, and ends with a best one.

Pure Python: no Ray and no torch, so every search can be tested, resumed and interleaved without either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from search_spaces.budgets import Budget
from search_spaces.candidates import Candidate, Precision, Score
from search_spaces.error_curves import ErrorCurve
from search_spaces.rank_space import RankSpace, RankVector

__all__ = ["Answer", "Problem", "ScreeningSearch", "Search", "SearchMethod"]


@dataclass(frozen=True)
class Problem:
    """What is searched for.

    Attributes:
        space: the ranks and their costs.
        budget: bound to the space.
        objective: name of what candidates are ranked by (see `objective.py`).
        seed: decides every tie that nothing else decides.
        curves: by measure, every layer's errors, where the method asks for them.
        matrix_shapes: (m, n) of every layer's matrix, where there are curves.
    """

    space: RankSpace
    budget: Budget
    objective: str
    seed: int
    curves: Mapping[str, Sequence[ErrorCurve]] = field(default_factory=dict)
    matrix_shapes: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Answer:
    """What a search ends with.

    Attributes:
        ranks: the rank vector.
        score: its score.
        in_window: whether its compression lies in [C_d - tau, C_d].
        search: which search of several found it.
        missing: compression that it lacks to be in the window; 0 inside.
        note: what else the method says of it (a certificate, a penalty), as JSON types.
    """

    ranks: RankVector
    score: Score
    in_window: bool
    search: str
    missing: float = 0.0
    note: Mapping[str, Any] = field(default_factory=dict)


class Search(Protocol):
    """The contract of every search; deterministic for a seed, whatever the order in which scores arrive."""

    @property
    def done(self) -> bool:
        """Whether there is nothing left to ask."""

    @property
    def level(self) -> int:
        """Grows whenever the search moves on; a run directory is brought up to date when it does."""

    @property
    def skipped(self) -> int:
        """Candidates that the search itself decided not to have scored, by a cheap estimate; 0 for an exact one."""

    @property
    def best(self) -> Answer | None:
        """The answer if `done`, else the best so far; None before the first score."""

    def ask(self) -> list[Candidate]:
        """Every candidate that can be scored now and was not asked for before."""

    def bound(self, ranks: RankVector) -> float | None:
        """What a candidate that was asked for must reach to matter, by what was told until now; see `Bound`.

        While the candidate waits for its score this may rise and never falls, except for another who asks for it, too.
        """

    def tell(self, scores: Sequence[Score]) -> None:
        """Takes scores in any order; those nobody asked for are remembered or ignored, never an error.

        A candidate whose scoring was stopped, because it was below its bound, is answered, too.
        """

    def state(self) -> dict[str, Any]:
        """What is needed to go on, as JSON types. Scores told since the last level may be missing: tell them again."""


@runtime_checkable
class ScreeningSearch(Protocol):
    """A search that may have most of its candidates scored in a lower precision than its answer."""

    def screen_in(self, precision: Precision) -> None:
        """Takes another precision than asked for, because that one is not to be had; before anything is asked."""


@dataclass(frozen=True)
class SearchMethod:
    """A registered search method.

    Attributes:
        settings: the pydantic model of its block in the config (a subclass of `SearchSettings`).
        start: makes the search, from a former `state()` where one is given.
        curves: the measures whose error curves the search decides by; none for most.
        slice_limits: of sliced layers, the most slices that are offered: a ladder is what any of them leaves.
    """

    settings: type[Any]
    start: Callable[[Any, Problem, Mapping[str, Any] | None], Search]
    curves: Callable[[Any], Sequence[str]] = lambda _settings: ()
    slice_limits: Callable[[Any], Sequence[int | None]] = lambda _settings: (None,)
