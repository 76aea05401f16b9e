"""Prepares a sweep: every mistake in it is found before Ray starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from orchestrator.preparation import Prepared, prepare
from orchestrator.searches.limits import Bound
from orchestrator.sweeps.finding_ranks import check_sources
from orchestrator.sweeps.material import Material, gather
from orchestrator.sweeps.proposals import grid_of
from orchestrator.sweeps.rank_source import RankSource
from orchestrator.sweeps.settings import Method, SweepPlan
from orchestrator.sweeps.trials import Trial, budget_text, limited_devices
from search_spaces.costs import COST_NAMES
from search_spaces.errors import ConfigError, InfeasibleBudgetError
from search_spaces.rank_space import RankVector
from workers.training.sgd import evaluate

__all__ = ["PreparedSweep", "prepare_sweep", "try_method"]


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that can begin.

    Attributes:
        plan: its config.
        base: its network, layers and data, checked.
        material: what all trials start from.
        sources: where rank vectors come from.
        grid: all trials, without Optuna.
        dense: accuracy of the dense network by split (`held_out`, `test`).
    """

    plan: SweepPlan
    base: Prepared
    material: Material
    sources: Mapping[RankSource, Prepared | RankVector]
    grid: tuple[Trial, ...]
    dense: Mapping[str, float | None]


def prepare_sweep(plan: SweepPlan) -> PreparedSweep:
    """Reads the data and starts every method under every budget once, without training it.

    Raises:
        ConfigError: naming the key that is wrong: a budget that a method cannot express or reach, labels that the
            network has no class for, settings that do not fit.
    """
    grid = () if plan.settings.optuna is not None else tuple(grid_of(plan))
    with plan.keys(plan.budgets[0]):
        prepared = prepare(plan.config_for(plan.methods[0].scheme, plan.budgets[0]))
    material = gather(prepared)
    sources = check_sources(plan, [layer.name for layer in material.found.layers])
    for method in plan.methods:
        try_method(plan, method, material)
    test = None if material.test is None else evaluate(material.network, material.test)[0]
    dense = {"held_out": evaluate(material.network, material.held_out)[0], "test": test}
    return PreparedSweep(plan, prepared, material, sources, grid, dense)


def try_method(plan: SweepPlan, method: Method, material: Material, *, timed: bool = False) -> None:
    """Starts a method under every budget, without training it.

    Args:
        timed: whether under those that limit devices, which were timed; else under those that do not. Before devices
            are timed, their limits are left out: a mistake of another kind need not wait.

    Raises:
        ConfigError: naming the method's setting, or the budget that it cannot express or reach.
    """
    values = {name: one.extremes[0] for name, one in method.ranges.items()}
    for number, budget in enumerate(plan.budgets):
        limits_devices = bool(limited_devices(budget))
        if timed and not limits_devices:
            continue
        key, known = f"sweep.budgets.{number}", timed or not limits_devices
        trial = method.trial(0, values, budget if known else _by_shapes(budget), plan.settings.seeds[0])
        try:
            setup = material.setup(trial)
            cheapest = setup.space.cheapest(setup.budget.targets[0][0])
            ranks = cheapest if method.ranks_from is not None else None
            with torch.random.fork_rng(devices=[]):
                method.registered.start(
                    method.registered.settings.model_validate(trial.settings), material.setup(trial, ranks)
                )
        except InfeasibleBudgetError as error:
            if not known:
                continue
            raise ConfigError(key, f"{method.name} cannot meet {budget_text(budget)}: {error.message}") from None
        except ConfigError as error:
            if not error.key.startswith("sweep."):
                raise
            raise ConfigError(f"{method.key}{error.key.removeprefix('sweep')}", error.message) from None


def _by_shapes(budget: Mapping[str, Bound]) -> dict[str, Bound]:
    """The limits that need no device; where there are none, one that any network can meet."""
    return {cost: bound for cost, bound in budget.items() if cost in COST_NAMES} or {"macs": 0.3}
