"""Calibration: from what a network's layers take by themselves to what the network takes as a whole."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search_spaces.rank_space import RankSpace, RankVector

__all__ = ["Calibration", "calibration_networks", "spearman"]


@dataclass(frozen=True)
class Calibration:
    """An affine model of whole networks, y = slope x + intercept, with how well it does.

    The sum over layers is biased (a layer alone pays for its call and has other caches) but ranks networks well; a
    slope and an intercept per device mend most of it.

    Attributes:
        slope: above 0.
        intercept_ms: what no layer's rank changes; may be below 0.
        networks: that it was fitted to.
        error_median, error_max: |predicted - measured| / measured of each network by the fit to all others
            (leave-one-out); None below three networks.
        spearman: rank correlation of sums and measurements; None where either is constant.
    """

    slope: float
    intercept_ms: float
    networks: int
    error_median: float | None
    error_max: float | None
    spearman: float | None

    @classmethod
    def fit(cls, sums_ms: Sequence[float], measured_ms: Sequence[float]) -> Calibration:
        """Fits by Theil and Sen: the median of all pairs' slopes, then the median of what remains.

        More than a quarter of the networks may have been measured wrongly without harm. Where that gives no positive
        slope (one network; times that do not follow the sums), it is the median ratio, without intercept.

        Args:
            sums_ms, measured_ms: of the same networks, above 0.

        Raises:
            ValueError: there are none, or one is not above 0.
        """
        if not sums_ms or min((*sums_ms, *measured_ms)) <= 0:
            raise ValueError(f"a calibration needs networks with times above 0, got {sums_ms} and {measured_ms}")
        points = list(zip(sums_ms, measured_ms, strict=True))
        slope, intercept = _theil_sen(points)
        errors = []
        for place, (total, measured) in enumerate(points):
            if len(points) >= 3:
                a, b = _theil_sen(points[:place] + points[place + 1 :])
                errors.append(abs(a * total + b - measured) / measured)
        return cls(
            slope,
            intercept,
            len(points),
            statistics.median(errors) if errors else None,
            max(errors, default=None),
            spearman(sums_ms, measured_ms),
        )

    def predict(self, sum_ms: float) -> float:
        """ms of a network whose layers take `sum_ms` by themselves."""
        return self.slope * sum_ms + self.intercept_ms

    def sum_for(self, network_ms: float) -> float:
        """What its layers may take by themselves so that `network_ms` is predicted."""
        return (network_ms - self.intercept_ms) / self.slope

    def record(self) -> dict[str, Any]:
        """For `result.json`."""
        return asdict(self)


def _theil_sen(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    slopes = [
        (y - v) / (x - u) for place, (x, y) in enumerate(points) for u, v in points[:place] if abs(x - u) > 1e-9 * x
    ]
    slope = statistics.median(slopes) if slopes else 0.0
    if slope <= 0:
        return statistics.median(y / x for x, y in points), 0.0
    return slope, statistics.median(y - slope * x for x, y in points)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return statistics.correlation(a, b)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def calibration_networks(space: RankSpace, count: int, seed: int) -> list[RankVector]:
    """Different rank vectors that spread over the space: dense, all layers at their lowest rungs, random ones between.

    Each random one has a height of its own, about which its layers' rungs are drawn: drawn evenly, sums over many
    layers would all be alike, and no slope could be seen.

    Args:
        count: how many at most; fewer where the space has fewer.
    """
    drawn = random.Random(seed)
    found = dict.fromkeys([space.dense, space.smallest])
    for attempt in range(20 * count):
        if len(found) >= count:
            break
        height = (attempt % count + drawn.random()) / count
        rungs = [
            1 + round(min(1.0, max(0.0, height + drawn.uniform(-0.5, 0.5))) * layer.useful) for layer in space.layers
        ]
        found.setdefault(space.at(rungs))
    return list(found)[:count]
