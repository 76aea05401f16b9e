"""The rank step on made-up staircases with noise and slopes, on measured ones, and what is then timed."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.granularity import rank_step, ranks_to_measure, sweep_ranks
from search_spaces.latency import Timing

SWEEP = sweep_ranks(512)


def timings(values: list[float], half_width: float = 0.005) -> list[Timing]:
    return [Timing(ms, ms * (1 - half_width), ms * (1 + half_width)) for ms in values]


def test_a_sweep_covers_two_steps_of_any_width_it_can() -> None:
    assert list(range(64, 129, 4)) == SWEEP
    assert sweep_ranks(57) == list(range(4, 57, 4))
    assert sweep_ranks(3) == []


@given(
    step=st.sampled_from([8, 16, 32]),
    jump=st.floats(0.06, 0.4),
    inside=st.floats(0, 0.5),
    noise=st.sampled_from([0.0, 0.002, 0.005]),
    seed=st.integers(0, 2**16),
)
def test_a_staircase_gives_its_step_through_noise_and_slopes(
    step: int, jump: float, inside: float, noise: float, seed: int
) -> None:
    drawn = random.Random(seed)
    per_rank = jump * inside / step  # of the rise per step, so much lies inside it
    values = [
        (1 + jump * math.ceil(rank / step) + per_rank * rank) * (1 + noise * drawn.uniform(-1, 1)) for rank in SWEEP
    ]
    assert rank_step(SWEEP, timings(values)) == step


@given(slope=st.floats(0, 0.05), noise=st.sampled_from([0.0, 0.003]), seed=st.integers(0, 2**16))
def test_a_slope_has_no_step(slope: float, noise: float, seed: int) -> None:
    drawn = random.Random(seed)
    values = [(1 + slope * rank) * (1 + noise * drawn.uniform(-1, 1)) for rank in SWEEP]
    assert rank_step(SWEEP, timings(values)) == 1


MEASURED = {
    # us, ranks 64 to 128 by 4: 3x3 convolution, 256 to 256 channels, 14 x 14, AVX-512 CPU.
    "channel_svd, ONNX Runtime": [273, 363, 364, 366, 364, 418, 415, 413, 416, 475, 478, 473, 473, 533, 534, 531, 532],
    "channel_svd, OpenVINO": [266, 331, 331, 334, 340, 395, 394, 394, 391, 453, 456, 456, 456, 539, 528, 532, 510],
    "tucker2, ONNX Runtime": [125, 182, 182, 182, 182, 229, 230, 228, 228, 288, 287, 290, 286, 360, 354, 351, 351],
    "tucker2, OpenVINO": [133, 163, 169, 176, 180, 214, 218, 226, 228, 267, 276, 283, 292, 332, 341, 350, 348],
}


@pytest.mark.parametrize("name", MEASURED)
def test_measured_staircases(name: str) -> None:
    assert rank_step(SWEEP, timings([value / 1000 for value in MEASURED[name]], 0.01)) == 16


@pytest.mark.parametrize("place", [1, 7, 15])
@pytest.mark.parametrize("factor", [0.3, 10.0])
def test_one_wrong_measurement_does_no_harm(place: int, factor: float) -> None:
    values = [1 + 0.2 * math.ceil(rank / 16) for rank in SWEEP]
    values[place] *= factor
    assert rank_step(SWEEP, timings(values)) == 16


def test_too_few_ranks_tell_nothing() -> None:
    assert rank_step([4, 8, 12], timings([1.0, 1.0, 2.0])) == 1


class TestRanksToMeasure:
    @given(useful=st.integers(1, 400), step=st.sampled_from([1, 8, 16, 32]), most=st.integers(2, 40))
    def test_numbers(self, useful: int, step: int, most: int) -> None:
        found = ranks_to_measure(range(1, useful + 1), step, most)
        assert found[-1] == useful
        assert len(found) <= most
        assert sorted(set(found)) == found
        assert useful < step or all(rank % step == 0 for rank in found[:-1])

    def test_all_multiples_where_they_are_not_too_many(self) -> None:
        assert ranks_to_measure(range(1, 58), 16, 32) == [16, 32, 48, 57]
        assert ranks_to_measure(range(1, 15), 16, 32) == list(range(1, 15))  # below the step all are worth a look

    @given(step=st.sampled_from([1, 8, 16]), most=st.integers(2, 12))
    def test_slices(self, step: int, most: int) -> None:
        ladder = [(k, j) for k in (1, 2, 4, 8) for j in range(1, 20)]
        found = ranks_to_measure(ladder, step, most)
        assert set(found) <= set(ladder)
        assert found[-1] == ladder[-1]
        assert len(found) <= most
        assert all(k * j % step == 0 for k, j in found[:-1])

    def test_nothing_of_nothing(self) -> None:
        assert ranks_to_measure((), 16, 8) == []
