"""Candidates per second with one and with two evaluators, and what a candidate costs the driver itself.

Throughput: both take the same rank vectors (levels that a search of this network asks for), on the same actors, in
turns, level by level as a search does. The driver's own time: the whole loop of a run (search, pool, evaluation log
in a run directory) with actors that score at once, with calls as large as the pool then makes them, and with one
candidate a call, which is what the pool does with a network that takes longer than half a second a candidate.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import ray
from _prepared import cifar, has_data, share_as_a_run
from _record import arguments, by_turns, ratio, record, show, summary
from _stopwatch import SECTIONS, WAITING, Stopwatch, watched

from orchestrator import dispatch
from orchestrator.config.schema import ClusterSettings
from orchestrator.course import Course
from orchestrator.evaluation_log import EvaluationLog
from orchestrator.following import Following
from orchestrator.pool import Pool
from orchestrator.preparation import Prepared
from orchestrator.progress import Silent
from orchestrator.ray_cluster import connect
from orchestrator.run_directory import RunDirectory
from orchestrator.score_memory import ScoreMemory
from orchestrator.searches.contract import Search
from orchestrator.searches.registry import search_methods
from orchestrator.shared_time import SharedTime
from search_spaces.candidates import Candidate, Score
from search_spaces.rank_space import RankVector
from workers.evaluator import Evaluator
from workers.scorer import Change

NAME = "pool"
CALLS = {"one_a_call": "one a call", "grouped": "grouped"}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        images: in the validation batch.
        target: C_d of the searches.
        levels: whose candidates both pools score, counted from the dense network.
        candidates: of each of these levels, at most, evenly taken.
        alone: candidates of a level that one evaluator scores with the machine to itself.
        repeats: of throughput and of the driver's loop.
        depths: of the CIFAR ResNets that the driver's loop searches.
    """

    images: int = 256
    target: float = 0.5
    levels: tuple[int, ...] = (8, 24)
    candidates: int = 1000
    alone: int = 60
    repeats: int = 5
    depths: tuple[int, ...] = (20, 56)


QUICK = Size(images=16, target=0.1, levels=(4,), candidates=12, alone=12, repeats=2, depths=(20,))


class InstantEvaluator:
    """Scores at once with made-up numbers: an evaluator's contract and nothing else."""

    def __init__(self, name: str) -> None:
        self._name = name

    def ready(self) -> str:
        """Its name."""
        return self._name

    def damaged(self) -> list[str]:
        """Nothing can be."""
        return []

    def score(self, parent: RankVector, changes: Sequence[Change], *_others: object) -> list[Score]:
        """A made-up score for every child of `parent`."""
        children = (tuple(change.get(index, rank) for index, rank in enumerate(parent)) for change in changes)
        return [made_up_score(ranks, self._name) for ranks in children]


def made_up_score(ranks: RankVector, worker: str = "") -> Score:
    """A score that depends on the rank vector alone, and is the same everywhere."""
    loss = zlib.crc32(repr(ranks).encode()) / 2**32
    return Score(ranks, {"accuracy": 1.0 - loss, "loss": loss, "kl": loss}, worker=worker)


def start_search(prepared: Prepared) -> Search:
    """The search that the network's config asks for, from its beginning."""
    settings = prepared.config.search
    search: Search = search_methods().get(settings.method, "search.method").start(settings, prepared.problem, None)
    return search


