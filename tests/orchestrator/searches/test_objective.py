"""Objectives: one number, more is better."""

from __future__ import annotations

import math

import pytest

from orchestrator.searches.objective import OBJECTIVES, objective_value
from search_spaces.candidates import Score

VALUES = {"accuracy": 0.75, "loss": 0.5, "kl": 0.25}


@pytest.mark.parametrize(("objective", "expected"), [("accuracy", 0.75), ("cross_entropy", -0.5), ("kl", -0.25)])
def test_more_is_better(objective: str, expected: float) -> None:
    assert objective_value(objective, Score((1,), VALUES)) == expected


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_failed_candidate_and_a_nan_are_below_everything(objective: str) -> None:
    assert objective_value(objective, Score((1,), status="error")) == -math.inf
    assert objective_value(objective, Score((1,), dict.fromkeys(VALUES, math.nan))) == -math.inf
