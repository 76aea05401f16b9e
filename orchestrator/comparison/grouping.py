"""Groups the runs of a comparison that can share their evaluators."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from orchestrator.comparison.settings import PlannedRun
from search_spaces.latency import limited_device

__all__ = ["evaluators_key", "grouped"]


def grouped(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """The runs by the evaluators that they can share, in the order in which the first of each group comes."""
    groups: dict[Hashable, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(evaluators_key(run), []).append(run)
    return list(groups.values())


def evaluators_key(run: PlannedRun) -> Hashable:
    """What a rank vector's score depends on, as far as the runs of one comparison differ in it.

    The seed draws the validation batch, and candidates are stopped early by one objective. Fitted last stages are the
    same to the last digit only where the same ranks are offered: under the same limited costs to a search with the same
    settings. A device is leased to one run.
    """
    search = run.config.search
    fitted = search.last_stage == "fitted"
    timed = any(limited_device(limit.cost) is not None for limit in run.config.limits)
    return (
        search.seed,
        search.scheme,
        search.norm,
        search.last_stage,
        search.bias,
        search.batch_norm,
        search.include,
        search.exclude,
        search.objective if search.stops_early else None,
        (run.search, tuple(search.budget)) if fitted else None,
        run.name if timed else None,
    )
