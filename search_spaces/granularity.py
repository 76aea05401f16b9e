"""A device's own step: the ranks just below each jump of its latency, found by a short sweep of one layer.

Vector units and tiles make latency a staircase in the rank: on a CPU with AVX-512 ranks 81 to 96 cost the same. Only
multiples of the step are then worth measuring and offering.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.latency import Timing
from search_spaces.rank_space import Rank

__all__ = ["STEPS", "rank_step", "ranks_to_measure", "sweep_ranks"]

STEPS = (4, 8, 16, 32, 64)
"""Steps that are looked for."""

SWEEP_STRIDE, SWEEP_COUNT, _SWEEP_TOP = 4, 17, 128

_NOISE = 0.005
"""Share of the time below which differences are no structure, whatever the intervals say."""

_LEAST = 6
"""Ranks without which a sweep tells nothing."""

_SPIKE = 0.2
"""Share by which a lone point must be off both neighbours to be left out."""

_STRONGLY = 6.0
"""Difference in BIC that counts as strong evidence (Kass and Raftery 1995)."""


def sweep_ranks(useful: int) -> list[int]:
    """The ranks of one layer that a sweep times: every fourth up to the layer's highest useful one, at most 17.

    64 to 128, where the layer is large enough: steps up to 32 stand out twice there.
    """
    top = min(useful, _SWEEP_TOP) // SWEEP_STRIDE * SWEEP_STRIDE
    return list(range(top, 0, -SWEEP_STRIDE))[:SWEEP_COUNT][::-1]


def rank_step(ranks: Sequence[int], timings: Sequence[Timing]) -> int:
    """The device's rank step by a sweep; 1 where latency is no staircase, or where the sweep cannot tell.

    Each step g is a model of three numbers, y = a + b g ceil(r / g) + c r with b > 0: as if ranks were padded to a
    multiple of g, and a slope within steps. It is taken if the Bayesian information criterion strongly prefers it to
    the straight line; of several, the one that fits best.

    Args:
        ranks: rising; `timings` aligned.
    """
    times = np.array([one.ms for one in timings], dtype=np.float64)
    kept = _without_spikes(times)
    times, at = times[kept], np.array(ranks, dtype=np.float64)[kept]
    if len(times) < _LEAST:
        return 1
    spread = statistics.median((one.high_ms - one.low_ms) / 4 for one in timings)  # 95 % intervals: 4 sigma wide
    floor = max(_NOISE * float(np.median(times)), spread) ** 2
    line = np.column_stack([np.ones_like(at), at])
    best, least = 1, _fit(times, line, floor)[0] - _STRONGLY
    for step in STEPS:
        padded = step * np.ceil(at / step)
        sizes = np.unique(padded, return_counts=True)[1]
        if len(sizes) < 3 or (sizes >= 2).sum() < 2:
            continue
        value, weights = _fit(times, np.column_stack([line, padded]), floor)
        if weights[-1] > 0 and value < least:
            best, least = step, value
    return best


def _without_spikes(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Marks all but lone points far off both neighbours: no step is one, and a fit by squares would bend to them."""
    kept = np.ones(len(times), dtype=bool)
    if len(times) > 2:
        middle = np.median([times[:-2], times[1:-1], times[2:]], axis=0)
        kept[1:-1] = np.abs(times[1:-1] - middle) <= _SPIKE * middle
    return kept


def _fit(times: NDArray[np.float64], features: NDArray[np.float64], floor: float) -> tuple[float, NDArray[np.float64]]:
    """BIC (smaller is better) of a least-squares fit whose noise is at least `floor`, a variance; and its weights."""
    weights = np.asarray(np.linalg.lstsq(features, times, rcond=None)[0], dtype=np.float64)
    variance = float(np.mean(np.square(times - features @ weights))) + floor
    count = len(times)
    return count * math.log(variance) + features.shape[1] * math.log(count), weights


def ranks_to_measure(offered: Sequence[Rank], step: int, most: int) -> list[Rank]:
    """Of a layer's ranks those worth timing on a device: multiples of its step, and the highest one.

    Of sliced ranks k x j it is the product, the channels between the stages, that counts; where no product is a
    multiple, all are. What is too many is thinned evenly: numbers to multiples of a multiple of the step.

    Args:
        offered: from the lowest rung up.
        most: ranks at most, at least 2.
    """
    if not offered:
        return []
    whole = [rank for rank in offered if _channels(rank) % step == 0] or list(offered)
    if isinstance(offered[0], int) and len(whole) > most - 1:
        grid = step if step > 1 else SWEEP_STRIDE
        wide = next(
            n * grid for n in range(1, _channels(offered[-1]) + 1) if _channels(offered[-1]) // (n * grid) < most
        )
        whole = [rank for rank in offered if _channels(rank) % wide == 0]
    elif len(whole) > most - 1:
        whole = [whole[round(place * (len(whole) - 1) / max(1, most - 2))] for place in range(most - 1)]
    return list(dict.fromkeys([*whole, offered[-1]]))


def _channels(rank: Rank) -> int:
    return rank if isinstance(rank, int) else math.prod(rank)
