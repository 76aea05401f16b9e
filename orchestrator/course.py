"""A course: one search and its run directory, which holds every score that the search was told."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.evaluation_log import EvaluationLog
from orchestrator.preparation import Prepared
from orchestrator.progress import Standing
from orchestrator.run_directory import RunDirectory
from orchestrator.score_memory import Delivery
from orchestrator.searches.contract import Answer, Search
from orchestrator.searches.objective import OBJECTIVES
from orchestrator.shared_time import SharedTime
from search_spaces.candidates import Key

__all__ = ["Course"]

FLUSH_S = 5.0
"""Seconds between Parquet files at first; they grow with the run, so that a week leaves hundreds of files."""


@dataclass
class Course:
    """Passes scores on to one search and keeps its run directory up to date.

    Attributes:
        name: tells it from others on the same pool.
        log: of the run directory.
        held: keys of the scores that the run directory holds.
        stopped: keys of candidates whose scoring was stopped early.
        recorded: scores of former processes.
        seconds_before: of former processes.
        shared_time: that of the pool.
    """

    name: str
    prepared: Prepared
    run: RunDirectory
    log: EvaluationLog
    search: Search
    held: set[Key]
    stopped: set[Key]
    seconds_before: float
    shared_time: SharedTime
    recorded: int = field(init=False)
    _level: int = field(init=False)
    _started: float = field(default_factory=time.monotonic)
    _last_save: float = field(default_factory=time.monotonic)
    _first_compression: float | None = None

    def __post_init__(self) -> None:
        self.recorded, self._level = len(self.held), self.search.level

    @property
    def seconds(self) -> float:
        """Seconds charged to the whole run until now."""
        return self.seconds_before + self.shared_time.of(self.name)

    def take(self, deliveries: Sequence[Delivery]) -> None:
        """Records scores, then tells the search.

        Raises:
            RunStoppedError: they cannot be written.
        """
        fresh = [one for one in deliveries if one.candidate.key not in self.held]
        for first in (True, False):
            rows = [(one.candidate, one.score) for one in fresh if one.first is first]
            self.log.record(rows, taken_over=not first)
        for one in fresh:
            (self.stopped if one.score.stopped else self.held).add(one.candidate.key)
        self.search.tell([one.score for one in deliveries])

    @property
    def moved_on(self) -> bool:
        """Whether the search has finished a level, or itself, since `keep` was called."""
        return self.search.done or self.search.level > self._level

    def keep(self) -> None:
        """Brings the run directory up to date now and then; to be called when the weights are sound."""
        self._level = self.search.level
        if self.search.done or time.monotonic() - self._last_save > max(FLUSH_S, self.seconds / 100):
            self.save()

    def save(self) -> None:
        """Brings the run directory up to date.

        Raises:
            RunStoppedError: it cannot be written to.
        """
        self.log.flush()
        self.run.write_state({"search": self.search.state(), "seconds": self.seconds})
        self._last_save = time.monotonic()

    def standing(self) -> Standing:
        """Where the search stands."""
        best, problem = self.search.best, self.prepared.problem
        cost, target = problem.budget.targets[0]
        compression = 0.0 if best is None else problem.space.compression(cost, best.ranks)
        if self._first_compression is None:
            self._first_compression = compression
        done = compression - self._first_compression
        elapsed = time.monotonic() - self._started
        left = elapsed * (target - compression) / done if done > 0.02 * target else None
        return Standing(
            name=self.name,
            level=self.search.level,
            best=_shown_value(best, problem.objective),
            objective=problem.objective,
            compression=compression,
            target=target,
            left_s=None if left is None else max(0.0, left),
            done=self.search.done,
        )


def _shown_value(best: Answer | None, objective: str) -> float | None:
    """The objective's value as people know it: losses and divergences positive."""
    return abs(OBJECTIVES[objective](best.score.values)) if best is not None and best.score.ok else None
