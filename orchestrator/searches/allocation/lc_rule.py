"""LC's rank rule (Idelbayev & Carreira-Perpinan, CVPR 2020) on the weights as they are: one penalty on cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.searches.allocation.capacities import prices
from orchestrator.searches.allocation.feasibility import require_feasible, rule_cannot_reach
from orchestrator.searches.allocation.options import Allocation, LayerOptions, allocated, usable
from orchestrator.searches.allocation.pareto import convex_frontier, slopes
from orchestrator.searches.allocation.staircases import Staircases

__all__ = ["lc_rule"]


def lc_rule(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> Allocation:
    """Each layer's option that minimises alpha * cost + error^2 / 2; the smallest alpha that fits.

    It is LC's C step at mu = 1 and zero multipliers, with the error normalised by the layer's norm. What it picks is
    a corner of the layer's convex hull of error^2 / 2 against cost and changes only at the hull's slopes, so no
    alpha between these needs to be tried. At such an alpha both neighbours are minimal; the cheaper is taken until
    alpha is below it. Under several limits the cost is their sum, each over its budget.

    Args:
        options: with relative errors by the measure `frobenius`.
        capacities: the most that the layers may cost, by cost name.

    Returns:
        The allocation; the note has `alpha` and `largest_alpha` (None if there is no largest), between which it is
        minimal, ends included.

    Raises:
        InfeasibleBudgetError: no choice is within every limit, or no penalty leads to one that is.
    """
    layers, errors = usable(options)
    require_feasible(layers, capacities)
    losses = [0.5 * np.square(error) for error in errors]
    price = prices(layers, capacities)
    corners = [convex_frontier(loss, value) for loss, value in zip(losses, price, strict=True)]
    staircases = Staircases(layers, corners, [-slopes(*layer) for layer in zip(losses, price, corners, strict=True)])
    setting = staircases.highest_within(capacities)
    if setting is None:
        raise rule_cannot_reach(layers, staircases.choice(0), capacities, "no penalty")
    note = {
        "alpha": -float(staircases.levels[setting]) if setting < staircases.highest else 0.0,
        "largest_alpha": -float(staircases.levels[setting - 1]) if setting else None,
    }
    return allocated(layers, staircases.choice(setting), note)
