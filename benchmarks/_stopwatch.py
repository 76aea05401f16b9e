"""Where the time of a run's loop goes: the loop itself, with its calls counted by section."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import ray

from orchestrator.evaluation_log import EvaluationLog
from orchestrator.following import Following
from orchestrator.pool import Pool
from orchestrator.searches.contract import Search

__all__ = ["SECTIONS", "WAITING", "Stopwatch", "watched"]

SECTIONS = {
    "search": "search: ask, tell",
    "log": "evaluation log",
    "pool": "pool and Ray's calls",
    "level_end": "weights check, state",
    "loop": "progress, the loop itself",
}
"""Where the driver's own time goes, with what to call it in a table."""

WAITING = "waiting"
"""Blocked until an evaluator answers: not the driver's own time."""


class Stopwatch:
    """Seconds by section; while an inner section runs, the outer one stands still."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys([*SECTIONS, WAITING], 0.0)
        self._running: list[str] = []
        self._since = 0.0

    def timed(self, section: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted for a section."""

        def wrapped(*args: Any, **options: Any) -> Any:
            self._credit()
            self._running.append(section)
            try:
                return function(*args, **options)
            finally:
                self._credit()
                self._running.pop()

        return wrapped

    def _credit(self) -> None:
        """Gives the time since the last change to the section that runs."""
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@contextmanager
def watched(watch: Stopwatch, search: Search, log: EvaluationLog, pool: Pool) -> Iterator[None]:
    """Counts what a run's loop calls, for as long as the context lasts."""
    methods: dict[str, list[tuple[object, str]]] = {
        "search": [(search, "ask"), (search, "tell")],
        "log": [(log, "record"), (log, "flush")],
        "pool": [(pool, "submit"), (pool, "collect")],
        "level_end": [(Following, "_at_level_ends")],
        "loop": [(Following, "follow")],
    }
    with ExitStack() as patches:
        for section, owners in methods.items():
            for owner, name in owners:
                patches.enter_context(mock.patch.object(owner, name, watch.timed(section, getattr(owner, name))))
        patches.enter_context(mock.patch.object(ray, "wait", _counted_wait(watch)))
        yield


def _counted_wait(watch: Stopwatch) -> Callable[..., Any]:
    """`ray.wait`, of which only a call that may block is waiting."""
    blocking, polling = watch.timed(WAITING, ray.wait), watch.timed("pool", ray.wait)

    def wait(refs: list[Any], *, timeout: float | None = None, **options: Any) -> Any:
        return (polling if timeout == 0 else blocking)(refs, timeout=timeout, **options)

    return wait
