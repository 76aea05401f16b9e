"""Limits: what may be spent, agreeing with the budget to the last bit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.capacities import capacity, dense_total, fits, prices, total
from search_spaces.budgets import Budget
from search_spaces.rank_space import LayerRanks, RankSpace
from tests.orchestrator.searches.allocation.small_spaces import layer


class TableCost:
    """A cost by table."""

    name = "parameters"
    elsewhere = 0.0

    def __init__(self, table):
        self.table = table

    def of(self, layer, rank):
        return self.table[layer][-1 if rank is None else rank - 1]


def _space(table):
    layers = tuple(LayerRanks(str(index), len(row) - 1, len(row) - 1) for index, row in enumerate(table))
    return RankSpace(layers, {"parameters": TableCost(table)})


@given(st.lists(st.lists(st.integers(1, 10**6), min_size=2, max_size=4), min_size=1, max_size=3), st.data())
def test_within_the_capacity_exactly_if_the_budget_is_met(table, data):
    space = _space([sorted(row) for row in table])
    vectors = list(itertools.product(*((*range(1, one.full + 1), None) for one in space.layers)))
    target = data.draw(
        st.one_of(st.floats(0.001, 0.999), st.sampled_from([space.compression("parameters", one) for one in vectors]))
    )
    budget = Budget((("parameters", target),))
    most = capacity(space, budget)["parameters"]
    for ranks in vectors:
        assert (space.cost("parameters", ranks) <= most) == (budget.gap(space, ranks) >= 0)


def test_the_tighter_of_two_limits_on_one_cost_counts():
    space = _space([[10, 100]])
    both = capacity(space, Budget((("parameters", 0.5), ("parameters", 0.7))))
    assert both == {"parameters": pytest.approx(30.0)}
    assert both == capacity(space, Budget((("parameters", 0.7), ("parameters", 0.5))))


def test_totals_and_prices():
    options = [layer("a", [0.5], parameters=[2, 4], macs=[30, 50]), layer("b", [], parameters=[3], macs=[10])]
    assert total(options, [0, 0], "parameters") == 5
    assert dense_total(options, "macs") == 60
    assert fits(options, [0, 0], {"parameters": 5.0, "macs": 40.0})
    assert not fits(options, [0, 0], {"parameters": 5.0, "macs": 39.0})
    assert [price.tolist() for price in prices(options, {"macs": 40.0})] == [[30, 50], [10]]
    both = prices(options, {"parameters": 4.0, "macs": 100.0})
    assert [price.tolist() for price in both] == [[0.8, 1.5], [0.85]]
