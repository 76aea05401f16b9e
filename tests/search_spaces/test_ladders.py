"""Ladders against their definition: a rank stays unless another one that costs no more errs no more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.error_curves import ErrorCurve
from search_spaces.ladders import Frontier, with_ladders
from search_spaces.rank_space import LayerRanks, Rank, RankSpace

SLICED: tuple[Rank, ...] = tuple((k, j) for k in (1, 2, 4) for j in (1, 2, 3))


@dataclass(frozen=True)
class TableCost:
    """A cost by hand: a table for each layer."""

    name: str
    tables: Sequence[Mapping[Rank | None, float]]
    elsewhere: float = 0.0

    def of(self, layer: int, rank: Rank | None) -> float:
        return self.tables[layer][rank]


def space_of(costs: Sequence[Sequence[float]], dense: float = 100.0) -> RankSpace:
    """Layers of the sliced ranks at these costs, ordered as `rank_space` orders them."""
    tables = [dict(zip(SLICED, layer, strict=True)) for layer in costs]
    layers = [
        LayerRanks(f"layer{index}", 9, 9, tuple(sorted(SLICED, key=lambda rank: table[rank])))
        for index, table in enumerate(tables)
    ]
    return RankSpace(tuple(layers), {"parameters": TableCost("parameters", [{**one, None: dense} for one in tables])})


def frontier(space: RankSpace, errors: Sequence[Sequence[float]], most_slices: int | None = None) -> Frontier:
    return Frontier([ErrorCurve(SLICED, one) for one in errors], most_slices)


def by_definition(space: RankSpace, index: int, one: Frontier) -> set[Rank]:
    """Ranks that no other one beats, ladder order deciding between ranks alike in cost and error."""
    curve = one.curves[index]
    error = dict(zip(curve.ranks, curve.errors, strict=True))
    offered = [
        rank
        for rank in space.layers[index].offered
        if math.isfinite(error[rank]) and (one.most_slices is None or rank[0] <= one.most_slices)  # type: ignore[index]
    ]
    at = {rank: (space.costs["parameters"].of(index, rank), error[rank]) for rank in offered}
    return {
        rank
        for place, rank in enumerate(offered)
        if not any(
            at[other][0] <= at[rank][0]
            and at[other][1] <= at[rank][1]
            and (at[other] != at[rank] or offered.index(other) < place)
            for other in offered
            if other != rank
        )
    }


COSTS = st.lists(st.integers(1, 6).map(float), min_size=9, max_size=9)
ERRORS = st.lists(
    st.one_of(st.integers(0, 4).map(lambda quarter: quarter / 4), st.sampled_from([math.nan, math.inf])),
    min_size=9,
    max_size=9,
)


@given(
    costs=st.lists(COSTS, min_size=2, max_size=2),
    errors=st.lists(st.tuples(ERRORS, ERRORS), min_size=1, max_size=3),
    limits=st.lists(st.sampled_from([None, 1, 2, 3]), min_size=3, max_size=3),
)
def test_a_rank_stays_unless_another_costs_and_errs_no_more(
    costs: list[list[float]], errors: list[tuple[list[float], ...]], limits: list[int | None]
) -> None:
    space = space_of(costs)
    frontiers = [frontier(space, one, limit) for one, limit in zip(errors, limits, strict=False)]
    laddered = with_ladders(space, frontiers, "parameters")
    for index, layer in enumerate(laddered.layers):
        expected = set().union(*(by_definition(space, index, one) for one in frontiers))
        assert layer.ladder is not None
        assert set(layer.ladder) == expected
        assert len(layer.ladder) == len(expected) == layer.full == layer.useful
        prices = [space.costs["parameters"].of(index, rank) for rank in layer.ladder]
        assert prices == sorted(prices)


@given(costs=st.lists(COSTS, min_size=1, max_size=1), errors=ERRORS)
def test_along_the_ladder_of_one_frontier_cost_rises_and_the_error_falls(
    costs: list[list[float]], errors: list[float]
) -> None:
    space = space_of(costs)
    ladder = with_ladders(space, [frontier(space, [errors])], "parameters").layers[0].ladder or ()
    error = dict(zip(SLICED, errors, strict=True))
    for lower, higher in itertools.pairwise(ladder):
        assert space.costs["parameters"].of(0, lower) < space.costs["parameters"].of(0, higher)
        assert error[lower] > error[higher]


def test_ranks_compare_by_the_cost_that_is_named() -> None:
    tables = [dict(zip(SLICED, map(float, order), strict=True)) for order in (range(1, 10), range(9, 0, -1))]
    costs = {name: TableCost(name, [{**table, None: 99.0}]) for name, table in zip("ab", tables, strict=True)}
    space = RankSpace((LayerRanks("layer", 9, 9, SLICED),), costs)
    same = Frontier([ErrorCurve(SLICED, [0.5] * 9)])
    assert with_ladders(space, [same], "a").layers[0].ladder == (SLICED[0],)
    assert with_ladders(space, [same], "b").layers[0].ladder == (SLICED[-1],)


def test_plain_numbers_are_left_as_they_are() -> None:
    plain = LayerRanks("plain", 9, 4)
    cost = TableCost("parameters", [{rank: float(rank) for rank in range(1, 10)} | {None: 5.0}])  # type: ignore[operator]
    space = RankSpace((plain,), {"parameters": cost})
    curve = ErrorCurve(range(1, 10), [math.nan] * 9)
    assert with_ladders(space, [Frontier([curve], 1)], "parameters").layers == (plain,)


@pytest.mark.parametrize("errors", [[math.nan] * 9, [math.inf] * 9])
def test_a_layer_without_any_finite_error_stays_dense(errors: list[float]) -> None:
    space = space_of([[1.0] * 9])
    layer = with_ladders(space, [frontier(space, [errors])], "parameters").layers[0]
    assert (layer.full, layer.useful, tuple(layer.offered), layer.at(1)) == (0, 0, (), None)


def test_costs_and_the_dense_network_are_those_of_the_space() -> None:
    space = space_of([[float(cost) for cost in range(1, 10)]])
    laddered = with_ladders(space, [frontier(space, [[1 - one / 10 for one in range(9)]])], "parameters")
    assert laddered.costs is space.costs
    assert laddered.dense_cost == space.dense_cost == {"parameters": 100.0}
