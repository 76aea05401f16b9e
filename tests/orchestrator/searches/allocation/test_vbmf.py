"""Variational Bayes' ranks, scaled by one factor to a budget."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.empirical_bayes import noise_rank
from orchestrator.searches.allocation.options import LayerOptions
from orchestrator.searches.allocation.vbmf import vbmf
from search_spaces.errors import ConfigError, InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import choice_of, cost_of, layer, within


def _spectrum(rank: int, shape: tuple[int, int]) -> np.ndarray:
    generator = np.random.default_rng(rank)
    low = generator.standard_normal((shape[0], rank)) @ generator.standard_normal((rank, shape[1]))
    return np.linalg.svd(low + 0.3 * generator.standard_normal(shape), compute_uv=False)


def _layer(name: str, vb_rank: int, shape: tuple[int, int], step: int) -> LayerOptions:
    """A plain factorisation of an m x n matrix, offered at multiples of a step."""
    m, n = shape
    spectrum = _spectrum(vb_rank, shape)
    ranks = range(step, m * n // (m + n), step)
    errors = [float(spectrum[rank] / spectrum[0]) for rank in ranks]
    costs = [*(rank * (m + n) for rank in ranks), m * n]
    macs = [*(rank * (m + 2 * n) for rank in ranks), 2 * m * n]
    return layer(name, errors, spectrum, shape, ranks, parameters=costs, macs=macs)


def _at(options, ranks, rho: Fraction):
    choice = []
    for one in options:
        rounded = math.floor(rho * ranks[one.name])
        offered = one.ranks[:-1]
        below = [index for index, rank in enumerate(offered) if rank <= rounded]
        choice.append(len(offered) if not offered or rounded > offered[-1] else below[-1] if below else 0)
    return choice


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([(16, 24), (20, 20), (12, 40)]), st.integers(1, 4)),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.floats(0.1, 1), min_size=1, max_size=2),
)
def test_the_largest_multiple_that_fits(layers, keeps):
    options = [_layer(f"layer{index}", *one) for index, one in enumerate(layers)]
    capacities = {
        cost: keep * cost_of(options, [-1] * len(options), cost)
        for cost, keep in zip(("parameters", "macs"), keeps, strict=False)
    }
    ranks = {one.name: noise_rank(one.singular_values, one.matrix_shape) for one in options}
    rhos = {Fraction(rank, ranks[one.name]) for one in options for rank in range(1, 25)}
    choices = [_at(options, ranks, rho) for rho in [*sorted(rhos, reverse=True), Fraction(0)]]
    expected = next((choice for choice in choices if within(options, choice, capacities)), None)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            vbmf(options, capacities)
        return
    allocation = vbmf(options, capacities)
    assert choice_of(options, allocation) == expected
    assert allocation.note["ranks"] == ranks
    assert allocation == vbmf(options, capacities)


def test_sliced_ranks_within_what_the_plain_rank_would_cost():
    shape = (16, 24)
    spectrum = _spectrum(3, shape)
    # Rank r of the whole 16 x 24 matrix costs 40 r parameters; (2, j) costs j (2 * 16 + 24) = 56 j.
    options = [
        layer(
            "a",
            [0.6, 0.5, 0.4, 0.3],
            spectrum,
            shape,
            [(1, 2), (2, 2), (1, 4), (2, 4)],
            parameters=[80, 112, 160, 224, 384],
        )
    ]
    for most, rank in ((80, (1, 2)), (119, (2, 2)), (120, (2, 2)), (160, (1, 4)), (240, (2, 4)), (384, None)):
        assert vbmf(options, {"parameters": float(most)}).ranks == (rank,)
    assert vbmf(options, {"parameters": 120.0}).note == {"ranks": {"a": 3}, "scale": pytest.approx(1.0)}


def test_a_layer_without_singular_values_is_said_so():
    with pytest.raises(ConfigError, match=r"search\.scheme: variational Bayes needs the singular values .* conv2 has"):
        vbmf([_layer("conv1", 2, (16, 24), 1), layer("conv2", [0.5], parameters=[2, 4])], {"parameters": 200.0})
