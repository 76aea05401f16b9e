"""Ladders: of a layer's many ranks those worth offering: no cheaper one errs less, or no higher one is as fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from search_spaces.error_curves import ErrorCurve
from search_spaces.latency import LatencyCost, Timing
from search_spaces.rank_space import LayerRanks, Rank, RankSpace, number

__all__ = ["Frontier", "with_ladders", "with_latency_ladders"]


@dataclass(frozen=True)
class Frontier:
    """Which ranks make a ladder.

    Attributes:
        curves: one per layer of the space, all by one measure.
        most_slices: ranks of more slices are left out; None offers all.
    """

    curves: Sequence[ErrorCurve]
    most_slices: int | None = None


def with_ladders(space: RankSpace, frontiers: Sequence[Frontier], cost: str) -> RankSpace:
    """The space in which a layer whose ranks are no plain numbers offers what is on one of the frontiers.

    A rank is on a frontier if all others that cost no more err more (of ranks alike in both, the first stays); one
    whose error is infinite or undefined is on none. Frontiers are taken together, from cheap to dear: along a ladder
    that several make, no single one of their errors need fall. A layer that keeps no rank stays dense.

    Args:
        cost: by which ranks compare, the budget's first.
    """
    layers = []
    for index, layer in enumerate(space.layers):
        if layer.ladder is None or any(isinstance(rank, int) for rank in layer.ladder):
            layers.append(layer)
            continue
        kept: set[Rank] = set()
        for frontier in frontiers:
            kept |= _frontier(space, index, frontier, cost)
        layers.append(_laddered(layer, kept))
    return replace(space, layers=tuple(layers))


def _frontier(space: RankSpace, index: int, frontier: Frontier, cost: str) -> set[Rank]:
    of = space.costs[cost].of
    curve = frontier.curves[index]
    errors = dict(zip(curve.ranks, curve.errors, strict=True))
    most = math.inf if frontier.most_slices is None else frontier.most_slices
    offered = [rank for rank in space.layers[index].offered if _slices(rank) <= most and math.isfinite(errors[rank])]
    kept: set[Rank] = set()
    least = math.inf
    for rank in sorted(offered, key=lambda rank: (of(index, rank), errors[rank])):
        if errors[rank] < least:
            kept.add(rank)
            least = errors[rank]
    return kept


def _laddered(layer: LayerRanks, kept: set[Rank]) -> LayerRanks:
    ladder = tuple(rank for rank in layer.offered if rank in kept)
    return replace(layer, full=len(ladder), useful=len(ladder), ladder=ladder)


def _slices(rank: Rank) -> int:
    return 1 if isinstance(rank, int) else rank[0]


def with_latency_ladders(
    space: RankSpace, latencies: Sequence[LatencyCost], curves: Sequence[ErrorCurve] | None = None
) -> RankSpace:
    """The space in which a layer offers the ranks just below each jump of a device's latency, and the dense layer.

    A rank stays if it is faster, beyond what the measurements leave open, than every higher rank that stays, the dense
    layer first: looked at from the highest down, so that a gentle slope is thinned and not lost. Of several devices
    each keeps its own. A rank that was not measured on all of them is not offered; one rung above the ladder is dense.

    Args:
        latencies: one per device; they become costs of the space.
        curves: one per layer, needed where ranks are no numbers: the one that errs less is the higher one.
    """
    layers = []
    for index, layer in enumerate(space.layers):
        offered = [rank for rank in layer.offered if all(rank in one.timings[index] for one in latencies)]
        height = _height(None if curves is None else curves[index])
        kept = {rank for one in latencies for rank in _fast(offered, one.timings[index], height)}
        ladder = tuple(sorted(kept, key=height))
        layers.append(replace(layer, full=len(ladder) + 1, useful=len(ladder), ladder=ladder))
    return replace(space, layers=tuple(layers), costs={**space.costs, **{one.name: one for one in latencies}})


def _height(curve: ErrorCurve | None) -> Callable[[Rank], float]:
    """What makes one rank higher than another."""
    if curve is None:
        return lambda rank: float(number(rank))
    errors = dict(zip(curve.ranks, curve.errors, strict=True))
    return lambda rank: float(rank) if isinstance(rank, int) else -errors[rank]


def _fast(
    offered: Sequence[Rank], timings: Mapping[Rank | None, Timing], height: Callable[[Rank], float]
) -> list[Rank]:
    """The ranks that stay for one device."""
    kept: list[Rank] = []
    last = timings[None]
    for rank in sorted(offered, key=height, reverse=True):
        # All that stay are faster one by one, so the last one stands for all.
        if timings[rank].high_ms < last.low_ms:
            kept.append(rank)
            last = timings[rank]
    return kept
