"""Ladders: of a layer's many ranks those worth offering, because no cheaper one errs less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from search_spaces.error_curves import ErrorCurve
from search_spaces.rank_space import LayerRanks, Rank, RankSpace

__all__ = ["Frontier", "with_ladders"]


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
        if layer.ladder is None:
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
