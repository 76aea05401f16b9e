"""Prepares the runs of a comparison: every mistake in any of them is found before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.comparison.settings import PlannedRun
from orchestrator.config.schema import Config
from orchestrator.preparation import Prepared, prepare, static_limits
from search_spaces.budgets import Budget
from search_spaces.errors import InfeasibleBudgetError

__all__ = ["PreparedRuns", "prepare_all"]

PreparedRuns = dict[str, Prepared | InfeasibleBudgetError]
"""By the run's name: what it needs, or why no rank vector meets its budget."""


def prepare_all(planned: Sequence[PlannedRun]) -> PreparedRuns:
    """Prepares runs; what budgets do not change is prepared once, and all hold the same network in memory.

    Raises:
        ConfigError: naming the key below `compare`, or elsewhere in the config, that is wrong.
    """
    found: PreparedRuns = {}
    known: dict[tuple[str, int, tuple[str, ...]], Prepared] = {}
    first: Prepared | None = None
    for run in planned:
        search = run.config.search
        alike = (run.search, search.seed, tuple(search.budget))
        try:
            with run.keys():
                former = known.get(alike)
                prepared = prepare(run.config) if former is None else _with_budget(former, run.config)
        except InfeasibleBudgetError as error:
            found[run.name] = error
            continue
        first = first or prepared
        known[alike] = found[run.name] = _sharing(prepared, first)
    return found


def _with_budget(former: Prepared, config: Config) -> Prepared:
    """The same search under another value of the same limits.

    Raises:
        InfeasibleBudgetError: no rank vector meets it.
    """
    budget = Budget.of(static_limits(config), former.space)
    return replace(former, config=config, problem=replace(former.problem, budget=budget))


def _sharing(prepared: Prepared, first: Prepared) -> Prepared:
    """With the first run's network and test data in place of equal ones."""
    if prepared.fingerprints["model"] != first.fingerprints["model"]:
        return prepared
    return replace(prepared, model=first.model, test=first.test, dense_on_test=first.dense_on_test)
