"""Rank vectors, their costs and compressions, on a space small enough to work out by hand."""

from __future__ import annotations

import pytest

from search_spaces.rank_space import LayerRanks, RankSpace


class TableCost:
    """A cost written out: one row per layer, the dense cost first, then those of ranks 1, 2, ..."""

    def __init__(self, name: str, table: list[list[int]], elsewhere: int = 0) -> None:
        self.name, self.table, self.elsewhere = name, table, elsewhere

    def of(self, layer: int, rank: int | None) -> int:
        return self.table[layer][rank or 0]


SPACE = RankSpace(
    # a: 4 x 4, so 8 a rank; b: 10 x 2, so 12 a rank; c: 1 x 5, which no rank shrinks.
    (LayerRanks("a", 4, 1), LayerRanks("b", 2, 1), LayerRanks("c", 1, 0)),
    {"parameters": TableCost("parameters", [[16, 8, 16, 24, 32], [20, 12, 24], [5, 6]], elsewhere=59)},
)


def test_dense_is_no_rank_at_all() -> None:
    assert SPACE.dense == (None, None, None)


def test_smallest_is_rank_one_where_that_shrinks_a_layer() -> None:
    assert SPACE.smallest == (1, 1, None)


@pytest.mark.parametrize(
    ("rungs", "ranks"),
    [((1, 1, 1), (1, 1, None)), ((2, 2, 9), (None, None, None)), ((4, 1, 1), (None, 1, None))],
)
def test_rungs_that_do_not_shrink_a_layer_are_dense(rungs: tuple, ranks: tuple) -> None:
    assert SPACE.at(rungs) == ranks


def test_a_ladder_gives_its_rungs_ranks() -> None:
    layer = LayerRanks("a", 3, 2, ((4, 1), (2, 1), (1, 2)))
    assert [layer.at(rung) for rung in (1, 2, 3)] == [(4, 1), (2, 1), None]
    assert list(layer.offered) == [(4, 1), (2, 1)]


def test_a_rank_vector_has_one_rank_per_layer() -> None:
    with pytest.raises(ValueError, match="argument 2 is"):
        SPACE.at((1, 1))


@pytest.mark.parametrize(
    ("ranks", "cost"), [((None, None, None), 41), ((1, None, None), 33), ((1, 1, None), 25), ((2, 1, None), 33)]
)
def test_cost_is_a_sum_over_layers(ranks: tuple, cost: int) -> None:
    assert SPACE.cost("parameters", ranks) == cost
    assert isinstance(SPACE.cost("parameters", ranks), int)
    assert SPACE.network_cost("parameters", ranks) == cost + 59
    assert SPACE.compression("parameters", ranks) == pytest.approx((41 - cost) / 41)


def test_what_lies_elsewhere_is_no_part_of_the_compression() -> None:
    assert SPACE.compression("parameters", (1, 1, None)) == pytest.approx(16 / 41)


def test_a_space_is_identified_by_its_layers() -> None:
    assert RankSpace(SPACE.layers, {}) == SPACE
    assert RankSpace(SPACE.layers[:2], {}) != SPACE


def test_the_cheapest_need_not_be_the_lowest_ranks() -> None:
    class Jagged:
        name, elsewhere = "latency@d", 0.0

        def of(self, layer: int, rank: int | None) -> float:
            return {None: 4.0, 1: 3.0, 2: 1.0, 3: 5.0}[rank]

    space = RankSpace((LayerRanks("a", 3, 3), LayerRanks("b", 3, 1), LayerRanks("c", 3, 0)), {"latency@d": Jagged()})
    assert space.cheapest("latency@d") == (2, 1, None)
    assert space.largest_step("latency@d") == 4.0 / 12.0
