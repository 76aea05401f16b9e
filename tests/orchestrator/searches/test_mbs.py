"""The search method `mbs`: its settings, and how it starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.searches.mbs import MBS, MBSSettings
from tests.orchestrator.searches.made_up import MadeUpScores, Pool, problem


def settings(**changed: Any) -> MBSSettings:
    return MBSSettings.model_validate({"method": "mbs", "budget": {"parameters": 0.5}, **changed})


def test_the_thesis_three_settings_are_the_default() -> None:
    assert [(one.step, one.beam_size) for one in settings().settings] == [(3, 5), (5, 5), (10, 5)]
    assert settings().gamma == 0.5


def test_every_setting_runs_and_has_its_own_state() -> None:
    search = MBS.start(settings(), problem([(20, 20)] * 3, 0.5), None)
    pool = Pool(MadeUpScores(0))
    pool.run(search)
    assert set(search.state()) == {"s3-k5", "s5-k5", "s10-k5"}
    assert {candidate.search for candidate in pool.asked} == {"s3-k5", "s5-k5", "s10-k5"}
    assert search.best is not None
    assert search.best.search in search.state()


def test_a_state_of_other_settings_leaves_new_ones_at_their_start() -> None:
    made = problem([(20, 20)] * 3, 0.5)
    search = MBS.start(settings(), made, None)
    Pool(MadeUpScores(0)).run(search)
    other = MBS.start(
        settings(settings=[{"step": 3, "beam_size": 5}, {"step": 7, "beam_size": 2}]), made, search.state()
    )
    assert not other.done
    assert [candidate.search for candidate in other.ask()] == ["s7-k2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": []}, "is empty"),
        ({"settings": [{"step": 3, "beam_size": 5}, {"step": 3, "beam_size": 5}]}, "stands twice"),
        ({"settings": [{"step": 0, "beam_size": 5}]}, "greater than or equal to 1"),
        ({"settings": [{"step": 1, "beam_size": 0}]}, "greater than or equal to 1"),
        ({"tolerance": 0}, "greater than 0"),
        ({"tolerance": float("nan")}, "finite number"),
        ({"gamma": 1}, "less than 1"),
        ({"start": "middle"}, "'full' or 'break_even'"),
        ({"tie_break": "luck"}, "'rank', 'loss' or 'compression'"),
        ({"budget": {"parameters": 0.3, "macs": 0.2}, "tolerance": 0.3}, "tolerance 0.3 .* C_d 0.3"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changed)


@pytest.mark.parametrize("budget", [{"parameters": 0.3, "macs": 0.2}, {"parameters": 0.2, "macs": 100_000}])
def test_a_window_that_leaves_out_the_dense_network_is_fine(budget: dict[str, float]) -> None:
    assert settings(budget=budget, tolerance=0.25).tolerance == 0.25
