"""Filling a budget: never above it, in the order of worth, and close to it."""

from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.budget_filling import fill_budget


class Linear:
    """Level n of variable v costs n times its price, of a budget of 1."""

    def __init__(self, prices, base=0.0):
        self.prices, self.base = prices, base

    def used(self, levels):
        return (self.base + sum(p * level for p, level in zip(self.prices, levels, strict=True)),)

    def used_after(self, levels, used, variable, level):
        return (used[0] + self.prices[variable] * (level - levels[variable]),)


@given(
    st.lists(st.tuples(st.floats(0.001, 0.4), st.lists(st.floats(0, 1), max_size=6)), min_size=1, max_size=6),
    st.floats(0, 0.9),
)
@settings(deadline=None)
def test_it_never_exceeds_the_budget_and_leaves_no_room_for_a_single_unit(variables, base):
    price = Linear([one for one, _ in variables], base)
    worths = [worth for _, worth in variables]
    levels = fill_budget(worths, price)
    assert price.used(levels)[0] <= 1
    if price.used(levels)[0] < 0.99:
        for variable, level in enumerate(levels):
            if level < len(worths[variable]):
                more = [*levels[:variable], level + 1, *levels[variable + 1 :]]
                assert price.used(more)[0] > 1


def test_the_most_valuable_units_come_first():
    assert fill_budget([[0.9, 0.2], [0.8, 0.7], [0.1]], Linear([0.25, 0.25, 0.25], base=0.25)) == (1, 2, 0)


def test_a_unit_above_a_poor_one_waits_for_it():
    assert fill_budget([[0.1, 0.9], [0.5, 0.4]], Linear([0.5, 0.5])) == (0, 2)


def test_what_is_left_over_goes_to_the_exchange_that_comes_closest():
    prices = [0.3, 0.35, 0.5]  # in order 0.3 + 0.35; with the second given up for the third 0.8; 0.35 + 0.5 is closer
    levels = fill_budget([[0.9], [0.8], [0.1]], Linear(prices, base=0.15))
    assert levels == (0, 1, 1)


@given(st.lists(st.integers(1, 15), min_size=2, max_size=4), st.integers(60, 200))
@settings(deadline=None, max_examples=40)
def test_no_exchange_of_one_variable_for_another_comes_closer(prices, budget):
    price = Linear([one / budget for one in prices])
    levels = fill_budget([[0.5] * 5] * len(prices), price)
    used = price.used(levels)[0]
    if used >= 0.99:
        return
    for lowered, raised in permutations(range(len(prices)), 2):
        for down, up in product(range(levels[lowered] + 1), range(6 - levels[raised])):
            other = list(levels)
            other[lowered] -= down
            other[raised] += up
            assert not used + 1e-9 < price.used(other)[0] <= 1


def test_without_room_for_the_least_there_is_no_answer():
    assert fill_budget([[0.5]], Linear([0.1], base=1.1)) is None


def test_a_cost_that_falls_with_the_level_is_taken():
    class Falling(Linear):
        def used(self, levels):
            return (0.8 - 0.1 * levels[0] + 0.3 * levels[1],)

        def used_after(self, levels, used, variable, level):
            return self.used([*levels[:variable], level, *levels[variable + 1 :]])

    assert fill_budget([[0.9], [0.5]], Falling([0, 0]), tolerance=0.05) == (1, 1)


def test_beginning_elsewhere_only_adds():
    assert fill_budget([[0.1], [0.9]], Linear([0.5, 0.5]), start=[1, 0]) == (1, 1)


@pytest.mark.parametrize("tolerance", [0.0, 0.5])
def test_the_tolerance_decides_whether_worth_gives_way_to_closeness(tolerance):
    levels = fill_budget([[0.9], [0.1]], Linear([0.6, 0.7], base=0.2), tolerance)
    assert levels == ((0, 1) if tolerance == 0 else (1, 0))
