"""Candidates per second of the fast scorer with one and with two evaluators on Ray, of one thread each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from _record import by_turns, ratio, show, summary
from _scoring_compare import spread
from _scoring_course import Group, groups_of, score_groups
from _scoring_exact import ExactSize, course_of, network_of
from _scoring_network import Network
from bench_pool import Throughput

from orchestrator.config.schema import ClusterSettings
from orchestrator.ray_cluster import connect
from orchestrator.shared import share
from search_spaces.candidates import Candidate
from workers.evaluator import Evaluator
from workers.ways import Scorer

__all__ = ["measure", "show_found"]

TARGET_RATIO = 1.8

LEVELS = 2
"""Of the search, spread evenly over it: each starts when the one before has ended."""


def measure(size: ExactSize, folder: Path) -> dict[str, Any]:
    """Both take the same rank vectors, levels of the exact search, in turns; `in_process` takes them without Ray."""
    network = network_of(size)
    sampled = [one.level.groups for one in spread(course_of(network, size, folder), LEVELS)]
    asked = [_candidates(number, groups) for number, groups in enumerate(sampled)]
    count = sum(map(len, asked))
    scorer = network.fast_scorer()
    score_groups(scorer, sampled[0][:1])
    with connect(ClusterSettings(address="local", evaluators=2)):
        actors = _start_evaluators(network)
        throughput = Throughput(actors, asked)
        measures = {str(evaluators): partial(throughput.per_second, evaluators) for evaluators in (1, 2)}
        measures["in_process"] = partial(_per_second, scorer, asked)
        taken = by_turns(measures, size.repeats)
        throughput.check_equal()
        for actor in actors:
            ray.kill(actor)
    return {
        "network": network.name,
        "candidates": count,
        "per_second": {name: summary(values) for name, values in taken.items()},
        "two_over_one": ratio(taken["2"], taken["1"]),
        "one_over_in_process": ratio(taken["1"], taken["in_process"]),
        "target_ratio": TARGET_RATIO,
    }


def _candidates(level: int, groups: tuple[Group, ...]) -> list[Candidate]:
    return [
        Candidate(ranks, group.parent, min(change, default=None), level)
        for group in groups
        for change, ranks in zip(group.changes, group.children, strict=True)
    ]


def _start_evaluators(network: Network) -> list[Any]:
    """Two evaluators that score the fast way, ready."""
    shared = replace(share(network.prepared)[0], way="resumed")
    start: Any = ray.remote(num_cpus=1)(Evaluator)
    actors = [start.remote(f"evaluator-{number}", shared) for number in (1, 2)]
    ray.get([actor.ready.remote() for actor in actors])
    return actors


def _per_second(scorer: Scorer, levels: list[list[Candidate]]) -> float:
    started = time.perf_counter()
    for level in levels:
        score_groups(scorer, groups_of(level))
    return sum(map(len, levels)) / (time.perf_counter() - started)


def show_found(found: Mapping[str, Any]) -> None:
    """Prints candidates per second."""
    two = found["two_over_one"]
    ratios = {"1": "1", "2": f"{two['ratio']:.2f} ({two['lowest']:.2f} to {two['highest']:.2f})"}
    rows = [
        [
            name.replace("_", " "),
            f"{one['median']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})",
            ratios.get(name, ""),
        ]
        for name, one in found["per_second"].items()
    ]
    title = f"{found['network']}, {found['candidates']} candidates, one thread each"
    show(title, ["evaluators", "candidates/s", "over one"], rows)
