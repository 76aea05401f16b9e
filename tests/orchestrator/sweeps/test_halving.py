"""Asynchronous successive halving: who goes on, that groups are apart, and that asking twice changes nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweeps.halving import Halving

values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_rungs_are_powers() -> None:
    assert [epoch for epoch in range(1, 40) if Halving(2, 3).is_rung(epoch)] == [2, 6, 18]
    assert [epoch for epoch in range(1, 40) if Halving(1, 4).is_rung(epoch)] == [1, 4, 16]


def test_between_rungs_everybody_goes_on() -> None:
    rule = Halving(2, 2)
    assert all(rule.goes_on("g", str(number), 3, -float(number)) for number in range(9))


@given(values, st.integers(2, 4))
def test_one_in_so_many_goes_on_and_the_best_always_does(reached: list[float], factor: int) -> None:
    rule = Halving(1, factor)
    for number, value in enumerate(reached):
        went_on = rule.goes_on("g", str(number), 1, value)
        better = sum(other > value for other in reached[:number])
        assert went_on == (better < math.ceil((number + 1) / factor))


@given(values)
def test_what_was_recorded_may_be_told_again(reached: list[float]) -> None:
    once, twice = Halving(1, 3), Halving(1, 3)
    for number, value in enumerate(reached):
        once.goes_on("g", str(number), 1, value)
        for _ in range(2):
            twice.goes_on("g", str(number), 1, value)
    assert once.goes_on("g", "new", 1, 0.5) == twice.goes_on("g", "new", 1, 0.5)


@pytest.mark.parametrize("value", [math.nan, 0.1])
def test_groups_are_apart_and_nan_is_worst(value: float) -> None:
    rule = Halving(1, 2)
    assert rule.goes_on(("lc", "macs 0.5"), "a", 1, 0.9)
    assert not rule.goes_on(("lc", "macs 0.5"), "b", 1, value)
    assert rule.goes_on(("lc", "macs 0.7"), "c", 1, 0.1)
