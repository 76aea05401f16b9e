"""The fast scorer against the plain pass on the same candidates, in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from _record import summary
from _scoring_course import Course, Group, Level, groups_of, score_groups
from _scoring_network import Network
from _scoring_plain import PlainPass
from bench_pool import levels_of

from search_spaces.candidates import Score
from search_spaces.rank_space import RankVector

__all__ = ["Comparison", "SampledLevel", "Turns", "made_up_groups", "spread"]


@dataclass(frozen=True)
class SampledLevel:
    """A level that stands for its neighbours.

    Attributes:
        index: in the course.
        level: itself.
        stands_for: candidates of the stretch of levels in whose middle it lies.
    """

    index: int
    level: Level
    stands_for: int


def spread(course: Course, count: int) -> list[SampledLevel]:
    """`count` levels spread evenly: the middles of as many stretches of (nearly) equal numbers of levels.

    A course of fewer levels gives them all.
    """
    levels = course.levels
    count = min(count, len(levels))
    edges = [round(part * len(levels) / count) for part in range(count + 1)]
    return [
        SampledLevel((low + high) // 2, levels[(low + high) // 2], sum(one.candidates for one in levels[low:high]))
        for low, high in pairwise(edges)
    ]


def made_up_groups(network: Network, level: int, parents: int) -> list[Group]:
    """Children of some parents at a level of a search whose course made-up scores decide."""
    (candidates,) = levels_of(network.prepared, [level], at_most=10**9)
    return groups_of(candidates)[:parents]


@dataclass(frozen=True)
class Comparison:
    """Fast against plain on the same candidates.

    Attributes:
        candidates: that the fast scorer scored in each repeat: whole groups, as siblings share their parent's pass.
        plain_candidates: of them, spread evenly, that took a plain pass in each repeat. A plain pass takes the same
            time for every candidate: it is always the whole network.
        fast_seconds: per candidate, by repeat.
        plain_seconds: mean per candidate, by repeat.
        largest_difference: between the losses that the two found, relative to the loss where that is above 1.
    """

    candidates: int
    plain_candidates: int
    fast_seconds: tuple[float, ...]
    plain_seconds: tuple[float, ...]
    largest_difference: float

    @property
    def fast(self) -> float:
        """Median seconds per candidate."""
        return statistics.median(self.fast_seconds)

    @property
    def plain(self) -> float:
        """Median seconds per candidate."""
        return statistics.median(self.plain_seconds)

    def to_json(self) -> dict[str, Any]:
        """`ratio` is the plain pass's seconds over the fast scorer's: of the medians, and of single repeats."""
        singles = [plain / fast for plain, fast in zip(self.plain_seconds, self.fast_seconds, strict=True)]
        return {
            "candidates": self.candidates,
            "plain_candidates": self.plain_candidates,
            "fast_seconds": summary(self.fast_seconds),
            "plain_seconds": summary(self.plain_seconds),
            "ratio": {"ratio": self.plain / self.fast, "lowest": min(singles), "highest": max(singles)},
            "largest_difference": self.largest_difference,
        }


class Turns:
    """Holds a network's two ways of scoring, both warm."""

    def __init__(self, network: Network) -> None:
        self.fast, self.plain = network.fast_scorer(), PlainPass(network)
        dense = network.prepared.space.dense
        self.fast.score(dense, [{}])
        self.plain.time(dense)

    def compare(self, groups: Sequence[Group], plain_candidates: int, repeats: int) -> Comparison:
        """Times both on the same groups; after every group the plain pass scores its share of the candidates.

        Every second repeat, the plain pass comes before the group and not after it.
        """
        samples = _share(groups, plain_candidates)
        fast_seconds, plain_seconds, difference = [], [], 0.0
        for repeat in range(repeats):
            fast, plain = 0.0, []
            for group, sampled in zip(groups, samples, strict=True):
                if repeat % 2 == 0:
                    (taken, scores), timed = self._fast(group), self._plain(sampled)
                else:
                    timed, (taken, scores) = self._plain(sampled), self._fast(group)
                fast += taken
                plain += [seconds for seconds, _ in timed.values()]
                difference = max([difference, *_differences(scores, timed)])
            fast_seconds.append(fast / sum(len(group.changes) for group in groups))
            plain_seconds.append(statistics.mean(plain))
        return Comparison(
            sum(len(group.changes) for group in groups),
            sum(map(len, samples)),
            tuple(fast_seconds),
            tuple(plain_seconds),
            difference,
        )

    def _fast(self, group: Group) -> tuple[float, list[Score]]:
        started = time.perf_counter()
        (scores,) = score_groups(self.fast, [group])
        return time.perf_counter() - started, scores

    def _plain(self, sampled: Sequence[RankVector]) -> dict[RankVector, tuple[float, Mapping[str, float]]]:
        return {ranks: self.plain.time(ranks) for ranks in sampled}


def _share(groups: Sequence[Group], count: int) -> list[list[RankVector]]:
    """`count` candidates in all, or somewhat more, spread evenly over the groups and within each."""
    total = sum(len(group.changes) for group in groups)
    shares = []
    for group in groups:
        children = group.children
        share = min(len(children), math.ceil(count * len(children) / total))
        shares.append([children[(2 * part + 1) * len(children) // (2 * share)] for part in range(share)])
    return shares


def _differences(scores: Sequence[Score], timed: Mapping[RankVector, tuple[float, Mapping[str, float]]]) -> list[float]:
    """Between losses, for every candidate that both scored."""
    return [
        abs(score.values["loss"] - timed[score.ranks][1]["loss"]) / max(1.0, abs(score.values["loss"]))
        for score in scores
        if score.ranks in timed and score.ok
    ]
