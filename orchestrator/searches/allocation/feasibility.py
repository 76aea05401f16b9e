"""Budgets that no allocation meets: found before anything is solved, and said with the closest that can be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from orchestrator.searches.allocation.capacities import dense_total, fits, prices, total
from orchestrator.searches.allocation.integer_program import Effort, least_loss
from orchestrator.searches.allocation.options import Choice, LayerOptions
from search_spaces.errors import InfeasibleBudgetError

__all__ = ["FIRST_FOUND", "require_feasible", "rule_cannot_reach"]

FIRST_FOUND = Effort(relative_gap=1e9)
"""Any choice within the limits will do."""


def require_feasible(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> None:
    """Makes sure that some choice is within every limit.

    Undecided within the time of an `Effort` counts as feasible; the solver will see.

    Raises:
        InfeasibleBudgetError: none is: one limit is out of reach, or several that are not met together.
        ValueError: no limits at all.
    """
    if not capacities:
        raise ValueError("an allocation needs at least one limit")
    for cost in capacities:
        cheapest = [int(np.argmin(layer.costs[cost])) for layer in options]
        if not fits(options, cheapest, {cost: capacities[cost]}):
            closest = _compression(options, cheapest, cost)
            raise InfeasibleBudgetError(
                f"search.budget.{cost}",
                f"no rank vector meets C = {_asked(options, capacities, cost):.4f}; the closest that can be reached "
                f"is {closest:.4f} (every layer at its cheapest rank)",
                {cost: closest},
            )
    if len(capacities) > 1 and not _reachable(options, capacities):
        raise _not_together(options, capacities)


def rule_cannot_reach(
    options: Sequence[LayerOptions], choice: Choice, capacities: Mapping[str, float], rule: str
) -> InfeasibleBudgetError:
    """The error for limits that rank vectors can meet but none that a rule leads to.

    Args:
        choice: the closest that the rule comes.
        rule: what it is, as the message's subject: "no energy threshold".
    """
    closest = {cost: _compression(options, choice, cost) for cost in capacities}
    missed = [cost for cost in capacities if not fits(options, choice, {cost: capacities[cost]})]
    reach = ", ".join(f"{cost} {value:.4f}" for cost, value in closest.items())
    asked = ", ".join(f"{cost} {_asked(options, capacities, cost):.4f}" for cost in capacities)
    return InfeasibleBudgetError(
        f"search.budget.{missed[0]}" if len(missed) == 1 else "search.budget",
        f"{rule} meets C = {asked}; the closest it reaches is {reach}; take an exact allocation or a looser limit",
        closest,
    )


def _reachable(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> bool:
    price = prices(options, capacities)
    if fits(options, [int(np.argmin(values)) for values in price], capacities):
        return True
    return least_loss(options, capacities, price, FIRST_FOUND).status != "infeasible"


def _not_together(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> InfeasibleBudgetError:
    """Names the smallest set of limits that exclude each other: two, unless any two go together."""
    sets = (
        {cost: capacities[cost] for cost in names}
        for size in range(2, len(capacities))
        for names in combinations(capacities, size)
    )
    culprits = next((some for some in sets if not _reachable(options, some)), dict(capacities))
    first, *others = culprits
    # The others are held; what remains is how far the first can go.
    held = {cost: culprits[cost] for cost in others}
    solution = least_loss(options, held, [layer.costs[first] for layer in options], Effort(relative_gap=0.0))
    choice = solution.choice or [-1] * len(options)
    closest = {cost: _compression(options, choice, cost) for cost in culprits}
    asked = " and ".join(f"{cost} C = {_asked(options, capacities, cost):.4f}" for cost in culprits)
    return InfeasibleBudgetError(
        "search.budget",
        f"{asked} can each be met but not together; with {' and '.join(others)} met, the closest that can be reached "
        f"is {first} C = {closest[first]:.4f}",
        closest,
    )


def _asked(options: Sequence[LayerOptions], capacities: Mapping[str, float], cost: str) -> float:
    return 1.0 - capacities[cost] / (dense_total(options, cost) or 1.0)


def _compression(options: Sequence[LayerOptions], choice: Choice, cost: str) -> float:
    return 1.0 - total(options, choice, cost) / (dense_total(options, cost) or 1.0)
