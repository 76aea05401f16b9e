"""Objectives: what a search ranks candidates by, as one number of which more is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from search_spaces.candidates import Score

__all__ = ["OBJECTIVES", "objective_value"]

OBJECTIVES: Mapping[str, Callable[[Mapping[str, float]], float]] = MappingProxyType(
    {
        "accuracy": lambda values: values["accuracy"],
        "cross_entropy": lambda values: -values["loss"],
        "kl": lambda values: -values["kl"],
    }
)
"""`accuracy` (or the user's metric), `cross_entropy` (mean loss) and `kl` (to the dense network's outputs)."""


def objective_value(objective: str, score: Score) -> float:
    """The score's value under an objective: more is better; minus infinity where it failed or the value is NaN."""
    value = OBJECTIVES[objective](score.values) if score.ok else -math.inf
    return -math.inf if math.isnan(value) else value
