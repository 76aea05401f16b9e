"""The training methods by name: the built-in ones and those that other packages register."""

from __future__ import annotations

from functools import cache

from search_spaces.registry import Registry
from workers.training.contract import TrainingMethod
from workers.training.given_ranks import GivenRanksSettings, start_fine_tuning

__all__ = ["trainables"]


@cache
def trainables() -> Registry[TrainingMethod]:
    """Training methods by name; other packages add theirs through the entry point group `rankray.trainables`."""
    built_in = {
        "fine_tuning": TrainingMethod(GivenRanksSettings, start_fine_tuning, needs_ranks=True),
    }
    return Registry("rankray.trainables", "training method", built_in)
