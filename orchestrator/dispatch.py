"""Dispatch: which candidates go to an evaluator next. Pure bookkeeping; the pool does what it decides.

Candidates with one parent are scored together, and with those of other parents where evaluators compute once what the
parents have in common; a call has one precision. Groups shrink towards the end of a level, so that evaluators finish
together; a group whose evaluator was lost comes back one by one, so that a candidate that kills evaluators is found.
Where several searches ask, they take turns call by call, and a call is a few seconds of work for all of them: a search
waits for at most one call of each of the others, however much these have queued.

Where candidates have a bound that they must reach (see `Bound`), every call takes along what is known of it when it is
cut. As long as nothing is known calls are small and none is sent ahead, so that few candidates are scored without.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from search_spaces.candidates import Bound, Candidate, Precision
from search_spaces.rank_space import RankVector

__all__ = ["Dispatch", "Work"]

TARGET_S = 3.0
"""Seconds of work in one call: every call starts with a pass of the parent, which many children should share, but a
person waits for the answer, and whoever dies takes a call's work along."""

LARGEST_GROUP = 64

SMALLEST_SHARE = 8
"""Children that share one parent's pass even when that leaves an evaluator without a last small call."""


@dataclass(frozen=True)
class Work:
    """Candidates of one precision for one call, how often that was tried before, and what each must reach.

    `parent` is that of the first; `bounds` is empty where nobody can be stopped early.
    """

    parent: RankVector
    candidates: tuple[Candidate, ...]
    attempt: int = 0
    bounds: tuple[float | None, ...] = ()

    @property
    def precision(self) -> Precision:
        """In which all are to be scored."""
        return self.candidates[0].precision


_Asker = tuple[str, Precision]
_ByParent = dict[RankVector, deque[Candidate]]


@dataclass
class Dispatch:
    """Queues candidates by who asks, in which precision, and by parent, and cuts them into calls.

    Args:
        attempts: how often a candidate may be tried before it is given up.
        mix_parents: whether one call may hold children of several parents.
    """

    attempts: int = 3
    mix_parents: bool = False
    seconds_per_candidate: float | None = None
    _fresh: dict[_Asker, _ByParent] = field(default_factory=dict)  # whose turn it is comes first
    _again: deque[Work] = field(default_factory=deque)
    _bounds: dict[str, Bound] = field(default_factory=dict)

    def add(self, candidates: Sequence[Candidate], asker: str = "", bound: Bound | None = None) -> None:
        """Queues candidates, each under its parent (its own rank vector where it has none).

        Args:
            asker: who takes turns with the other askers.
            bound: of the asker's candidates, from now on; None where all are scored to the end.
        """
        self._bounds[asker] = bound or _no_bound
        for candidate in candidates:
            queues = self._fresh.setdefault((asker, candidate.precision), {})
            queues.setdefault(candidate.parent or candidate.ranks, deque()).append(candidate)

    def __len__(self) -> int:
        fresh = sum(len(queue) for queues in self._fresh.values() for queue in queues.values())
        return fresh + sum(len(work.candidates) for work in self._again)

    def next(self, evaluators: int, *, ahead: bool = False) -> Work | None:
        """The next call for whichever evaluator is free; None when nothing waits.

        Args:
            evaluators: how many share the work.
            ahead: the evaluator is still busy; nothing is handed out then whose bound another call may bring.
        """
        if self._again:
            return self._again.popleft()
        asker = next((one for one in self._fresh if not (ahead and self._waits_for_bound(one))), None)
        if asker is None:
            return None
        size = self._group_size(evaluators, asker)
        queues = self._fresh.pop(asker)
        parent = self._next_parent(asker, queues)
        candidates = _taken(queues, parent, size)
        while self.mix_parents and queues and len(candidates) < size:
            candidates += _taken(queues, self._next_parent(asker, queues), size - len(candidates))
        bounds = tuple(self._bound(asker, candidate) for candidate in candidates)
        if queues:
            self._fresh[asker] = queues  # behind the others
        return Work(parent, candidates, bounds=() if all(bound is None for bound in bounds) else bounds)

    def put_back(self, work: Work) -> None:
        """Takes back work that waited behind a call that failed: as it is, this was no attempt at it."""
        self._again.append(work)

    def took(self, seconds: float, candidates: int) -> None:
        """Learns what a candidate takes (an exponential mean)."""
        each = seconds / max(1, candidates)
        old = self.seconds_per_candidate
        self.seconds_per_candidate = each if old is None else 0.8 * old + 0.2 * each

    def lost(self, work: Work) -> list[Candidate]:
        """Takes back work whose evaluator was lost; returns the candidates that are given up."""
        if work.attempt + 1 >= self.attempts:
            return list(work.candidates)
        for number, candidate in enumerate(work.candidates):
            self._again.append(Work(work.parent, (candidate,), work.attempt + 1, work.bounds[number : number + 1]))
        return []

    def _bound(self, asker: _Asker, candidate: Candidate) -> float | None:
        """What a candidate of the asker must reach."""
        name, precision = asker
        return self._bounds[name](candidate.ranks) if precision == "float32" else None

    def _waits_for_bound(self, asker: _Asker) -> bool:
        """Whether it is not known yet what the asker's first candidate must reach."""
        return self._first_bound(asker) == -math.inf

    def _first_bound(self, asker: _Asker) -> float | None:
        """What the asker's first candidate must reach."""
        first = next(iter(self._fresh[asker].values()))[0]
        return self._bound(asker, first)

    def _next_parent(self, asker: _Asker, queues: _ByParent) -> RankVector:
        """The one with the most children left; while no bound is known the first, whose children look best."""
        first = next(iter(queues))
        if self._bound(asker, queues[first][0]) == -math.inf:
            return first
        return max(queues, key=lambda one: len(queues[one]))

    def _group_size(self, evaluators: int, asker: _Asker) -> int:
        """As many as fill `TARGET_S`, but not more than leaves every evaluator two more calls, unless they are few.

        A lone evaluator waits for nobody, and later calls know better bounds, where there are any.
        """
        if self.seconds_per_candidate is None:
            return 1
        by_time = int(TARGET_S / max(self.seconds_per_candidate, 1e-6))
        bound = self._first_bound(asker)
        calls = 1 if evaluators == 1 and bound is None else 2 * evaluators
        by_share = max(SMALLEST_SHARE, -(-len(self) // calls))
        if bound == -math.inf:
            by_share = max(2, SMALLEST_SHARE // evaluators)
        return max(1, min(by_time, by_share, LARGEST_GROUP))


def _taken(queues: _ByParent, parent: RankVector, size: int) -> tuple[Candidate, ...]:
    """Takes up to `size` children of a parent out of its queue, and the queue away once it is empty."""
    queue = queues[parent]
    taken = tuple(queue.popleft() for _ in range(min(size, len(queue))))
    if not queue:
        del queues[parent]
    return taken


def _no_bound(_ranks: RankVector) -> None:
    """For candidates whose scores are wanted in any case."""
