"""The affine model of whole networks: exact on exact data, deaf to outliers, and honest about its error."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from search_spaces.calibration import Calibration, calibration_networks, spearman
from search_spaces.rank_space import LayerRanks, RankSpace

SUMS = st.lists(st.integers(10, 400).map(lambda tenth: tenth / 10), min_size=4, max_size=16, unique=True)


@given(sums=SUMS, slope=st.floats(0.2, 3), intercept=st.floats(0, 5))
def test_a_line_is_found_exactly(sums: list[float], slope: float, intercept: float) -> None:
    found = Calibration.fit(sums, [slope * x + intercept for x in sums])
    assert (found.slope, found.intercept_ms) == pytest.approx((slope, intercept), rel=1e-6, abs=1e-6)
    assert found.error_max == pytest.approx(0.0, abs=1e-6)
    assert (found.spearman, found.networks) == (pytest.approx(1.0), len(sums))


@given(seed=st.integers(0, 2**16), factor=st.floats(1.5, 5))
def test_two_wrong_measurements_of_twelve_do_no_harm(seed: int, factor: float) -> None:
    drawn = random.Random(seed)
    sums = [10.0 + 2 * place for place in range(12)]
    measured = [0.9 * x + 1.5 for x in sums]
    for place in drawn.sample(range(12), 2):
        measured[place] *= factor
    found = Calibration.fit(sums, measured)
    for x in sums:
        assert found.predict(x) == pytest.approx(0.9 * x + 1.5, rel=0.02)


@given(seed=st.integers(0, 2**16))
def test_the_error_is_that_on_networks_left_out(seed: int) -> None:
    drawn = random.Random(seed)
    sums = [drawn.uniform(5, 20) for _ in range(9)]
    measured = [1.2 * x + 2 + drawn.gauss(0, 0.3) for x in sums]
    found = Calibration.fit(sums, measured)
    errors = []
    for place in range(9):
        rest = Calibration.fit(sums[:place] + sums[place + 1 :], measured[:place] + measured[place + 1 :])
        errors.append(abs(rest.predict(sums[place]) - measured[place]) / measured[place])
    assert found.error_median == pytest.approx(statistics.median(errors))
    assert found.error_max == pytest.approx(max(errors))


@given(points=st.lists(st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)), min_size=1, max_size=12))
def test_the_slope_is_above_zero_whatever_is_measured(points: list[tuple[float, float]]) -> None:
    found = Calibration.fit([x for x, _ in points], [y for _, y in points])
    assert found.slope > 0
    assert found.predict(10.0) < found.predict(20.0)


def test_one_network_gives_a_ratio_and_no_error() -> None:
    found = Calibration.fit([4.0], [6.0])
    assert (found.slope, found.intercept_ms, found.error_median, found.spearman) == (1.5, 0.0, None, None)


@pytest.mark.parametrize(("sums", "measured"), [([], []), ([1.0, 0.0], [1.0, 1.0]), ([1.0], [-1.0])])
def test_times_that_are_none_are_refused(sums: list[float], measured: list[float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Calibration.fit(sums, measured)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = [x for x, _ in pairs], [y for _, y in pairs]
    assume(len(set(first)) > 1 and len(set(second)) > 1)
    assert spearman(first, second) == pytest.approx(float(spearmanr(first, second).statistic))


class TestNetworks:
    SPACE = RankSpace(tuple(LayerRanks(f"layer{n}", 5, 4, (16, 32, 48, 64)) for n in range(20)), {})

    @pytest.mark.parametrize("seed", range(5))
    def test_are_different_and_spread_from_dense_to_the_lowest(self, seed: int) -> None:
        found = calibration_networks(self.SPACE, 12, seed)
        assert len(set(found)) == len(found) == 12
        assert found[:2] == [self.SPACE.dense, self.SPACE.smallest]
        heights = sorted(statistics.mean(80 if rank is None else rank for rank in ranks) for ranks in found)
        assert max(after - before for before, after in pairwise(heights)) < 25
        assert all(len(set(ranks)) > 1 for ranks in found[2:])
        for ranks in found:
            assert set(ranks) <= {None, 16, 32, 48, 64}

    def test_are_the_same_for_a_seed(self) -> None:
        assert calibration_networks(self.SPACE, 12, 1) == calibration_networks(self.SPACE, 12, 1)
        assert calibration_networks(self.SPACE, 12, 1) != calibration_networks(self.SPACE, 12, 2)

    def test_a_small_space_has_fewer(self) -> None:
        tiny = RankSpace((LayerRanks("a", 2, 1, (16,)), LayerRanks("b", 1, 0, ())), {})
        assert set(calibration_networks(tiny, 12, 0)) == {(None, None), (16, None)}
