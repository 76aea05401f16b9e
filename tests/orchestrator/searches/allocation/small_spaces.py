"""Spaces so small that every combination can be tried: what the allocations are held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

from orchestrator.searches.allocation.options import Allocation, LayerOptions
from search_spaces.errors import InfeasibleBudgetError

# Coarse grids, so that equal errors, equal costs and options that fit exactly are common.
_ERRORS = st.one_of(
    st.integers(0, 8).map(lambda eighth: eighth / 8), st.floats(0, 0.99), st.sampled_from([math.nan, math.inf])
)
_COSTS = st.one_of(st.integers(1, 12).map(float), st.floats(0.1, 12))


def layer(
    name: str,
    errors: Sequence[float],
    singular_values: Sequence[float] = (),
    matrix_shape: tuple[int, int] = (8, 8),
    ranks: Sequence[int | tuple[int, ...]] | None = None,
    **costs: Sequence[float],
) -> LayerOptions:
    """A layer by hand: errors of its ranks (1, 2, ... unless given), costs of these and of the dense layer."""
    given = tuple(range(1, len(errors) + 1)) if ranks is None else tuple(ranks)
    return LayerOptions(
        name,
        (*given, None),
        np.array([*errors, 0.0]),
        {cost: np.array(values, dtype=np.float64) for cost, values in costs.items()},
        np.array(singular_values, dtype=np.float64),
        matrix_shape,
    )


@st.composite
def spaces(draw: st.DrawFn, costs: int | None = None) -> list[LayerOptions]:
    """2 to 4 layers of 1 to 5 options, under one or two costs; some options are infinite or undefined."""
    names = ["parameters", "macs"][: costs or draw(st.integers(1, 2))]
    layers = []
    for index in range(draw(st.integers(2, 4))):
        count = draw(st.integers(0, 4))
        table = {name: draw(st.lists(_COSTS, min_size=count, max_size=count)) for name in names}
        dense = {name: float(draw(st.integers(6, 14))) for name in names}
        errors = draw(st.lists(_ERRORS, min_size=count, max_size=count))
        layers.append(layer(f"layer{index}", errors, **{name: [*table[name], dense[name]] for name in names}))
    return layers


@st.composite
def problems(draw: st.DrawFn, costs: int | None = None) -> tuple[list[LayerOptions], dict[str, float]]:
    """A space and its limits: anything from out of reach to the dense network, often met exactly by some choice."""
    options = draw(spaces(costs))
    capacities = {}
    for cost in options[0].costs:
        if draw(st.booleans()):
            picks = [draw(st.integers(0, len(one.ranks) - 1)) for one in options]
            capacities[cost] = cost_of(options, picks, cost)
        else:
            share = draw(st.floats(0.05, 1))
            capacities[cost] = share * cost_of(options, [-1] * len(options), cost)
    return options, capacities


def cost_of(options: Sequence[LayerOptions], choice: Sequence[int], cost: str) -> float:
    return sum(float(one.costs[cost][index]) for one, index in zip(options, choice, strict=True))


def within(options: Sequence[LayerOptions], choice: Sequence[int], capacities: Mapping[str, float]) -> bool:
    return all(cost_of(options, choice, cost) <= most for cost, most in capacities.items())


def every_choice(
    options: Sequence[LayerOptions], capacities: Mapping[str, float], values: Sequence[Sequence[float]] | None = None
) -> Iterator[tuple[int, ...]]:
    """Every choice within the limits among options of finite value (their error unless given)."""
    judged = [one.errors for one in options] if values is None else values
    finite = [[index for index, value in enumerate(layer) if math.isfinite(value)] for layer in judged]
    return (choice for choice in itertools.product(*finite) if within(options, choice, capacities))


def choice_of(options: Sequence[LayerOptions], allocation: Allocation) -> list[int]:
    """The options that an allocation means."""
    return [one.ranks.index(rank) for one, rank in zip(options, allocation.ranks, strict=True)]


def values_of(values: Sequence[Sequence[float]], choice: Sequence[int]) -> list[float]:
    return [float(layer[index]) for layer, index in zip(values, choice, strict=True)]


def errors_of(options: Sequence[LayerOptions], choice: Sequence[int]) -> list[float]:
    return values_of([one.errors for one in options], choice)


def price_of(one: LayerOptions, index: int, capacities: Mapping[str, float]) -> float:
    """The cost under one limit; the costs over their limits, summed, under several."""
    if len(capacities) == 1:
        return float(one.costs[next(iter(capacities))][index])
    return sum((float(one.costs[cost][index]) / most for cost, most in capacities.items()), 0.0)


def nothing_can_be_improved(
    options: Sequence[LayerOptions],
    choice: Sequence[int],
    capacities: Mapping[str, float],
    values: Sequence[Sequence[float]],
) -> bool:
    """Whether no layer alone has an option of smaller value that fits."""
    return not any(
        values[at][index] < values[at][choice[at]]
        and within(options, [*choice[:at], index, *choice[at + 1 :]], capacities)
        for at, one in enumerate(options)
        for index in range(len(one.ranks))
    )


def closest_of(options: Sequence[LayerOptions], cost: str) -> float:
    """The largest compression that options of finite error reach."""
    least = sum(min(c for c, e in zip(one.costs[cost], one.errors, strict=True) if math.isfinite(e)) for one in options)
    return 1 - least / cost_of(options, [-1] * len(options), cost)


def assert_says_the_closest(
    error: InfeasibleBudgetError, options: Sequence[LayerOptions], capacities: Mapping[str, float]
) -> None:
    """One limit out of reach is named with what can be reached; otherwise all that exclude each other are."""
    for cost, most in capacities.items():
        closest = closest_of(options, cost)
        dense = cost_of(options, [-1] * len(options), cost)
        if (1 - closest) * dense > most * (1 + 1e-12):
            assert error.key == f"search.budget.{cost}"
            assert error.closest == {cost: pytest.approx(closest)}
            assert f"{error.closest[cost]:.4f}" in str(error)
            return
    assert set(error.closest) <= set(capacities)
    assert all(cost in str(error) for cost in error.closest)
