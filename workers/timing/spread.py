"""What a sample of block times says: its median, how sure that is, and how wide it spreads. Pure Python.

The confidence interval of the median is by order statistics: for independent draws from any continuous distribution,
x_(k) <= median <= x_(n-k+1) with probability 1 - 2 P(B <= k - 1), B ~ Binomial(n, 1/2). Nothing is assumed of the
distribution's shape, which for times is skewed and often has two modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from workers.timing.contract import Clock, Spread

__all__ = ["CONFIDENCE", "half_width", "median_interval", "percentile", "spread"]

CONFIDENCE = 0.95
"""Of the interval of the median."""


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The narrowest symmetric order-statistic interval that holds the median with at least this confidence.

    Returns:
        `(0, inf)` where there are too few values for any: below 6 at 95 %.
    """
    ordered, n = sorted(values), len(values)
    outside = 0.0  # P(B <= k - 1), one side
    k = 0
    while k < n // 2:
        outside += math.comb(n, k) * 0.5**n
        if 1.0 - 2.0 * outside < confidence:
            break
        k += 1
    return (ordered[k - 1], ordered[n - k]) if k else (0.0, math.inf)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies, 0 to 1; linear between neighbours, as numpy's default."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values_ms: Sequence[float], *, rejected: int, calls: int, clock: Clock = "wall") -> Spread:
    """Sums up blocks.

    Args:
        values_ms: time per call of every block that was kept; at least one.
        rejected: blocks that were not.
        calls: per block.
        clock: what the times are of.
    """
    low, high = median_interval(values_ms)
    return Spread(
        median_ms=median(values_ms),
        low_ms=low,
        high_ms=high,
        p10_ms=percentile(values_ms, 0.1),
        p90_ms=percentile(values_ms, 0.9),
        min_ms=min(values_ms),
        blocks=len(values_ms),
        rejected=rejected,
        calls=calls,
        clock=clock,
    )


def half_width(found: Spread) -> float:
    """Half the confidence interval, relative to the median."""
    return (found.high_ms - found.low_ms) / 2.0 / found.median_ms
