"""The estimators by name: backends that compute what a program costs, where there is nothing to time."""

from __future__ import annotations

from functools import cache

from search_spaces.registry import Registry
from workers.timing.backends.zigzag import ZigZag
from workers.timing.contract import Estimator

__all__ = ["estimators"]


@cache
def estimators() -> Registry[Estimator]:
    """Estimators by name; other packages add theirs through the entry point group `rankray.estimators`."""
    built_in: tuple[Estimator, ...] = (ZigZag(),)
    return Registry("rankray.estimators", "estimator", {one.name: one for one in built_in})
