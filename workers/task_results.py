"""Results of Ray tasks, whose refusals stay what they were when they were raised: one line, not a remote traceback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from search_spaces.errors import ConfigError

__all__ = ["results_of"]


def results_of(references: Sequence[ray.ObjectRef[Any]]) -> list[Any]:
    """What the tasks returned, in order.

    Raises:
        ConfigError: as a task raised it.
        ray.exceptions.RayTaskError: a task raised anything else.
    """
    try:
        results: list[Any] = ray.get(list(references))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, ConfigError) else error from None
    return results
