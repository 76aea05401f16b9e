"""What a device's model aims at after networks were measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.latency_model import LatencyModel
from search_spaces.latency import Timing
from tests.orchestrator.searches.made_up_device import MadeUpDevice, made_problem

DEVICE = MadeUpDevice()
SPACE = made_problem([DEVICE]).space
PROPOSED = SPACE.at([1, 1, 2, 1, 2, 1])


def model(share: float = 0.6) -> LatencyModel:
    return DEVICE.model(SPACE, share * DEVICE.network_ms(SPACE.dense))


def timing(ms: float) -> Timing:
    return Timing(ms, ms, ms)


def test_it_predicts_what_the_device_takes() -> None:
    made = model()
    assert made.predicted_ms(PROPOSED) == pytest.approx(DEVICE.network_ms(PROPOSED))
    assert made.dense_ms == pytest.approx(DEVICE.network_ms(SPACE.dense))
    assert made.aim_ms == made.limit_ms


@given(factor=st.floats(0.8, 1.25))
def test_the_aim_moves_by_what_proposals_were_off(factor: float) -> None:
    made = model()
    ms = factor * made.predicted_ms(PROPOSED)
    after = made.with_proposals({PROPOSED: timing(ms)})
    # A network that is as far off as the proposal, and predicted to be at the aim, takes the limit.
    assert after.aim_ms * ms / after.predicted_ms(PROPOSED) == pytest.approx(made.limit_ms)
    assert after.networks[PROPOSED].predicted_ms == made.predicted_ms(PROPOSED)
    assert len(after.networks) == len(made.networks) + 1


@given(missed=st.floats(1.0001, 1.5))
def test_after_a_miss_the_aim_lies_below_the_network_that_missed(missed: float) -> None:
    made = model()
    after = made.with_proposals({PROPOSED: timing(missed * made.limit_ms)}).tightened(PROPOSED)
    assert after.aim_ms < after.predicted_ms(PROPOSED)
    assert after.calibration.sum_for(after.aim_ms) <= made.cost.sum_ms(PROPOSED) / missed * (1 + 1e-9)


def test_what_was_not_measured_or_does_not_miss_changes_nothing() -> None:
    made = model()
    assert made.tightened(PROPOSED) is made
    assert made.with_proposals({}) is made
    within = made.with_proposals({PROPOSED: timing(0.9 * made.limit_ms)})
    assert within.tightened(PROPOSED) is within


@pytest.mark.parametrize("share", [0.01, 0.6, 0.999, 5.0])
def test_the_target_is_never_out_of_reach(share: float) -> None:
    made = model(share)
    reach = SPACE.compression(made.cost.name, SPACE.cheapest(made.cost.name))
    assert 0 < made.target(SPACE) <= reach