def levels_of(prepared: Prepared, levels: Sequence[int], at_most: int) -> list[list[Candidate]]:
    """Candidates of some levels of a search whose course made-up scores decide."""
    search = start_search(prepared)
    wanted: list[list[Candidate]] = []
    while len(wanted) < len(levels):
        candidates = search.ask()
        if search.level in levels:
            wanted.append(candidates[:: -(-len(candidates) // at_most)])
        search.tell([made_up_score(candidate.ranks) for candidate in candidates])
    return wanted


def start_evaluators(prepared: Prepared, count: int) -> list[Any]:
    """Evaluators of one thread each, ready to score."""
    actors = _actors(Evaluator, count, share_as_a_run(prepared))
    ray.get([actor.ready.remote() for actor in actors])
    return actors


def _actors(kind: type[Any], count: int, *arguments: object) -> list[Any]:
    """Actors of one CPU each, with names as the pool gives them."""
    start: Any = ray.remote(num_cpus=1)(kind)
    return [start.remote(f"evaluator-{number}", *arguments) for number in range(1, count + 1)]


def pool_of(actors: Sequence[Any]) -> Pool:
    """A pool on actors that run already, all of them ready."""
    waiting = iter(actors)
    pool = Pool(lambda _name: next(waiting), len(actors), restarts=0)
    while len(pool.alive) < len(actors):
        pool.collect()
    return pool


class Throughput:
    """Scores levels with one evaluator and with more.

    Args:
        actors: evaluators; a pool of n takes the first n.
        levels: what is scored; a level starts when the one before has ended.
        counts: sizes of the pools.
    """

    def __init__(
        self, actors: Sequence[Any], levels: Sequence[Sequence[Candidate]], counts: Sequence[int] = (1, 2)
    ) -> None:
        self.levels = levels
        self.scores: dict[int, list[Score]] = {count: [] for count in counts}
        self._pools = {count: pool_of(actors[:count]) for count in self.scores}
        for count, pool in self._pools.items():  # torch warms up, and the pool learns what a candidate takes
            _score_all(pool, levels[0][: 4 * count])

    def per_second(self, count: int) -> float:
        """Candidates per second with so many evaluators."""
        started = time.perf_counter()
        for level in self.levels:
            self.scores[count] += _score_all(self._pools[count], level)
        return sum(map(len, self.levels)) / (time.perf_counter() - started)

    def check_equal(self) -> None:
        """Returns if all pools did the same work.

        Raises:
            RuntimeError: a candidate that failed, or that scored different values.
        """
        seen: dict[RankVector, Mapping[str, float]] = {}
        for score in itertools.chain.from_iterable(self.scores.values()):
            if not score.ok or seen.setdefault(score.ranks, score.values) != score.values:
                raise RuntimeError(f"{score.ranks}: expected {seen.get(score.ranks)}, got {score}")


def _score_all(pool: Pool, candidates: Sequence[Candidate]) -> list[Score]:
    pool.submit(candidates)
    scores: list[Score] = []
    while pool.pending:
        scores += pool.collect()
    return scores


def measure_throughput(size: Size) -> dict[str, Any]:
    """Candidates per second of a ResNet-20."""
    prepared = cifar(20, size.images, size.target)
    actors = start_evaluators(prepared, 2)
    throughput = Throughput(actors, levels_of(prepared, size.levels, size.candidates))
    taken = by_turns({str(count): partial(throughput.per_second, count) for count in (1, 2)}, size.repeats)
    throughput.check_equal()
    for actor in actors:
        ray.kill(actor)
    return {
        "candidates": sum(map(len, throughput.levels)),
        "per_second": {count: summary(values) for count, values in taken.items()},
        "two_over_one": ratio(taken["2"], taken["1"]),
        "evaluator_seconds": {
            str(count): statistics.mean(score.seconds for score in scores)
            for count, scores in throughput.scores.items()
        },
    }


def real_seconds(depth: int, size: Size) -> float:
    """What a candidate takes one evaluator that has the machine to itself, on average over a level."""
    prepared = cifar(depth, size.images, size.target)
    actors = start_evaluators(prepared, 1)
    throughput = Throughput(actors, levels_of(prepared, size.levels[:1], size.alone), counts=(1,))
    per_second = throughput.per_second(1)
    ray.kill(actors[0])
    return 1.0 / per_second


def drive(prepared: Prepared, actors: Sequence[Any], calls: str) -> tuple[int, dict[str, float]]:
    """Runs a whole search on actors that score at once.

    Returns:
        How many candidates were scored, and microseconds per candidate by section.
    """
    watch, search = Stopwatch(), start_search(prepared)
    with tempfile.TemporaryDirectory() as folder, _calls(calls):
        run = RunDirectory.create(folder, prepared)
        log = EvaluationLog(run.storage, prepared.space, next(iter(prepared.config.search.budget)))
        pool = pool_of(actors)
        shared_time = SharedTime(["alone"])
        course = Course("alone", prepared, run, log, search, set(), set(), 0.0, shared_time)
        with watched(watch, search, log, pool):
            following = Following([course], pool, ScoreMemory(), shared_time, Silent(), lambda *_: None)
            following.follow()
    return following.scored, {section: 1e6 * seconds / following.scored for section, seconds in watch.seconds.items()}


@contextmanager
def _calls(calls: str) -> Iterator[None]:
    """Calls as large as the pool makes them, or of one candidate each."""
    with mock.patch.object(dispatch, "TARGET_S", 0.0 if calls == "one_a_call" else dispatch.TARGET_S):
        yield


def measure_driver(size: Size) -> dict[str, Any]:
    """The driver's own microseconds per candidate, by network, calls and section."""
    prepared = {depth: cifar(depth, size.images, size.target) for depth in size.depths}
    actors = _actors(InstantEvaluator, 2)
    sections: dict[tuple[int, str], list[dict[str, float]]] = {}
    scored: dict[int, int] = {}

    def own_microseconds(depth: int, calls: str) -> float:
        scored[depth], taken = drive(prepared[depth], actors, calls)
        sections.setdefault((depth, calls), []).append(taken)
        return sum(taken[section] for section in SECTIONS)

    cases = {f"{depth} {calls}": (depth, calls) for depth in size.depths for calls in CALLS}
    own = by_turns({name: partial(own_microseconds, *case) for name, case in cases.items()}, size.repeats)
    for actor in actors:
        ray.kill(actor)
    found: dict[str, Any] = {}
    for depth in size.depths:
        seconds = real_seconds(depth, size)
        found[f"resnet{depth}"] = {"candidates": scored[depth], "real_seconds": seconds}
        for calls in CALLS:
            found[f"resnet{depth}"][calls] = {
                "own": summary(own[f"{depth} {calls}"]),
                "by_section": _medians(sections[depth, calls]),
                "share": statistics.median(own[f"{depth} {calls}"]) / (1e6 * seconds),
            }
    return found


def _medians(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {section: statistics.median(one[section] for one in repeats) for section in (*SECTIONS, WAITING)}


def show_throughput(found: Mapping[str, Any], size: Size) -> None:
    """Prints candidates per second."""
    two = found["two_over_one"]
    ratios = {"1": "1", "2": f"{two['ratio']:.2f} ({two['lowest']:.2f} to {two['highest']:.2f})"}
    rows = [
        [
            count,
            f"{one['median']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})",
            ratios[count],
            f"{1000 * found['evaluator_seconds'][count]:.0f}",
        ]
        for count, one in found["per_second"].items()
    ]
    title = f"ResNet-20, {size.images} images, {found['candidates']} candidates, {size.repeats} repeats in turns"
    show(title, ["evaluators", "candidates/s", "ratio", "ms per candidate in an evaluator"], rows)


def show_driver(found: Mapping[str, Any], size: Size) -> None:
    """Prints the driver's own time."""
    columns = [(name, calls) for name in found for calls in CALLS]
    cells = [found[name][calls] for name, calls in columns]
    rows = [["own time", *(f"{cell['own']['median']:.0f}" for cell in cells)]]
    for section, label in SECTIONS.items():
        rows.append([f"  {label}", *(f"{cell['by_section'][section]:.0f}" for cell in cells)])
    rows.append(["waiting for scores", *(f"{cell['by_section'][WAITING]:.0f}" for cell in cells)])
    rows.append(["candidates a search", *(f"{found[name]['candidates']:,}" for name, _ in columns)])
    rows.append(["a real candidate, ms", *(f"{1000 * found[name]['real_seconds']:.0f}" for name, _ in columns)])
    rows.append(["own time : real candidate", *(f"{100 * cell['share']:.2f} %" for cell in cells)])
    titles = [f"{name.replace('resnet', 'ResNet-')}, {CALLS[calls]}" for name, calls in columns]
    title = f"The driver's microseconds per candidate; real ones: {size.images} images, one thread"
    show(title, ["", *titles], rows)


def main(given: argparse.Namespace) -> None:
    """Measures, prints and records everything."""
    started, size = time.monotonic(), QUICK if given.quick else Size()
    with connect(ClusterSettings(address="local", evaluators=2)):
        throughput = measure_throughput(size)
        show_throughput(throughput, size)
        driver = measure_driver(size)
        show_driver(driver, size)
    settings = {
        "images": size.images,
        "target": size.target,
        "levels": list(size.levels),
        "repeats": size.repeats,
        "real_data": has_data(),
    }
    record(NAME, given, settings, {"throughput": throughput, "driver": driver}, started)


if __name__ == "__main__":
    main(
        arguments(
            NAME,
            argparse.ArgumentParser(
                description="Candidates per second with one and two evaluators; the driver's own time per candidate."
            ),
        )
    )
