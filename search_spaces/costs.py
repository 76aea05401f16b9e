"""The static costs: parameters, multiply-accumulates and activation volume, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter, lt

from search_spaces.layers import Layer, Stage
from search_spaces.rank_space import Cost, LayerRanks, Rank, RankSpace
from search_spaces.schemes.contract import Scheme
from search_spaces.survey import LeftOut, Survey

__all__ = ["COST_NAMES", "ShapeCost", "rank_space"]

_Measure = Callable[[Layer, Sequence[Stage]], int]
_MEASURES: dict[str, _Measure] = {"parameters": Layer.parameters, "macs": Layer.macs, "volume": Layer.volume}

COST_NAMES = tuple(_MEASURES)
"""Names of the costs that shapes alone give."""


class ShapeCost:
    """One static cost of every layer at every rank; computed when asked for and remembered.

    Args:
        name: one of `COST_NAMES`.
        layers, schemes: aligned, one scheme per layer.
        left_out: convolutions and linear layers outside the space; their cost is `elsewhere`.
    """

    def __init__(
        self, name: str, layers: Sequence[Layer], schemes: Sequence[Scheme], left_out: Sequence[LeftOut] = ()
    ) -> None:
        self.name = name
        measure = _MEASURES[name]
        self.elsewhere: float = sum(
            measure(Layer(one.name, one.stage, False, one.calls), (one.stage,))
            for one in left_out
            if one.stage is not None
        )

        self._measure, self._layers, self._schemes = measure, tuple(layers), tuple(schemes)
        # A dictionary and not functools.cache: spaces are sent to other processes.
        self._known: dict[tuple[int, Rank | None], int] = {}

    def of(self, layer: int, rank: Rank | None) -> int:
        """Cost of the layer with this index at one rank; `None` is dense."""
        known = self._known.get((layer, rank))
        if known is None:
            shape, scheme = self._layers[layer], self._schemes[layer]
            stages = (shape.dense,) if rank is None else scheme.stages(shape, rank)
            known = self._known[layer, rank] = self._measure(shape, stages)
        return known


def rank_space(found: Survey, schemes: Sequence[Scheme], *, binding: Sequence[str] = ("parameters",)) -> RankSpace:
    """The rank space of a surveyed model.

    Args:
        schemes: one per layer.
        binding: the costs that decide whether a rank shrinks a layer: those of the budget. A rank is useful if
            it lowers all of them; eq. 3.1's dense fallback when it is parameters alone.
    """
    costs: dict[str, Cost] = {name: ShapeCost(name, found.layers, schemes, found.left_out) for name in COST_NAMES}
    counted = [costs[name] for name in binding if name in costs]
    layers = tuple(
        _layer_ranks(layer.name, index, scheme.ranks(layer), counted)
        for index, (layer, scheme) in enumerate(zip(found.layers, schemes, strict=True))
    )
    return RankSpace(layers, costs)


def _layer_ranks(name: str, index: int, ranks: Sequence[Rank], costs: Sequence[Cost]) -> LayerRanks:
    """Numbers are a ladder as they are; other ranks become one by what they cost."""
    if isinstance(ranks, range):
        return LayerRanks(name, len(ranks), _largest_useful(index, len(ranks), costs))
    dense = [cost.of(index, None) for cost in costs]
    taken = [([cost.of(index, rank) for cost in costs], rank) for rank in ranks]
    shrinking = [pair for pair in taken if all(map(lt, pair[0], dense))]
    ladder = tuple(rank for _, rank in sorted(shrinking, key=itemgetter(0)))
    return LayerRanks(name, len(ladder), len(ladder), ladder)


def _largest_useful(index: int, full: int, costs: Sequence[Cost]) -> int:
    """The largest rank below every cost's break-even, by bisection: static costs grow with the rank."""
    low, high = 0, full
    while low < high:
        rank = (low + high + 1) // 2
        if all(cost.of(index, rank) < cost.of(index, None) for cost in costs):
            low = rank
        else:
            high = rank - 1
    return low
