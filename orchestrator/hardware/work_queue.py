"""What is still to be timed on one kind of device, and what becomes of each piece: decisions without effects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from workers.timing.contract import Measurement, Workload

__all__ = ["Piece", "WorkQueue"]

_TRIED_AGAIN = ("noisy", "throttled")
_MOVED, _ALONE = 1, 2


@dataclass(frozen=True)
class Piece:
    """A workload on its way.

    Attributes:
        tries: measurements that it has had.
        suspicion: 0; `_MOVED` once a device hung with it; `_ALONE` if it may itself be to blame.
    """

    workload: Workload
    tries: int = 0
    suspicion: int = 0


class WorkQueue:
    """The cheapest first, so that most is known early; what has to be tried again comes after all else.

    Args:
        workloads: each once.
        session: pieces that are timed beside each other, at most.
        retries: of a piece whose measurement is of no use, at most.
    """

    def __init__(self, workloads: Iterable[Workload], session: int, retries: int) -> None:
        ordered = sorted(workloads, key=lambda one: (one.macs * one.batch_size, one.subject))
        self._waiting = deque(Piece(one) for one in ordered)
        self._again: deque[Piece] = deque()
        self._session, self._retries = session, retries

    def __len__(self) -> int:
        return len(self._waiting) + len(self._again)

    def take(self) -> list[Piece]:
        """The next session's pieces; empty when nothing waits.

        A piece that may be to blame for a lost session comes alone, so that no other one goes down with it again.
        """
        queue = self._waiting or self._again
        if not queue:
            return []
        taken = [queue.popleft()]
        most = 1 if taken[0].suspicion == _ALONE else self._session
        while queue and len(taken) < most and queue[0].suspicion == taken[0].suspicion:
            taken.append(queue.popleft())
        return taken

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """Takes back pieces that nothing was tried with."""
        self._waiting.extendleft(reversed(pieces))

    def measured(self, piece: Piece, measurement: Measurement, *, doubtful: bool = False) -> bool:
        """Takes note of a measurement; True if the piece is done with, False if it will be tried again.

        Args:
            doubtful: good in itself, but it contradicts what was measured before.
        """
        if (measurement.status in _TRIED_AGAIN or doubtful) and piece.tries < self._retries:
            self._again.append(replace(piece, tries=piece.tries + 1))
            return False
        return True

    def lost(self, pieces: Sequence[Piece], *, moved: bool) -> list[Piece]:
        """Takes back the pieces of a session that hung or broke; returns those that are given up.

        Args:
            moved: the device is taken to be at fault: others try the same pieces together, but only once.
        """
        given_up = [piece for piece in pieces if piece.suspicion == _ALONE]
        for piece in pieces:
            if piece.suspicion < _ALONE:
                after = _MOVED if moved and not piece.suspicion else _ALONE
                self._again.append(replace(piece, suspicion=after))
        return given_up
