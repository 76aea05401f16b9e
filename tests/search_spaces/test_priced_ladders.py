"""Ladders of ranks against a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.budgets import Budget
from search_spaces.priced_ladders import PricedLadders
from search_spaces.rank_space import LayerRanks, RankSpace


class Squares:
    """Rank r of layer n costs (n + 1) r^2, the dense layer 100."""

    name, elsewhere = "squares", 5.0

    def of(self, layer, rank):
        return 100 if rank is None else (layer + 1) * rank**2


LAYERS = tuple(LayerRanks(name, 8, 6) for name in "ab")
PRICE = PricedLadders(
    RankSpace(LAYERS, {"squares": Squares()}), Budget((("squares", 0.75),)), ((1, 3, None), (2, 4, 6, None))
)


def test_levels_are_entries_of_the_ladders():
    assert PRICE.ranks((1, 3)) == (3, None)
    assert PRICE.used((0, 0)) == ((1 + 8) / 50,)  # a quarter of 200; what lies elsewhere is no part of C(r)


@given(st.tuples(st.integers(0, 2), st.integers(0, 3)), st.integers(0, 2))
def test_one_change_costs_its_difference(levels, level):
    after = PRICE.used_after(levels, PRICE.used(levels), 0, level)
    assert after == pytest.approx(PRICE.used((level, levels[1])))


class Slow:
    """A device that takes longer for layer a at ranks below 5 than for the dense one."""

    name, elsewhere = "slow", 0.0

    def of(self, layer, rank):
        return 10 if rank is None else 14 - rank if layer == 0 and rank < 5 else rank


def both(target):
    ladders = tuple((*layer.offered, None) for layer in LAYERS)
    space = RankSpace(LAYERS, {"squares": Squares(), "slow": Slow()})
    return PricedLadders(space, Budget((("squares", 0.3), ("slow", target))), ladders)


def test_filling_starts_where_every_device_is_fast_enough():
    price = both(0.6)
    assert max(price.used([0, 0])) > 1
    assert max(price.used(price.start())) <= 1


def test_it_starts_from_the_lowest_where_these_fit_or_nothing_does():
    assert both(0.2).start() == [0, 0]
    assert both(0.99).start() == [0, 0]
