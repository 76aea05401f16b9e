"""A comparison one search at a time against the same searches interleaved on one pool."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from _prepared import cifar
from _record import by_turns, ratio, show, summary

from orchestrator import search_run
from orchestrator.config.schema import ClusterSettings
from orchestrator.preparation import Prepared
from orchestrator.progress import Silent
from orchestrator.ray_cluster import connect
from orchestrator.run_directory import RunDirectory
from orchestrator.search_run import SearchToRun, run_searches
from orchestrator.searches.mbs import StepAndBeam
from search_spaces.budgets import Budget
from search_spaces.candidates import Score
from search_spaces.errors import RankRayError
from search_spaces.rank_space import RankVector
from workers.evaluator import Evaluator
from workers.scorer import Change

__all__ = ["QUICK", "InterleavedSize", "measure", "show_found"]

EVALUATORS = 2
WAYS = ("one_by_one", "interleaved")


@dataclass(frozen=True)
class InterleavedSize:
    """What is compared: mBS of a CIFAR ResNet, every setting under every budget.

    Attributes:
        settings: (s, K).
        targets: C_d in parameters.
    """

    depth: int = 20
    images: int = 128
    settings: tuple[tuple[int, int], ...] = ((10, 5), (5, 2))
    targets: tuple[float, ...] = (0.3, 0.5, 0.6)
    repeats: int = 2


QUICK = InterleavedSize(images=16, settings=((16, 2), (12, 1)), targets=(0.1, 0.15, 0.2), repeats=1)


class Busy:
    """An actor that keeps when evaluators worked."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, float]] = []

    def add(self, started: float, ended: float) -> None:
        """Takes a call of an evaluator."""
        self._calls.append((started, ended))

    def take(self) -> list[tuple[float, float]]:
        """All calls since this was asked last."""
        calls, self._calls = self._calls, []
        return calls


class WatchedEvaluator(Evaluator):
    """An evaluator that says when it works; the parent's pass, which no score contains, is counted."""

    def score(self, parent: RankVector, changes: Sequence[Change], *others: Any) -> list[Score]:
        """Scores children."""
        started = time.time()
        scores = super().score(parent, changes, *others)
        ray.get_actor("busy").add.remote(started, time.time())
        return scores


def measure(size: InterleavedSize) -> dict[str, Any]:
    """Runs both ways in turns.

    Returns:
        By way `seconds` (of everything: factorising, starting evaluators, searching, results), `scoring_seconds` (from
        the first call's start to the last one's end), `scored` candidates and `idle`, the evaluators' idle share of the
        scoring seconds; `one_by_one_over_interleaved` and `scoring_ratio`, ratios of seconds; whether all `answers` are
        the same.
    """
    searches = _searches(size)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with connect(ClusterSettings(address="local", evaluators=EVALUATORS)), _watched():
        take = {way: partial(_seconds, way, searches, found[way]) for way in WAYS}
        seconds = by_turns(take, size.repeats)
    answers = [one["answers"] for ones in found.values() for one in ones]
    scoring = {way: [one["scoring_seconds"] for one in ones] for way, ones in found.items()}
    return {
        **{
            way: {
                "seconds": summary(seconds[way]),
                "scoring_seconds": summary(scoring[way]),
                "scored": ones[0]["scored"],
                "idle": summary([one["idle"] for one in ones]),
            }
            for way, ones in found.items()
        },
        "searches": len(searches),
        "one_by_one_over_interleaved": ratio(*(seconds[way] for way in WAYS)),
        "scoring_ratio": ratio(*(scoring[way] for way in WAYS)),
        "answers": all(one == answers[0] for one in answers),
    }


def _searches(size: InterleavedSize) -> dict[str, Prepared]:
    first = cifar(size.depth, size.images, max(size.targets))
    found = {}
    for target in size.targets:
        for step, beam_size in size.settings:
            config = first.config
            changed = {"budget": {"parameters": target}, "settings": (StepAndBeam(step=step, beam_size=beam_size),)}
            search = config.search.model_copy(update=changed)
            cluster = config.cluster.model_copy(update={"evaluators": EVALUATORS})
            ready = config.model_copy(update={"search": search, "cluster": cluster})
            problem = replace(first.problem, budget=Budget.of(ready.limits, first.space))
            found[f"s{step}-k{beam_size}-{target}"] = replace(first, config=ready, problem=problem)
    return found


@contextmanager
def _watched() -> Iterator[None]:
    """Has evaluators say when they work."""
    busy = ray.remote(num_cpus=0)(Busy).options(name="busy").remote()
    with mock.patch.object(search_run, "Evaluator", WatchedEvaluator):
        yield
    ray.kill(busy)


def _seconds(way: str, searches: Mapping[str, Prepared], found: list[dict[str, Any]]) -> float:
    """Runs all searches in one way; adds what was found, returns the seconds."""
    groups = [list(searches)] if way == "interleaved" else [[name] for name in searches]
    answers: dict[str, Any] = {}
    span, worked, scored = 0.0, 0.0, 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for names in groups:
            runs = {name: RunDirectory.create(str(Path(folder, name)), searches[name]) for name in names}
            results: dict[str, Any] = {}
            to_run = [SearchToRun(name, searches[name], run) for name, run in runs.items()]
            run_searches(to_run, Silent(), results.__setitem__)
            for name, result in results.items():
                if isinstance(result, RankRayError):
                    raise result
                answers[name] = result["ranks"]
                scored += result["evaluations"] - result["taken_over"]
            calls = ray.get(ray.get_actor("busy").take.remote())
            span += max(end for _, end in calls) - min(start for start, _ in calls)
            worked += sum(end - start for start, end in calls)
    seconds = time.perf_counter() - started
    idle = 1.0 - worked / (EVALUATORS * span)
    found.append({"answers": answers, "scored": scored, "scoring_seconds": span, "idle": idle})
    return seconds


def show_found(found: Mapping[str, Any], size: InterleavedSize) -> None:
    """Prints both ways and their ratios."""
    rows = [
        [
            way.replace("_", " "),
            f"{found[way]['scored']:,}",
            f"{found[way]['seconds']['median']:.1f}",
            f"{found[way]['scoring_seconds']['median']:.1f}",
            f"{100 * found[way]['idle']['median']:.1f} %",
        ]
        for way in WAYS
    ]
    whole, scoring = found["one_by_one_over_interleaved"], found["scoring_ratio"]
    rows.append(["ratio", "", f"{whole['ratio']:.2f}", f"{scoring['ratio']:.2f}", ""])
    title = f"ResNet-{size.depth}, {size.images} images, {found['searches']} searches, {EVALUATORS} evaluators"
    show(title, ["", "scored", "seconds", "seconds of scoring", "evaluators idle"], rows)
    if not found["answers"]:
        print("the answers differ")
