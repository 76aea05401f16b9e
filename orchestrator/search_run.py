"""One search from start or resumption to its result: the loop between a search, the pool and the run directory."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from torch import nn

from orchestrator.evaluation_log import EvaluationLog
from orchestrator.pool import Pool, PoolEvents
from orchestrator.preparation import Prepared, slower_way
from orchestrator.progress import Observer, Snapshot
from orchestrator.provenance import provenance
from orchestrator.ray_cluster import Cluster, connect
from orchestrator.result import Effort, build_result, compressed_network, safetensors_bytes
from orchestrator.run_directory import RunDirectory
from orchestrator.searches.contract import Answer, Search
from orchestrator.searches.objective import OBJECTIVES
from orchestrator.searches.registry import search_methods
from orchestrator.shared import share, store_model
from search_spaces.candidates import Candidate, Score
from search_spaces.errors import ConfigError, CorruptedWeightsError, RunInterruptedError
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors
from workers.evaluator import Evaluator, Shared
from workers.factoriser import factors_from
from workers.scoring import Way, choose_scoring, reason_against_stopping

__all__ = ["run_search"]

FLUSH_S = 5.0
"""Seconds between Parquet files at first; they grow with the run, so that a week leaves hundreds of files."""


def run_search(prepared: Prepared, run: RunDirectory, observer: Observer) -> dict[str, Any]:
    """Runs a search, new or resumed, to its end; everything it learns is in the run directory at once.

    Returns:
        The result, as `result.json` holds it.

    Raises:
        RunStoppedError: it ended early and can be resumed.
        ConfigError: the start-up check failed, or no candidate could be scored.
    """
    origin = provenance(prepared.fingerprints)
    settings = prepared.config.search
    with run.locked():
        log = EvaluationLog(run.storage, prepared.space, next(iter(settings.budget)))
        former = run.state() or {"search": None, "seconds": 0.0}
        recorded = log.recover()
        scored = [score for score in recorded if not score.stopped]
        course = _Course(prepared, run, log, observer, former["seconds"], len(scored), len(recorded) - len(scored))
        with connect(prepared.config.cluster) as cluster:
            search, answer, network = _find(course, cluster, former["search"], scored)
        effort = Effort(course.scored_in_all, course.stopped_in_all, search.skipped, course.seconds)
        result = build_result(prepared, answer, network, effort, origin)
        run.storage.write("model.safetensors", safetensors_bytes(prepared, answer, network))
        run.write_result(result)
    return result


def _find(
    course: _Course, cluster: Cluster, state: Mapping[str, Any] | None, recorded: Sequence[Score]
) -> tuple[Search, Answer, nn.Module]:
    """Follows the search on a pool of evaluators; returns it, its answer, and that as a network without the cluster.

    Args:
        state: of the search in a former process.
        recorded: scores of former processes.

    Raises:
        ConfigError: nothing that could be the answer could be scored.
    """
    size = _evaluators(course.prepared, cluster)  # before factorising takes CPUs for a moment
    model = store_model(course.prepared)
    learned = model.learn(course.prepared)
    prepared = course.prepared = learned.prepared
    course.run.write_space(prepared)
    method = search_methods().get(prepared.config.search.method, "search.method")
    search = method.start(prepared.config.search, prepared.problem, state)
    search.tell(recorded)
    shared, references = share(prepared, model, learned)
    stored = ray.get(references)
    factors = {layer.name: factors_from(one) for layer, one in zip(prepared.found.layers, stored, strict=True)}
    way = _choose_way(prepared, factors, course.observer)
    shared = replace(shared, way=way, stop_by=_stop_by(prepared, factors, way, course.observer))
    pool = _start_pool(prepared, shared, size, course.observer)
    try:
        course.follow(search, pool)
    finally:
        pool.close()
    answer = search.best
    if answer is None:
        raise ConfigError("model", "nothing that could be the answer could be scored; see `reason` in evaluations/")
    return search, answer, compressed_network(prepared, answer, factors)


def _evaluators(prepared: Prepared, cluster: Cluster) -> int:
    wanted = prepared.config.cluster.evaluators
    return (
        cluster.evaluators_that_fit(prepared.config.cluster.threads_per_evaluator) if wanted == "auto" else int(wanted)
    )


def _start_pool(prepared: Prepared, shared: Shared, size: int, observer: Observer) -> Pool:
    threads = prepared.config.cluster.threads_per_evaluator

    def make(name: str) -> Any:
        # Ray must neither restart nor retry: the pool does, with a count per candidate.
        actor = ray.remote(num_cpus=threads, max_restarts=0, max_task_retries=0)(Evaluator)
        return actor.remote(name, shared)

    events = PoolEvents(lost=lambda name, cause: observer.say(f"{name} was lost: {cause}; its work goes to others"))
    return Pool(make, size, timeout_s=prepared.config.cluster.timeout_s, events=events)


def _choose_way(prepared: Prepared, factors: Mapping[str, Factors], observer: Observer) -> Way:
    """How candidates are scored, checked against assembled networks before anything is scored.

    Raises:
        ConfigError: no way gives what the assembled network gives.
    """
    space = prepared.space
    halves = space.at([max(1, layer.useful // 2) for layer in space.layers])
    way, reason = choose_scoring(prepared.subject(factors), [space.dense, halves])
    if reason:
        observer.say(f"{slower_way(way)}, because {reason}; the answer is the same, later")
    return way


def _stop_by(prepared: Prepared, factors: Mapping[str, Factors], way: Way, observer: Observer) -> str:
    """The objective by which candidates are stopped early; empty where all are scored to the end."""
    settings = prepared.config.search
    if not settings.stops_early or way == "plain":
        return ""
    subject = replace(prepared.subject(factors), stop_by=settings.objective)
    reason = reason_against_stopping(way, subject, prepared.space.dense)
    if reason:
        observer.say(f"every candidate is scored to the end, because {reason}; the answer is the same, later")
    return "" if reason else settings.objective


@dataclass
class _Course:
    """Follows one search: passes candidates and scores on, and keeps the run directory up to date.

    Attributes:
        seconds_before: of former processes of the same run.
        recorded: scores of former processes.
        stopped_before: candidates that were stopped early in former processes.
    """

    prepared: Prepared
    run: RunDirectory
    log: EvaluationLog
    observer: Observer
    seconds_before: float
    recorded: int
    stopped_before: int
    scored: int = 0
    stopped: int = 0
    _started: float = field(default_factory=time.monotonic)
    _last_save: float = field(default_factory=time.monotonic)
    _asked: dict[RankVector, Candidate] = field(default_factory=dict)
    _first_compression: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the whole run until now."""
        return self.seconds_before + time.monotonic() - self._started

    @property
    def scored_in_all(self) -> int:
        """Candidates scored in the whole run."""
        return self.recorded + self.scored

    @property
    def stopped_in_all(self) -> int:
        """Candidates stopped early in the whole run."""
        return self.stopped_before + self.stopped

    def follow(self, search: Search, pool: Pool) -> None:
        """Goes on until the search is done.

        Raises:
            RunInterruptedError: Ctrl-C, or SIGTERM.
            RunStoppedError: out of space, out of evaluators, or the weights were written to.
        """
        try:
            with _termination_interrupts():
                self._loop(search, pool)
                pool.check_weights()
        except CorruptedWeightsError:
            self.log.set_aside()
            raise
        except KeyboardInterrupt:
            self._save(search)
            raise RunInterruptedError(
                f"interrupted after {self.scored_in_all:,} candidates; go on with `rankray resume {self.run.location}`"
            ) from None
        self._save(search)

    def _loop(self, search: Search, pool: Pool) -> None:
        bound = search.bound if self.prepared.config.search.stops_early else None
        while True:
            level = search.level
            fresh = search.ask()
            self._asked.update({candidate.ranks: candidate for candidate in fresh})
            pool.submit(fresh, bound=bound)
            if search.done:
                return
            scores = pool.collect()
            self.log.record([(self._asked.pop(score.ranks), score) for score in scores])
            stopped = sum(score.stopped for score in scores)
            self.stopped += stopped
            self.scored += len(scores) - stopped
            search.tell(scores)
            if scores:
                self.observer.update(self._snapshot(search, pool))
            if search.level > level:
                self._at_level_end(search, pool)

    def _at_level_end(self, search: Search, pool: Pool) -> None:
        pool.check_weights()
        if time.monotonic() - self._last_save > max(FLUSH_S, self.seconds / 100):
            self._save(search)

    def _save(self, search: Search) -> None:
        self.log.flush()
        self.run.write_state({"search": search.state(), "seconds": self.seconds})
        self._last_save = time.monotonic()

    def _snapshot(self, search: Search, pool: Pool) -> Snapshot:
        best, problem = search.best, self.prepared.problem
        cost, target = problem.budget.targets[0]
        elapsed = time.monotonic() - self._started
        compression = 0.0 if best is None else problem.space.compression(cost, best.ranks)
        if self._first_compression is None:
            self._first_compression = compression
        done = compression - self._first_compression
        left = elapsed * (target - compression) / done if done > 0.02 * target else None
        return Snapshot(
            level=search.level,
            scored=self.scored,
            stopped=self.stopped,
            recorded=self.recorded,
            per_second=(self.scored + self.stopped) / elapsed if elapsed > 0 else 0.0,
            best=_shown_value(best, problem.objective),
            objective=problem.objective,
            compression=compression,
            target=target,
            alive=len(pool.alive),
            left_s=None if left is None else max(0.0, left),
        )


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Makes SIGTERM, by which batch systems announce the end, do what Ctrl-C does: save and stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _shown_value(best: Answer | None, objective: str) -> float | None:
    """The objective's value as people know it: losses and divergences positive."""
    return abs(OBJECTIVES[objective](best.score.values)) if best is not None and best.score.ok else None
