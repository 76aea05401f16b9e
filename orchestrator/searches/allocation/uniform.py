"""The same ratio everywhere: every layer may cost one share of its dense cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.searches.allocation.capacities import dense_total
from orchestrator.searches.allocation.feasibility import require_feasible, rule_cannot_reach
from orchestrator.searches.allocation.options import Allocation, FloatArray, LayerOptions, allocated, usable
from orchestrator.searches.allocation.pareto import frontier
from orchestrator.searches.allocation.staircases import Staircases

__all__ = ["uniform"]


def uniform(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> Allocation:
    """Each layer's most accurate option that costs at most a share of the layer; the largest share that fits.

    The share is counted in units of what the budget keeps of the whole: at 1 each layer costs at most
    (1 - C_d) times its dense cost, in every limited cost. It may pass 1, because ranks are whole numbers and
    layers stay below their share. A layer without an option that cheap takes its cheapest.

    Args:
        capacities: the most that the layers may cost, by cost name.

    Returns:
        The allocation; the note has `share`, from which on this allocation results, and `next_share`, the next one
        that changes it (None at the top), which does not fit.

    Raises:
        InfeasibleBudgetError: no choice is within every limit, or no share leads to one that is.
    """
    layers, errors = usable(options)
    require_feasible(layers, capacities)
    shares = _shares(layers, capacities)
    rungs = [frontier(error, share) for error, share in zip(errors, shares, strict=True)]
    levels = [share[rung[1:]] for share, rung in zip(shares, rungs, strict=True)]
    staircases = Staircases(layers, rungs, levels)
    setting = staircases.highest_within(capacities)
    if setting is None:
        raise rule_cannot_reach(layers, staircases.choice(0), capacities, "no share of every layer's cost")
    note = {
        "share": float(staircases.levels[setting - 1]) if setting else 0.0,
        "next_share": float(staircases.levels[setting]) if setting < staircases.highest else None,
    }
    return allocated(layers, staircases.choice(setting), note)


def _shares(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> list[FloatArray]:
    """Every option's cost over its layer's dense cost, over what the budget keeps; the largest of all limits."""
    kept = {cost: most / (dense_total(options, cost) or 1.0) for cost, most in capacities.items()}
    shares = []
    for layer in options:
        ratios = [
            layer.costs[cost] / ((float(layer.costs[cost][-1]) or 1.0) * (kept[cost] if kept[cost] > 0 else 1.0))
            for cost in capacities
        ]
        shares.append(np.max(ratios, axis=0))
    return shares
