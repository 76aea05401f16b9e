"""Following: the loop between the searches of a pool, the pool, and the searches' run directories.

All searches are followed at once. While one waits for the end of its level, the candidates of the others keep the
evaluators busy; what one has had scored is handed to every other that asks for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from orchestrator.course import Course
from orchestrator.pool import Pool
from orchestrator.progress import Observer, Snapshot, Standing
from orchestrator.score_memory import Delivery, ScoreMemory
from orchestrator.shared_time import SharedTime
from orchestrator.termination import termination_interrupts
from search_spaces.errors import CorruptedWeightsError, RankRayError, RunInterruptedError
from search_spaces.rank_space import RankVector

__all__ = ["Following"]


class Following:
    """Follows searches on one pool until all are done.

    Args:
        courses: the searches, in the order of their first turns.
        pool: of evaluators that serve all of them.
        memory: what is scored already.
        shared_time: of all courses.
        observer: who watches.
        ended: called when a search is done, its run directory complete and the weights sound, or with the error that
            ended it; the others go on.
        stops_early: whether evaluators may stop scoring candidates that cannot reach their bound.

    Attributes:
        scored: candidates scored until now.
        stopped: candidates whose scoring was stopped.
    """

    def __init__(
        self,
        courses: Sequence[Course],
        pool: Pool,
        memory: ScoreMemory,
        shared_time: SharedTime,
        observer: Observer,
        ended: Callable[[Course, RankRayError | None], None],
        *,
        stops_early: bool = False,
    ) -> None:
        self._open = {course.name: course for course in courses}
        self._names = list(self._open)
        self._places = [course.run.location for course in courses]
        self._left: dict[str, Standing] = {}
        self._pool, self._memory, self._time = pool, memory, shared_time
        self._observer, self._ended = observer, ended
        self._started, self.scored, self.stopped = time.monotonic(), 0, 0
        self._bound = self._lowest_bound if stops_early else None
        self._recorded = sum(course.recorded for course in courses)

    def follow(self) -> None:
        """Goes on until no search is left.

        Raises:
            RunInterruptedError: Ctrl-C, or SIGTERM.
            RunStoppedError: out of evaluators, or the weights were written to.
        """
        try:
            with termination_interrupts():
                self._loop()
        except CorruptedWeightsError:
            for course in self._open.values():
                course.log.set_aside()
            raise
        except KeyboardInterrupt:
            self._charge_evenly()
            for course in self._open.values():
                course.save()
            places = ", ".join(f"`rankray resume {place}`" for place in self._places)
            raise RunInterruptedError(
                f"interrupted after {self._recorded + self.scored:,} candidates; go on with {places}"
            ) from None

    def _loop(self) -> None:
        while True:
            for course in list(self._open.values()):
                with self._failing_alone(course):
                    self._ask(course)
            self._at_level_ends()
            if not self._open:
                return
            scores = self._pool.collect()
            stopped = sum(score.stopped for score in scores)
            self.stopped += stopped
            self.scored += len(scores) - stopped
            self._hand_out(self._memory.told(scores, self._bound_of))
            for name, candidate in self._memory.again():
                self._pool.submit([candidate], name, self._bound)
            if scores:
                self._observer.update(self._snapshot())

    def _ask(self, course: Course) -> None:
        """Passes on what a search asks for, until all that it waits for is on its way."""
        while asked := course.search.ask():
            fresh, known = self._memory.ask(course.name, asked)
            self._pool.submit(fresh, course.name, self._bound)
            if not known:
                return
            course.take(known)

    def _lowest_bound(self, ranks: RankVector) -> float | None:
        """The lowest bound among the searches that wait for a candidate."""
        bounds = [self._bound_of(name, ranks) for name in self._memory.waiting(ranks)]
        known = [bound for bound in bounds if bound is not None]
        return min(known) if known and len(known) == len(bounds) else None

    def _bound_of(self, name: str, ranks: RankVector) -> float | None:
        """What a candidate must reach to matter to a search; nothing can matter to one that has ended."""
        return self._open[name].search.bound(ranks) if name in self._open else math.inf

    def _hand_out(self, told: Mapping[str, Sequence[Delivery]]) -> None:
        self._time.charge({name: sum(one.seconds for one in deliveries) for name, deliveries in told.items()})
        for name, deliveries in told.items():
            if name in self._open:
                with self._failing_alone(self._open[name]):
                    self._open[name].take(deliveries)

    def _at_level_ends(self) -> None:
        """Checks the weights and brings run directories up to date; takes leave of the searches that are done.

        The next level is asked for before, so that evaluators have work meanwhile.
        """
        moved_on = [course for course in self._open.values() if course.moved_on]
        if not moved_on:
            return
        self._pool.check_weights()
        for course in moved_on:
            with self._failing_alone(course):
                course.keep()
            if course.search.done and course.name in self._open:
                self._take_leave(course, None)

    @contextmanager
    def _failing_alone(self, course: Course) -> Iterator[None]:
        """Has what one search, or its run directory, meets end that search alone."""
        try:
            yield
        except RunInterruptedError:
            raise
        except RankRayError as error:
            self._take_leave(course, error)

    def _take_leave(self, course: Course, error: RankRayError | None) -> None:
        if len(self._open) == 1:
            self._charge_evenly()  # what passed since the last scores came
        del self._open[course.name]
        self._left[course.name] = replace(course.standing(), done=True)
        self._ended(course, error)

    def _charge_evenly(self) -> None:
        self._time.charge(dict.fromkeys(self._open, 1.0))

    def _snapshot(self) -> Snapshot:
        elapsed = time.monotonic() - self._started
        searches = (self._left.get(name) or self._open[name].standing() for name in self._names)
        return Snapshot(
            scored=self.scored,
            stopped=self.stopped,
            recorded=self._recorded,
            per_second=(self.scored + self.stopped) / elapsed if elapsed > 0 else 0.0,
            alive=len(self._pool.alive),
            searches=tuple(searches),
        )
