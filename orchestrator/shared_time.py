"""Shared time: how many of the seconds that pass on a shared pool each of its searches is charged with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

__all__ = ["SharedTime"]


class SharedTime:
    """Divides wall time among searches: their parts add up to the seconds that passed.

    A search that has the pool to itself is charged with all of it. Seconds in which evaluators work for several are
    divided in proportion to what each search's candidates took them; a candidate that several wait for counts for each
    of them in equal parts, and one that was scored for another search before costs nothing any more.

    Args:
        names: of the searches.
        now: a clock, in seconds.
    """

    def __init__(self, names: Iterable[str], now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = dict.fromkeys(names, 0.0)
        self._now, self._since = now, now()

    def of(self, name: str) -> float:
        """Seconds charged to a search until now."""
        return self._seconds[name]

    def charge(self, parts: Mapping[str, float]) -> None:
        """Divides what passed since the last call in proportion to `parts`; keeps it for the next where all are 0."""
        whole = sum(parts.values())
        if whole <= 0:
            return
        now = self._now()
        passed, self._since = now - self._since, now
        for name, part in parts.items():
            self._seconds[name] += passed * part / whole
