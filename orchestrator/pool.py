"""The pool: keeps every evaluator busy with bounded work in flight, and never loses or doubles a score.

Ray's own `ActorPool` drops the item whose actor died, so this loop keeps every call with its deadline. Retries are
the pool's, not Ray's: a candidate that kills its evaluator would be run again by Ray until the actor is unusable.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.dispatch import Dispatch, Work
from search_spaces.candidates import Bound, Candidate, Score, Status
from search_spaces.errors import CorruptedWeightsError, EvaluationTimeoutError, WorkerLostError
from search_spaces.rank_space import Rank, RankVector

__all__ = ["Pool", "PoolEvents"]

IN_FLIGHT = 2
"""Calls per evaluator: the second hides the dispatch of the first; more would only delay a lost one's work."""

START_S = 300.0
"""Seconds in which a new evaluator must answer: importing torch on a slow board takes most of it."""

_CHECK_S = 0.02
"""How long a check of the weights waits before it looks whether an evaluator wants work."""


@dataclass
class _Call:
    """A call in flight."""

    ref: ray.ObjectRef[Any]
    work: Work
    sent: float


@dataclass
class _Worker:
    """An evaluator, its calls in the order in which it runs them, and since when the first one runs."""

    name: str
    actor: Any
    ready: ray.ObjectRef[Any] | None
    since: float
    calls: deque[_Call] = field(default_factory=deque)


@dataclass(frozen=True)
class PoolEvents:
    """What the pool tells whoever watches.

    Attributes:
        lost: called with the evaluator's name and the cause, when one is lost or hangs.
        joined: called with the name, when one is ready.
    """

    lost: Callable[[str, str], None] = lambda _name, _cause: None
    joined: Callable[[str], None] = lambda _name: None


