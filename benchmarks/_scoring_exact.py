"""Exact mBS: candidates per second of the fast scorer against the plain pass, over a whole search."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _record import show
from _scoring_compare import Comparison, SampledLevel, Turns, spread
from _scoring_course import Course, run_course
from _scoring_network import Network, cifar_network

__all__ = ["ExactSize", "course_of", "measure", "network_of", "show_found"]

TARGET_RATIO = 6.0


@dataclass(frozen=True)
class ExactSize:
    """How much is measured.

    Attributes:
        depth: of the CIFAR ResNet.
        images: in the validation batch.
        target: C_d.
        levels: spread over the search, on which the two ways are timed in turns.
        plain_candidates: of each of these levels that take plain passes.
        repeats: of each of these levels.
    """

    depth: int = 56
    images: int = 256
    target: float = 0.56
    levels: int = 8
    plain_candidates: int = 12
    repeats: int = 3


QUICK = ExactSize(depth=20, images=16, target=0.06, levels=2, plain_candidates=4, repeats=2)


@cache
def network_of(size: ExactSize) -> Network:
    """The network that is searched, with (s, K) = (10, 5)."""
    return cifar_network(size.depth, size.images, size.target)


def course_of(network: Network, size: ExactSize, folder: Path) -> Course:
    """Its exact search, from the recorded course where there is one."""
    return run_course(network, folder / f"{network.name}-c{size.target:g}-n{size.images}-exact.jsonl")


def measure(size: ExactSize, folder: Path) -> dict[str, Any]:
    """Candidates per second over the whole search, fast and plain."""
    network = network_of(size)
    course = course_of(network, size, folder)
    turns = Turns(network)
    sampled = spread(course, size.levels)
    compared = [turns.compare(one.level.groups, size.plain_candidates, size.repeats) for one in sampled]
    return {
        "network": network.name,
        "search": _search(course),
        "levels": [
            {"level": one.index, "stands_for": one.stands_for, **comparison.to_json()}
            for one, comparison in zip(sampled, compared, strict=True)
        ],
        "whole_search": _whole(sampled, compared),
        "largest_difference": max(one.largest_difference for one in compared),
    }


def _search(course: Course) -> dict[str, Any]:
    """The search as it ran: its plain passes lie between its levels. Stopped candidates have no values."""
    plain = statistics.mean(course.plain_seconds)
    return {
        "levels": len(course.levels),
        "candidates": course.candidates,
        "without_values": course.without_values,
        "seconds": course.seconds,
        "plain_seconds": plain,
        "plain_passes": len(course.plain_seconds),
        "ratio": plain * course.candidates / course.seconds,
        "git_commits": course.git_commits,
        "level_candidates": [level.candidates for level in course.levels],
        "level_seconds": [round(level.seconds, 4) for level in course.levels],
    }


def _whole(sampled: Sequence[SampledLevel], compared: Sequence[Comparison]) -> dict[str, Any]:
    """Every sampled level counts as often as its stretch of the search has candidates."""
    weights = [one.stands_for for one in sampled]

    def total(seconds: Sequence[float]) -> float:
        return sum(weight * one for weight, one in zip(weights, seconds, strict=True))

    fast, plain = total([one.fast for one in compared]), total([one.plain for one in compared])
    repeats = [
        total([one.plain_seconds[repeat] for one in compared]) / total([one.fast_seconds[repeat] for one in compared])
        for repeat in range(len(compared[0].fast_seconds))
    ]
    return {
        "candidates": sum(weights),
        "fast_seconds": fast,
        "plain_seconds": plain,
        "fast_per_second": sum(weights) / fast,
        "plain_per_second": sum(weights) / plain,
        "ratio": {"ratio": plain / fast, "lowest": min(repeats), "highest": max(repeats)},
        "target_ratio": TARGET_RATIO,
    }


def show_found(found: Mapping[str, Any]) -> None:
    """Prints the sampled levels and the whole search."""
    rows = []
    for one in found["levels"]:
        rows.append(
            [
                f"level {one['level']}",
                f"{one['candidates']:,}",
                f"{1000 * one['fast_seconds']['median']:.1f}",
                f"{1000 * one['plain_seconds']['median']:.1f}",
                _shown(one["ratio"]),
            ]
        )
    whole, search = found["whole_search"], found["search"]
    rows.append(
        [
            "whole search",
            f"{whole['candidates']:,}",
            f"{1000 / whole['fast_per_second']:.1f}",
            f"{1000 / whole['plain_per_second']:.1f}",
            _shown(whole["ratio"]),
        ]
    )
    show(
        f"Exact mBS, {found['network']}, one thread; losses differ by at most {found['largest_difference']:.0e}",
        ["", "candidates", "fast, ms a candidate", "plain, ms a candidate", "plain / fast"],
        rows,
    )
    print(
        f"The search as it ran: {search['levels']} levels, {search['seconds']:.0f} s; by its {search['plain_passes']} "
        f"plain passes in between, the plain way would have taken {search['ratio']:.1f} times as long."
    )


def _shown(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
