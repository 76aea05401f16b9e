"""BSR: the penalty moves energy into the ranks that stay, by its schedule."""

from __future__ import annotations

import pytest

from tests.workers.training.digit_setups import QUICK, digit_setup
from workers.training.bsr import BSRSettings, StableRankTraining, start_bsr
from workers.training.contract import Metrics

RANKS = (4, 9, 9, 5)


def trained(**training: float) -> list[Metrics]:
    """The first phase's epochs."""
    settings = BSRSettings.model_validate({"training": {**QUICK, "epochs": 4, **training}})
    selection = StableRankTraining(settings, digit_setup({"parameters": 0.6}), RANKS)
    return [selection.step() for _ in range(4)]


def test_with_the_penalty_less_energy_lies_beyond_the_ranks() -> None:
    without, weak, strong = (trained(strength=strength)[-1].more for strength in (0.0, 0.5, 2.0))
    assert strong["tail_energy"] < weak["tail_energy"] < without["tail_energy"]
    assert strong["stable_rank"] < 0.7 * without["stable_rank"]


def test_truncation_then_costs_less_accuracy() -> None:
    before = []
    for strength in (0.0, 2.0):
        settings = {"training": {**QUICK, "epochs": 4, "strength": strength}, "fine_tuning": {**QUICK, "epochs": 1}}
        trainable = start_bsr(BSRSettings.model_validate(settings), digit_setup({"parameters": 0.6}, ranks=RANKS))
        before.append([trainable.step() for _ in range(5)][-1].accuracy_before)
    assert before[1] > before[0] + 0.05


def test_lambda_grows_by_its_schedule() -> None:
    metrics = trained(strength=0.1, growth=2.0, growth_epochs=2)
    assert [one.more["strength"] for one in metrics] == pytest.approx([0.1, 0.1, 0.2, 0.2])


def test_subspaces_found_again_in_every_step_or_once_an_epoch_make_little_difference() -> None:
    often, seldom = (trained(strength=0.3, refresh=refresh)[-1].more["tail_energy"] for refresh in (1, 64))
    assert seldom == pytest.approx(often, rel=0.1)
    assert seldom != often
