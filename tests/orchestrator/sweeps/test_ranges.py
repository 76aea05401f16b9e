"""Search spaces inside settings: what they are, what they fill, and every way to write them wrongly."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sweeps.ranges import Choice, Number, filled, grid, ranges_in
from search_spaces.errors import ConfigError

SETTINGS = {"epochs": {"choice": [1, 2]}, "training": {"rate": {"loguniform": ["1e-4", 0.1]}, "momentum": 0.9}}


def test_ranges_are_found_in_blocks_and_filled_where_they_stand() -> None:
    ranges = ranges_in(SETTINGS, "here")
    assert ranges == {"epochs": Choice((1, 2)), "training.rate": Number("loguniform", 1e-4, 0.1)}
    values = {"epochs": 2, "training.rate": 0.01}
    assert filled(SETTINGS, values) == {"epochs": 2, "training": {"rate": 0.01, "momentum": 0.9}}


def test_a_grid_is_all_combinations_of_choices() -> None:
    ranges = {"a": Choice((1, 2)), "b": Choice(("x", None))}
    assert grid(ranges, "") == [{"a": a, "b": b} for a in (1, 2) for b in ("x", None)]
    assert grid({}, "") == [{}]
    with pytest.raises(ConfigError, match=r"^sweep\.methods\.lc\.rate: uniform has too many values for a grid"):
        grid({"rate": Number("uniform", 0, 1)}, "sweep.methods.lc")


@given(
    st.sampled_from(["uniform", "loguniform", "integer"]), st.integers(1, 50), st.integers(1, 50), st.integers(0, 99)
)
def test_what_optuna_suggests_lies_between_the_ends(kind: Any, low: int, width: int, seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = Number(kind, low, low + width).suggest(study.ask(), "x")
    assert low <= value <= low + width
    assert isinstance(value, int) == (kind == "integer")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"uniform": [1]}, r"rate\.uniform: needs its two ends in order"),
        ({"uniform": [2, 1]}, r"needs its two ends in order, as in \[0\.01, 0\.1\], not \[2, 1\]"),
        ({"uniform": ["a", 1]}, r"needs two numbers, not 'a'"),
        ({"uniform": [0, float("inf")]}, r"needs two numbers, not inf"),
        ({"uniform": 3}, r"needs a list"),
        ({"loguniform": [0, 1]}, r"must begin above 0"),
        ({"integer": [1.5, 3]}, r"needs whole numbers"),
        ({"choice": []}, r"needs a list"),
        ({"choice": [1, 1]}, r"holds a value twice"),
        ({"choice": [[1], [2]]}, r"holds something else than numbers"),
    ],
)
def test_what_is_no_range_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ranges_in({"rate": wrong}, "here")
