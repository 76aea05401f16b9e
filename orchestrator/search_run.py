"""Searches from start or resumption to their results: one, or several that share their evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from orchestrator.course import Course
from orchestrator.evaluation_log import EvaluationLog
from orchestrator.finishing import Finishing
from orchestrator.following import Following
from orchestrator.hardware.timed_search import timed_search
from orchestrator.local_step import Learned
from orchestrator.pool import Pool, PoolEvents
from orchestrator.preparation import Prepared, screening_precision, slower_way
from orchestrator.progress import Observer
from orchestrator.ray_cluster import Cluster, connect
from orchestrator.run_directory import RunDirectory
from orchestrator.score_memory import ScoreMemory
from orchestrator.searches.contract import ScreeningSearch
from orchestrator.shared import StoredModel, share, store_model
from orchestrator.shared_time import SharedTime
from search_spaces.candidates import Score
from search_spaces.errors import RankRayError, RunInterruptedError
from search_spaces.rank_space import RankSpace, RankVector
from workers.choice import Question, choose, choose_on_gpu
from workers.evaluator import Evaluator, Shared
from workers.factoriser import factors_from
from workers.subject import Subject
from workers.ways import RESUMABLE

__all__ = ["SearchToRun", "ranks_to_check", "run_search", "run_searches"]

Ended = Callable[[str, dict[str, Any] | RankRayError], None]


@dataclass(frozen=True)
class SearchToRun:
    """A search with its run directory, new or resumed, and a name that tells it from others."""

    name: str
    prepared: Prepared
    run: RunDirectory


def run_search(prepared: Prepared, run: RunDirectory, observer: Observer) -> dict[str, Any]:
    """Runs a search, new or resumed, to its end; everything it learns is in the run directory at once.

    Returns:
        The result, as `result.json` holds it.

    Raises:
        RunStoppedError: it ended early and can be resumed.
        ConfigError: the start-up check failed, or no candidate could be scored.
    """
    ends: list[dict[str, Any] | RankRayError] = []
    run_searches([SearchToRun("", prepared, run)], observer, lambda _name, end: ends.append(end))
    (end,) = ends
    if isinstance(end, RankRayError):
        raise end
    return end


def run_searches(
    searches: Sequence[SearchToRun], observer: Observer, ended: Ended, known: Iterable[Score] = ()
) -> None:
    """Runs searches interleaved on one pool; what one of them meets ends no other.

    Args:
        searches: of the same network, layers, scheme and validation batch, whose layers are factorised and whose
            candidates are normalised and stopped early in the same way, with the same `cluster`.
        observer: who watches.
        ended: called once for every search, with its name and its result or the error that ended it, in this thread.
        known: scores that hold for these searches too; none of them is scored again.

    Raises:
        RunInterruptedError: Ctrl-C, or SIGTERM; whatever has not ended can be resumed.
    """
    waiting = dict.fromkeys(search.name for search in searches)

    def tell(name: str, end: dict[str, Any] | RankRayError) -> None:
        del waiting[name]
        ended(name, end)

    group = _Group(observer, tell, SharedTime(waiting))
    group.memory.remember(known)
    try:
        with ExitStack() as locks:
            opened = [one for search in searches if (one := group.open(search, locks)) is not None]
            if opened:
                with connect(opened[0].prepared.config.cluster) as cluster:
                    group.run(opened, cluster)
    except RunInterruptedError:
        raise
    except RankRayError as error:  # of what they share
        for name in list(waiting):
            tell(name, error)


@dataclass(frozen=True)
class _Opened:
    """A search whose run directory is locked and read."""

    name: str
    prepared: Prepared
    run: RunDirectory
    log: EvaluationLog
    former: Mapping[str, Any]
    recorded: Sequence[Score]

    @property
    def scores(self) -> list[Score]:
        """Those recorded that are no stopped ones."""
        return [score for score in self.recorded if not score.stopped]


@dataclass
class _Group:
    """Searches that share their evaluators."""

    observer: Observer
    ended: Ended
    shared_time: SharedTime
    memory: ScoreMemory = field(default_factory=ScoreMemory)

    def open(self, search: SearchToRun, locks: ExitStack) -> _Opened | None:
        """Locks and reads a run directory; None, and the search has ended, where that cannot be done."""
        run, prepared = search.run, search.prepared
        try:
            locks.enter_context(run.locked())
            log = EvaluationLog(run.storage, prepared.space, prepared.config.limits[0].cost)
            former = run.state() or {"search": None, "seconds": 0.0}
            recorded = log.recover()
        except RankRayError as error:
            self.ended(search.name, error)
            return None
        opened = _Opened(search.name, prepared, run, log, former, recorded)
        self.memory.remember(opened.scores)
        return opened

    def run(self, opened: Sequence[_Opened], cluster: Cluster) -> None:
        """Factorises once, follows all searches, and has their results made."""
        first = opened[0].prepared
        size = _evaluators(first, cluster)  # before factorising takes CPUs for a moment
        model = store_model(first)
        learned = model.learn_together([one.prepared for one in opened])
        with ExitStack() as devices:
            courses = [
                course
                for one, its in zip(opened, learned, strict=True)
                if (course := self._start(one, its.prepared, cluster, devices)) is not None
            ]
            if courses:
                moments = replace(learned[0], prepared=courses[0].prepared)
                self._follow(courses, model, moments, size)

    def _follow(self, courses: Sequence[Course], model: StoredModel, learned: Learned, size: int) -> None:
        """Factorises, then follows the searches to their ends on a pool of evaluators."""
        first, spaces = learned.prepared, [course.prepared.space for course in courses]
        shared, references = share(first, model, learned, spaces)
        stored = ray.get(references)
        factors = {layer.name: factors_from(one) for layer, one in zip(first.found.layers, stored, strict=True)}
        shared = self._choose(courses, shared, first.subject(factors))
        with Finishing(factors, self.ended) as finishing:
            pool = _start_pool(first, shared, size, self.observer)
            self.shared_time.charge(dict.fromkeys((course.name for course in courses), 1.0))
            following = Following(
                courses,
                pool,
                self.memory,
                self.shared_time,
                self.observer,
                finishing.take,
                stops_early=bool(shared.stop_by),
            )
            try:
                following.follow()
            finally:
                pool.close()

    def _choose(self, courses: Sequence[Course], shared: Shared, subject: Subject) -> Shared:
        """Chooses how candidates are scored, checked against assembled networks before anything is; says what is slow.

        Raises:
            ConfigError: no way gives what the assembled network gives.
        """
        settings = courses[0].prepared.config.search
        rough = [course for course in courses if course.prepared.config.search.screens_in == "bfloat16"]
        question = Question(
            ranks_to_check([course.prepared.space for course in courses]),
            ranks_to_check([course.prepared.space for course in rough]) if rough else (),
            settings.objective if settings.stops_early else "",
        )
        choice = choose_on_gpu(shared, question) if shared.gpus else choose(subject, question)
        if choice.reason:
            self.observer.say(f"{slower_way(choice.way)}, because {choice.reason}; the answer is the same, later")
        if choice.against_bfloat16 is not None:
            self.observer.say(screening_precision(choice.against_bfloat16))
        if choice.against_stopping:
            why = choice.against_stopping
            self.observer.say(f"every candidate is scored to the end, because {why}; the answer is the same, later")
        for course in rough:
            if choice.against_bfloat16 and isinstance(course.search, ScreeningSearch):
                course.search.screen_in("float32")
        return replace(shared, way=choice.way, stop_by=question.stop_by if choice.against_stopping == "" else "")

    def _start(self, opened: _Opened, prepared: Prepared, cluster: Cluster, devices: ExitStack) -> Course | None:
        """The search, from its beginning or as a former process left it; None, and it has ended, where it cannot."""
        former = opened.former["search"]
        try:
            timed = timed_search(prepared, cluster, opened.run, self.observer, former)
            prepared, search = devices.enter_context(timed)
            opened.log.follow(prepared.space)
            opened.run.write_space(prepared)
            search.tell(opened.scores)
        except RunInterruptedError:
            raise
        except RankRayError as error:
            self.ended(opened.name, error)
            return None
        return Course(
            opened.name,
            prepared,
            opened.run,
            opened.log,
            search,
            held={score.key for score in opened.scores},
            stopped={score.key for score in opened.recorded if score.stopped},
            seconds_before=opened.former["seconds"],
            shared_time=self.shared_time,
        )


def _evaluators(prepared: Prepared, cluster: Cluster) -> int:
    wanted = prepared.config.cluster
    if wanted.evaluators != "auto":
        return int(wanted.evaluators)
    return cluster.evaluators_that_fit(wanted.threads_per_evaluator, wanted.gpus_per_evaluator)


def _start_pool(prepared: Prepared, shared: Shared, size: int, observer: Observer) -> Pool:
    def make(name: str) -> Any:
        # Ray must neither restart nor retry: the pool does, with a count per candidate.
        start: Any = ray.remote(num_cpus=shared.threads, num_gpus=shared.gpus, max_restarts=0, max_task_retries=0)
        return start(Evaluator).remote(name, shared)

    events = PoolEvents(lost=lambda name, cause: observer.say(f"{name} was lost: {cause}; its work goes to others"))
    timeout_s, mix_parents = prepared.config.cluster.timeout_s, shared.way in RESUMABLE
    return Pool(make, size, timeout_s=timeout_s, mix_parents=mix_parents, events=events)


def ranks_to_check(spaces: Sequence[RankSpace]) -> list[RankVector]:
    """Rank vectors on which ways of scoring are compared: the dense network, and half of every space's useful ranks."""
    halves = [space.at([max(1, layer.useful // 2) for layer in space.layers]) for space in spaces]
    return list(dict.fromkeys([spaces[0].dense, *halves]))
