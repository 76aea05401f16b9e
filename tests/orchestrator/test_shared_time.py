"""Shared time: all of it is charged, none of it twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.shared_time import SharedTime

NAMES = ["a", "b", "c"]
STEPS = st.lists(
    st.tuples(st.floats(0, 1e4), st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1e3, allow_subnormal=False))),
    max_size=20,
)


class Clock:
    """Goes on when told to."""

    def __init__(self) -> None:
        self.now = 7.0

    def __call__(self) -> float:
        return self.now


@given(STEPS)
def test_the_parts_add_up_to_what_passed(steps: list[tuple[float, dict[str, float]]]) -> None:
    clock = Clock()
    shared = SharedTime(NAMES, clock)
    for passed, parts in steps:
        clock.now += passed
        shared.charge(parts)
    shared.charge({"a": 1.0})
    assert sum(map(shared.of, NAMES)) == pytest.approx(sum(passed for passed, _ in steps))


def test_each_is_charged_in_proportion_to_its_part() -> None:
    clock = Clock()
    shared = SharedTime(NAMES, clock)
    clock.now += 10
    shared.charge({"a": 3.0, "b": 1.0, "c": 0.0})
    assert [shared.of(name) for name in NAMES] == [7.5, 2.5, 0.0]


def test_what_nobody_is_charged_with_is_kept_for_the_next() -> None:
    clock = Clock()
    shared = SharedTime(NAMES, clock)
    clock.now += 4
    shared.charge({"a": 0.0})
    shared.charge({})
    clock.now += 6
    shared.charge({"c": 0.1})
    assert [shared.of(name) for name in NAMES] == [0.0, 0.0, pytest.approx(10.0)]
