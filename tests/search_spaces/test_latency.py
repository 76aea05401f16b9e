"""Latency as a cost: sums over calls, what was not measured, and what a calibration changes."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.calibration import Calibration
from search_spaces.errors import MeasurementError
from search_spaces.latency import LatencyCost, Timing, latency_name, limited_device
from search_spaces.rank_space import LayerRanks, RankSpace

TABLE = {
    "dense 8x8": Timing(2.0, 1.9, 2.1),
    "dense 4x4": Timing(0.5, 0.45, 0.55),
    "r4 8x8": Timing(1.0, 0.95, 1.05),
    "r4 4x4": Timing(0.4, 0.35, 0.45),
    "r8 8x8": Timing(1.5, 1.4, 1.6),
}
SUBJECTS = [
    {None: ["dense 8x8"], 4: ["r4 8x8"], 8: ["r8 8x8"]},
    {None: ["dense 8x8", "dense 4x4"], 4: ["r4 8x8", "r4 4x4"], 8: ["r8 8x8", "r8 4x4"]},
]


def cost() -> LatencyCost:
    return LatencyCost.of_table("orin", TABLE, SUBJECTS, ["conv", "shared"])


def test_a_layer_takes_what_its_calls_take_together() -> None:
    made = cost()
    assert made.name == "latency@orin"
    assert made.of(0, 4) == 1.0
    assert made.of(1, None) == 2.5
    both = made.timings[1][4]
    assert (both.ms, both.low_ms, both.high_ms) == pytest.approx((1.4, 1.3, 1.5))


def test_a_rank_with_a_call_that_was_not_measured_is_not_there() -> None:
    made = cost()
    assert set(made.timings[1]) == {None, 4}
    with pytest.raises(KeyError):
        made.of(1, 8)


def test_without_the_dense_layer_nothing_compares() -> None:
    table = {subject: timing for subject, timing in TABLE.items() if subject != "dense 4x4"}
    with pytest.raises(MeasurementError, match=r"^orin: the dense layer shared could not be measured; [^\n]+$"):
        LatencyCost.of_table("orin", table, SUBJECTS, ["conv", "shared"])


def test_names_tell_the_device() -> None:
    assert limited_device(latency_name("v100")) == "v100"
    assert limited_device("parameters") is None


def test_it_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(cost())) == cost()


@given(slope=st.floats(0.1, 5), intercept=st.floats(-1, 3))
def test_compression_knows_no_calibration_and_the_networks_cost_is_the_prediction(
    slope: float, intercept: float
) -> None:
    made, calibration = cost(), Calibration(slope, intercept, 12, None, None, None)
    layers = (LayerRanks("conv", 3, 2, (4, 8)), LayerRanks("shared", 2, 1, (4,)))
    plain, calibrated = (RankSpace(layers, {"latency@orin": one}) for one in (made, made.calibrated(calibration)))
    for ranks in ((4, 4), (8, None), (None, 4), (None, None)):
        assert calibrated.compression("latency@orin", ranks) == pytest.approx(plain.compression("latency@orin", ranks))
        assert calibrated.network_cost("latency@orin", ranks) == pytest.approx(calibration.predict(made.sum_ms(ranks)))
        assert math.isclose(calibration.sum_for(calibration.predict(made.sum_ms(ranks))), made.sum_ms(ranks))
