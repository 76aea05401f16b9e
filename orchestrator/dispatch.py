"""Dispatch: which candidates go to an evaluator next. Pure bookkeeping; the pool does what it decides.

Candidates with one parent are scored together. Groups shrink towards the end of a level, so that evaluators finish
together; a group whose evaluator was lost comes back one by one, so that a candidate that kills evaluators is found.
Where several searches ask, they take turns call by call, and a call is a few seconds of work for all of them: a search
waits for at most one call of each of the others, however much these have queued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from search_spaces.candidates import Candidate
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
    """Candidates of one parent for one call, and how often that was tried before."""

    parent: RankVector
    candidates: tuple[Candidate, ...]
    attempt: int = 0


_ByParent = dict[RankVector, deque[Candidate]]


@dataclass
class Dispatch:
    """Queues candidates by who asks and by parent, and cuts them into calls.

    Args:
        attempts: how often a candidate may be tried before it is given up.
    """

    attempts: int = 3
    seconds_per_candidate: float | None = None
    _fresh: dict[str, _ByParent] = field(default_factory=dict)  # whose turn it is comes first
    _again: deque[Work] = field(default_factory=deque)

    def add(self, candidates: Sequence[Candidate], asker: str = "") -> None:
        """Queues candidates, each under its parent (its own rank vector where it has none).

        Args:
            asker: who takes turns with the other askers.
        """
        for candidate in candidates:
            queues = self._fresh.setdefault(asker, {})
            queues.setdefault(candidate.parent or candidate.ranks, deque()).append(candidate)

    def __len__(self) -> int:
        fresh = sum(len(queue) for queues in self._fresh.values() for queue in queues.values())
        return fresh + sum(len(work.candidates) for work in self._again)

    def next(self, evaluators: int) -> Work | None:
        """The next call for whichever evaluator is free; None when nothing waits.

        Args:
            evaluators: how many share the work.
        """
        if self._again:
            return self._again.popleft()
        if not self._fresh:
            return None
        size = self._group_size(evaluators)
        asker = next(iter(self._fresh))
        queues = self._fresh.pop(asker)
        parent = max(queues, key=lambda one: len(queues[one]))
        queue = queues[parent]
        work = Work(parent, tuple(queue.popleft() for _ in range(min(size, len(queue)))))
        if not queue:
            del queues[parent]
        if queues:
            self._fresh[asker] = queues  # behind the others
        return work

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
        self._again.extend(Work(work.parent, (candidate,), work.attempt + 1) for candidate in work.candidates)
        return []

    def _group_size(self, evaluators: int) -> int:
        """As many as fill `TARGET_S`, but not more than leaves every evaluator two more calls, unless they are few."""
        if self.seconds_per_candidate is None:
            return 1
        by_time = int(TARGET_S / max(self.seconds_per_candidate, 1e-6))
        by_share = max(SMALLEST_SHARE, -(-len(self) // (2 * evaluators)))
        return max(1, min(by_time, by_share, LARGEST_GROUP))
