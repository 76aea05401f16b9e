"""Sums of block times: the median's interval has the coverage it promises, and no wider than it must be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from workers.timing.spread import CONFIDENCE, half_width, median_interval, percentile, spread

times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


def _rank(n: int) -> int:
    """k of the interval (x_(k), x_(n-k+1)) of n distinct values; 0 where there is none."""
    low, high = median_interval([float(value) for value in range(1, n + 1)])
    return 0 if math.isinf(high) else int(low)


class TestMedianInterval:
    """x_(k) to x_(n-k+1)."""

    @pytest.mark.parametrize("n", range(1, 200))
    def test_is_the_narrowest_with_the_confidence_by_the_binomial_distribution(self, n: int) -> None:
        def coverage(k: int) -> float:
            return 1.0 - 2.0 * float(scipy.stats.binom.cdf(k - 1, n, 0.5))

        k = _rank(n)
        assert coverage(k) >= CONFIDENCE
        if k < n // 2:
            assert coverage(k + 1) < CONFIDENCE

    @pytest.mark.parametrize("n", [6, 9, 11, 12])
    def test_covers_the_median_by_counting_every_way_that_values_fall_around_it(self, n: int) -> None:
        k = _rank(n)
        covered = sum(k <= sum(below) <= n - k for below in itertools.product((0, 1), repeat=n))
        assert covered / 2**n >= CONFIDENCE

    @pytest.mark.parametrize("n", [1, 5])
    def test_of_too_few_values_is_everything(self, n: int) -> None:
        assert median_interval([1.0] * n) == (0.0, math.inf)

    def test_of_nine_is_the_second_and_the_eighth(self) -> None:
        assert median_interval([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]) == (2.0, 8.0)

    @given(times)
    def test_holds_the_median_of_the_sample(self, values: list[float]) -> None:
        low, high = median_interval(values)
        assert low <= float(np.median(values)) <= high


@given(times, st.floats(0.0, 1.0))
def test_percentiles_are_numpy_s(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, 100 * share)), rel=1e-9)


@given(times)
def test_a_spread_is_ordered(values: list[float]) -> None:
    found = spread(values, rejected=3, calls=7, clock="cpu")
    assert found.min_ms <= found.p10_ms <= found.median_ms <= found.p90_ms <= max(values)
    assert (found.blocks, found.rejected, found.calls, found.clock) == (len(values), 3, 7, "cpu")


def test_half_width_is_relative_to_the_median() -> None:
    assert half_width(spread([10.0] * 4 + [10.4] * 3 + [11.0] * 4, rejected=0, calls=1)) == pytest.approx(0.5 / 10.4)
