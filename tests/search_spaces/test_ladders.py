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
from search_spaces.ladders import Frontier, with_ladders, with_latency_ladders
from search_spaces.latency import LatencyCost, Timing
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


def timing(ms: float, half_width: float = 0.0) -> Timing:
    return Timing(ms, ms - half_width, ms + half_width)


TIMES = st.tuples(st.integers(1, 30), st.integers(0, 3)).map(lambda pair: timing(pair[0], pair[1] / 2))


def stays(times: Mapping[Rank | None, Timing], ranks: Sequence[Rank]) -> set[Rank]:
    """By definition: certainly faster than the dense layer and every higher rank that stays."""
    kept: set[Rank] = set()
    for place in reversed(range(len(ranks))):
        above = [None, *(rank for rank in ranks[place + 1 :] if rank in kept)]
        if all(times[ranks[place]].high_ms < times[other].low_ms for other in above):
            kept.add(ranks[place])
    return kept


class TestLatencyLadders:
    @given(
        times=st.lists(st.tuples(st.lists(TIMES, min_size=6, max_size=6), TIMES), min_size=1, max_size=3),
        missing=st.sets(st.integers(1, 6), max_size=3),
    )
    def test_of_numbers_are_every_devices_own_frontier(
        self, times: list[tuple[list[Timing], Timing]], missing: set[int]
    ) -> None:
        tables = [{None: dense, **dict(enumerate(each, 1))} for each, dense in times]
        for rank in missing:
            del tables[0][rank]
        costs = [LatencyCost(f"latency@d{number}", (table,)) for number, table in enumerate(tables)]
        (found,) = with_latency_ladders(RankSpace((LayerRanks("layer", 9, 6),), {}), costs).layers
        offered = [rank for rank in range(1, 7) if rank not in missing]
        expected = set().union(*(stays(table, offered) for table in tables))
        assert found.offered == tuple(sorted(expected))
        assert [found.at(rung) for rung in range(1, found.full + 1)] == [*found.offered, None]

    @given(times=st.lists(TIMES, min_size=9, max_size=9), dense=TIMES, errors=st.permutations(range(9)))
    def test_of_slices_the_one_that_errs_less_is_the_higher_one(
        self, times: list[Timing], dense: Timing, errors: list[int]
    ) -> None:
        table = {None: dense, **dict(zip(SLICED, times, strict=True))}
        curve = ErrorCurve(SLICED, [float(error) for error in errors])
        cost = LatencyCost("latency@d", (table,))
        space = RankSpace((LayerRanks("layer", 9, 9, SLICED),), {})
        (found,) = with_latency_ladders(space, [cost], [curve]).layers
        by_error = [rank for _, rank in sorted(zip(errors, SLICED, strict=True), reverse=True)]
        expected = stays(table, by_error)
        assert found.offered == tuple(rank for rank in by_error if rank in expected)

    def test_of_a_staircase_are_the_ranks_just_below_each_jump(self) -> None:
        table = {None: timing(20.0), **{rank: timing(2.0 + math.ceil(rank / 16)) for rank in range(1, 101)}}
        space = RankSpace((LayerRanks("layer", 128, 100),), {})
        (found,) = with_latency_ladders(space, [LatencyCost("latency@d", (table,))]).layers
        assert found.offered == (16, 32, 48, 64, 80, 96, 100)

    def test_a_gentle_slope_is_thinned_and_not_lost(self) -> None:
        # Neighbours cannot be told apart, ranks further off can.
        table = {None: timing(400.0, 2.0), **{rank: timing(20.0 + rank, 2.0) for rank in range(1, 101)}}
        space = RankSpace((LayerRanks("layer", 128, 100),), {})
        (found,) = with_latency_ladders(space, [LatencyCost("latency@d", (table,))]).layers
        assert found.offered == tuple(range(5, 101, 5))

    def test_what_is_slower_than_dense_everywhere_leaves_the_layer_dense(self) -> None:
        table = {None: timing(1.0), **{rank: timing(1.5) for rank in range(1, 9)}}
        space = RankSpace((LayerRanks("layer", 8, 8),), {"macs": TableCost("macs", [{}])})
        made = with_latency_ladders(space, [LatencyCost("latency@d", (table,))])
        assert (made.layers[0].offered, made.smallest, set(made.costs)) == ((), (None,), {"macs", "latency@d"})


class TestSteps:
    """On a ladder of some numbers a step is counted in ranks."""

    LAYER = LayerRanks("layer", 5, 4, (16, 32, 48, 57))

    @pytest.mark.parametrize(
        ("rung", "step", "expected"),
        [
            (5, 1, 4),
            (5, 100, 4),
            (4, 1, 3),
            (4, 10, 2),
            (4, 25, 2),
            (4, 26, 1),
            (4, 100, 1),
            (3, 1, 2),
            (2, 3, 1),
            (1, 1, 1),
        ],
    )
    def test_lead_to_the_highest_rank_that_is_so_much_lower(self, rung: int, step: int, expected: int) -> None:
        assert self.LAYER.below(rung, step) == expected

    def test_are_rungs_everywhere_else(self) -> None:
        assert LayerRanks("layer", 9, 6).below(8, 3) == 5
        assert LayerRanks("layer", 3, 3, ((1, 1), (1, 2), (2, 2))).below(3, 5) == 1
