"""Errors are one line, say their exit status, and cross a process boundary with their data."""

from __future__ import annotations

import pickle

import pytest

from search_spaces import errors

EVERY_ERROR = [
    errors.ConfigError("search.step", "is -1; a step is at least 1"),
    errors.InfeasibleBudgetError("search.budget.macs", "no rank vector meets it", {"macs": 0.4}),
    errors.WorkerLostError("evaluator-1", "its node died"),
    errors.WorkerLostError(worker="evaluator-1", cause="its node died"),
    errors.EvaluationTimeoutError("evaluator-1", 12.5),
    errors.MeasurementError("cpu", "noisy: spread 12 %"),
    errors.CorruptedWeightsError(["conv1.weight", "fc.weight"]),
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_survives_a_process_boundary(error: errors.RankRayError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    public = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    assert {name: getattr(again, name) for name in public} == public


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_is_one_line(error: errors.RankRayError) -> None:
    assert isinstance(error, errors.RankRayError)
    assert len(str(error).splitlines()) == 1


def test_a_stopped_run_can_be_told_from_a_mistake_by_its_exit_status() -> None:
    assert errors.ConfigError("a", "b").exit_status == 2
    assert errors.WorkerLostError("a", "b").exit_status == 1


def test_a_mistake_in_the_config_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^search\.step: is -1"):
        raise errors.ConfigError("search.step", "is -1")