class Pool:
    """Scores candidates on evaluators that may die, hang, and be replaced.

    Args:
        make: starts an evaluator actor with a given name; it offers `ready`, `score` and `damaged`.
        size: how many evaluators.
        timeout_s: seconds without an answer after which an evaluator counts as hung; a call of several candidates
            gets at least ten times what they are expected to take.
        restarts: how many lost evaluators are replaced before the run stops.
        mix_parents: whether the evaluators compute once what several parents have in common.
        events: who watches.
    """

    def __init__(
        self,
        make: Callable[[str], Any],
        size: int,
        *,
        timeout_s: float = 300.0,
        restarts: int | None = None,
        mix_parents: bool = False,
        events: PoolEvents | None = None,
    ) -> None:
        self._make, self._timeout_s = make, timeout_s
        self._restarts = 2 * size + 2 if restarts is None else restarts
        self._events = events or PoolEvents()
        self._dispatch = Dispatch(mix_parents=mix_parents)
        self._workers: list[_Worker] = []
        self._started = 0
        self._last_loss = ("evaluator", "none was started")
        self._early: list[Score] = []
        for _ in range(size):
            self._start_one()

    def submit(self, candidates: Sequence[Candidate], asker: str = "", bound: Bound | None = None) -> None:
        """Queues candidates.

        Args:
            asker: the search that wants them; searches on one pool take turns.
            bound: what the asker's candidates must reach, asked for whenever some are sent; None scores all to the
                end.
        """
        self._dispatch.add(candidates, asker, bound)

    @property
    def pending(self) -> int:
        """Candidates that have no score yet."""
        in_flight = sum(len(call.work.candidates) for worker in self._workers for call in worker.calls)
        return len(self._early) + len(self._dispatch) + in_flight

    @property
    def alive(self) -> list[str]:
        """Names of the evaluators that are ready."""
        return [worker.name for worker in self._workers if worker.ready is None]

    @property
    def seconds_per_candidate(self) -> float | None:
        """What a candidate takes an evaluator, lately."""
        return self._dispatch.seconds_per_candidate

    def collect(self, patience_s: float = 1.0) -> list[Score]:
        """Waits until a call is answered (or `patience_s` passed), refills, and returns the scores that came.

        Raises:
            WorkerLostError: every evaluator is gone and no more may be started.
        """
        if self._early:
            scores, self._early = self._early, []
            return scores
        return self._collect(patience_s)

    def _collect(self, patience_s: float) -> list[Score]:
        self._fill()
        refs = [worker.ready for worker in self._workers if worker.ready is not None]
        refs += [worker.calls[0].ref for worker in self._workers if worker.calls]
        if refs:
            ray.wait(refs, num_returns=1, timeout=patience_s)
        scores: list[Score] = []
        for worker in list(self._workers):
            scores += self._harvest(worker)
        self._fill()
        return scores

    def check_weights(self) -> None:
        """Asks every evaluator that is ready whether the shared weights are what they were.

        Whoever still has candidates goes on scoring them; the next `collect` returns what came meanwhile.

        Raises:
            CorruptedWeightsError: they are not.
            WorkerLostError: as `collect`.
        """
        asked = [worker.actor.damaged.remote() for worker in self._workers if worker.ready is None]
        deadline = time.monotonic() + self._timeout_s
        while asked and time.monotonic() < deadline:  # who hangs is found out, and replaced, by collecting
            answered, asked = ray.wait(asked, num_returns=1, timeout=min(_CHECK_S, self._timeout_s))
            for ref in answered:
                self._hear(ref)
            if not answered:
                self._early += self._collect(0.0)

    def _hear(self, answer: ray.ObjectRef[Any]) -> None:
        try:
            damaged = ray.get(answer)
        except RayError:
            return  # lost: the next collect() finds out and replaces it
        if damaged:
            raise CorruptedWeightsError(damaged)

    def first_ready(self) -> Any:
        """The first evaluator that is ready, for a question outside the search.

        Raises:
            WorkerLostError: none can be started.
        """
        while not self.alive:
            self.collect()
        return next(worker.actor for worker in self._workers if worker.ready is None)

    def close(self) -> None:
        """Ends all evaluators."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()

    def _start_one(self) -> None:
        self._started += 1
        name = f"evaluator-{self._started}"
        actor = self._make(name)
        self._workers.append(_Worker(name, actor, actor.ready.remote(), time.monotonic()))

    def _fill(self) -> None:
        """Gives every ready evaluator up to `IN_FLIGHT` calls, the idlest first."""
        ready = [worker for worker in self._workers if worker.ready is None]
        for depth in range(IN_FLIGHT):
            for worker in ready:
                if len(worker.calls) > depth:
                    continue
                work = self._dispatch.next(max(1, len(ready)), ahead=depth > 0)
                if work is None:
                    return
                self._send(worker, work)

    def _send(self, worker: _Worker, work: Work) -> None:
        changes = [_difference(work.parent, candidate.ranks) for candidate in work.candidates]
        now = time.monotonic()
        if not worker.calls:
            worker.since = now
        answer = worker.actor.score.remote(work.parent, changes, work.bounds or None, work.precision)
        worker.calls.append(_Call(answer, work, now))

    def _harvest(self, worker: _Worker) -> list[Score]:
        """Scores of the calls that a worker has answered; replaces it if it was lost or hangs."""
        scores: list[Score] = []
        try:
            if worker.ready is not None and not self._has_started(worker, worker.ready):
                return []
            while worker.calls and ray.wait([worker.calls[0].ref], timeout=0)[0]:
                scores += self._answer(worker, worker.calls[0])
                worker.calls.popleft()
                worker.since = time.monotonic()
            if worker.calls:
                self._check_deadline(worker)
        except (
            RayError
        ) as error:  # the actor died, its node is gone, its answer was lost: whatever it was, it is replaced
            scores += self._replace(worker, _one_line(error), "lost")
        except EvaluationTimeoutError as error:
            scores += self._replace(worker, str(error), "timeout")
        return scores

    def _has_started(self, worker: _Worker, ready: ray.ObjectRef[Any]) -> bool:
        waited = time.monotonic() - worker.since
        if not ray.wait([ready], timeout=0)[0]:
            if waited > max(START_S, self._timeout_s) and not self.alive:
                # While others work it may only be waiting for a free CPU, which is no reason to give it up.
                raise EvaluationTimeoutError(worker.name, waited)
            return False
        ray.get(ready)
        worker.ready = None
        self._events.joined(worker.name)
        return True

    def _answer(self, worker: _Worker, call: _Call) -> list[Score]:
        started = max(call.sent, worker.since)
        try:
            scores: list[Score] = ray.get(call.ref)
        except RayTaskError as error:
            reason = _one_line(error.cause if error.cause is not None else error)
            return [_without_values(one, worker.name, "error", reason) for one in call.work.candidates]
        self._dispatch.took(time.monotonic() - started, len(scores))
        return scores

    def _check_deadline(self, worker: _Worker) -> None:
        expected = (self._dispatch.seconds_per_candidate or 0.0) * len(worker.calls[0].work.candidates)
        waited = time.monotonic() - worker.since
        if waited > max(self._timeout_s, 10 * expected):
            raise EvaluationTimeoutError(worker.name, waited)

    def _replace(self, worker: _Worker, cause: str, status: Status) -> list[Score]:
        """Takes a worker's calls back, ends it and starts another; returns scores of candidates that are given up."""
        self._workers.remove(worker)
        ray.kill(worker.actor)
        self._last_loss = (worker.name, cause)
        self._events.lost(worker.name, cause)
        given_up: list[Score] = []
        for position, call in enumerate(worker.calls):
            if position > 0:  # it waited behind the call that failed: no attempt of its own
                self._dispatch.put_back(call.work)
                continue
            for candidate in self._dispatch.lost(call.work):
                given_up.append(_without_values(candidate, worker.name, status, cause))
        if self._restarts > 0:
            self._restarts -= 1
            self._start_one()
        elif not self._workers:
            raise WorkerLostError(*self._last_loss)
        return given_up


def _without_values(candidate: Candidate, worker: str, status: Status, reason: str) -> Score:
    return Score(candidate.ranks, worker=worker, status=status, reason=reason, precision=candidate.precision)


def _difference(parent: RankVector, ranks: RankVector) -> dict[int, Rank | None]:
    return {index: rank for index, (old, rank) in enumerate(zip(parent, ranks, strict=True)) if rank != old}


def _one_line(error: BaseException) -> str:
    """An error as one line; of an actor whose constructor raised, the line that says what: its traceback's last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1] if 'creation task' in lines[0] else lines[0]}"
