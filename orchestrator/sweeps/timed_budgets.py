"""Budgets that limit devices: what is timed of each before any trial trains. Knows no Ray."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.hardware.latency_step import Timed, time_networks, time_space, whole_network
from orchestrator.hardware.run_memory import RunMemory, timing_of
from orchestrator.preparation import Prepared, static_limits
from orchestrator.searches.closed_loop import bound_problem
from orchestrator.searches.contract import Problem
from orchestrator.searches.latency_model import LatencyModel
from orchestrator.searches.limits import Bound
from orchestrator.sweeps.settings import SweepPlan
from orchestrator.sweeps.trials import budget_text, limited_devices
from search_spaces.budgets import Budget
from search_spaces.costs import rank_space
from search_spaces.errors import MeasurementError
from search_spaces.fitting import fit_to_budget
from search_spaces.rank_space import RankSpace, RankVector
from search_spaces.schemes.registry import schemes

__all__ = ["TimedBudget", "TimedBudgets", "budget_key", "time_budget", "time_budgets", "time_dense"]


@dataclass(frozen=True)
class TimedBudget:
    """A scheme's ranks under a budget that limits devices.

    Attributes:
        space: offers the ranks just below the devices' jumps; their calibrated latencies are among its costs.
        budget: bound to it.
        models: one per limited device.
    """

    space: RankSpace
    budget: Budget
    models: tuple[LatencyModel, ...]

    def knows(self, ranks: RankVector) -> bool:
        """Whether every device was timed at all these ranks."""
        return all(
            rank in timings for model in self.models for rank, timings in zip(ranks, model.cost.timings, strict=True)
        )


TimedBudgets = Mapping[tuple[str, str], TimedBudget]
"""By scheme and `budget_text`."""


def budget_key(scheme: str, budget: Mapping[str, Bound]) -> tuple[str, str]:
    """The key of a scheme under a budget."""
    return scheme, budget_text(budget)


def time_budgets(plan: SweepPlan, base: Prepared, memory: RunMemory) -> TimedBudgets:
    """Times every scheme of a sweep for every budget that limits a device; budgets share what is measured.

    Args:
        base: the sweep's network, layers and data.

    Raises:
        ConfigError: a budget that cannot be reached, with the closest that can, or a network that cannot be timed.
        MeasurementError: a device does not answer, or too little could be measured on it.
    """
    found: dict[tuple[str, str], TimedBudget] = {}
    for budget in plan.budgets:
        if limited_devices(budget):
            for scheme in dict.fromkeys(method.scheme for method in plan.methods):
                with plan.keys(budget):
                    found[budget_key(scheme, budget)] = time_budget(plan, base, scheme, budget, memory)
    return found


def time_budget(
    plan: SweepPlan, base: Prepared, scheme: str, budget: Mapping[str, Bound], memory: RunMemory
) -> TimedBudget:
    """Times one of them: layers, networks that calibrate their sums, and networks that use the budget up.

    Raises:
        ConfigError, MeasurementError: as `time_budgets`.
    """
    timed = time_space(_under(plan, base, scheme, budget), memory)
    models = _corrected_at_the_limit(timed, memory)
    bound = bound_problem(timed.prepared.problem, timed.static, models)
    return TimedBudget(bound.space, bound.budget, models)


def time_dense(base: Prepared, device: str, memory: RunMemory) -> float:
    """ms of the dense network: proves, before anything is trained, that a device can time the sweep's networks.

    Raises:
        ConfigError: the network cannot be timed.
        MeasurementError: the device does not answer, or could not time it.
    """
    (measured,) = memory.measure({device: [whole_network(base, base.space.dense)]})[device]
    timing = timing_of(measured)
    if timing is None:
        why = f"{measured.status}: {measured.reason}"
        raise MeasurementError(device, f"the dense network could not be measured: {why}")
    memory.keep()
    return timing.ms


def _under(plan: SweepPlan, base: Prepared, scheme: str, budget: Mapping[str, Bound]) -> Prepared:
    """The sweep's network as a search under this scheme and budget would prepare it."""
    config = plan.config_for(scheme, budget)
    chosen = (schemes().get(scheme, "search.scheme"),) * len(base.found.layers)
    static = static_limits(config)
    space = rank_space(base.found, chosen, binding=[limit.cost for limit in static] or ["macs"])
    problem = replace(base.problem, space=space, budget=Budget.of(static, space), curves={})
    if any(layer.ladder is not None for layer in space.layers):  # ranks that are no numbers: height is by error
        problem = replace(
            problem,
            curves={
                "frobenius": [
                    one.error_curve(layer, base.model.get_parameter(f"{layer.name}.weight").detach(), "frobenius")
                    for layer, one in zip(base.found.layers, chosen, strict=True)
                ]
            },
        )
    return replace(base, config=config, schemes=chosen, problem=problem)


def _corrected_at_the_limit(timed: Timed, memory: RunMemory) -> tuple[LatencyModel, ...]:
    """The models with aims such that what is predicted to fit is measured to fit.

    Near one budget a calibration may be off by a few percent in one direction. A search closes the loop by measuring
    what it proposes; trials have no second round. So a few random networks that use the budget up by prediction are
    measured first, and the aim is lowered until none of those that missed would be predicted to fit.
    """
    vectors = _using_it_up(timed.prepared.problem, timed.prepared.config.timing.proposals)
    models = []
    for model in timed.models:
        wanted = [ranks for ranks in vectors if ranks not in model.networks]
        timings = time_networks(timed.prepared, model.device, wanted, memory) if wanted else []
        measured = {ranks: one for ranks, one in zip(wanted, timings, strict=True) if one is not None}
        corrected = model.with_proposals(measured)
        for ranks in measured:
            corrected = corrected.tightened(ranks)
        models.append(corrected)
    memory.keep()
    return tuple(models)


def _using_it_up(problem: Problem, count: int) -> list[RankVector]:
    """Random rank vectors that are predicted to be just within the budget; fewer where there are fewer."""
    space, drawn = problem.space, random.Random(problem.seed)
    flat = [[0.0] * (layer.useful + 1) for layer in space.layers]
    found: dict[RankVector, None] = {}
    for _ in range(4 * count):
        if len(found) < count:
            rungs = [drawn.randint(1, layer.useful + 1) for layer in space.layers]
            found.setdefault(fit_to_budget(space, problem.budget, flat, rungs))
    return [ranks for ranks in found if any(rank is not None for rank in ranks)]
