"""The energy threshold (eq. 2.1 of the thesis): every layer keeps at least the same share of its energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.searches.allocation.capacities import prices
from orchestrator.searches.allocation.feasibility import require_feasible, rule_cannot_reach
from orchestrator.searches.allocation.options import Allocation, LayerOptions, allocated, usable
from orchestrator.searches.allocation.staircases import Staircases

__all__ = ["energy"]


def energy(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> Allocation:
    """Each layer's cheapest option that keeps at least a share E of its energy; the largest E that fits.

    The energy kept is 1 - error^2, the sum of the kept squared singular values over that of all, so the same
    threshold on the energy is one on the error; what sets it apart from `minimax` is the measure, and that
    nothing is done with what is left of the budget. Among several limits, cheap is what `prices` says.

    Args:
        options: with relative errors by the measure `frobenius`.
        capacities: the most that the layers may cost, by cost name.

    Returns:
        The allocation; the note has `energy`, the least share that a layer keeps, and `next_energy`, the next larger
        E that can be attained (None at the top), which does not fit.

    Raises:
        InfeasibleBudgetError: no choice is within every limit, or no threshold leads to one that is.
    """
    layers, errors = usable(options)
    require_feasible(layers, capacities)
    staircases = Staircases.of_thresholds(layers, errors, prices(layers, capacities))

    def least_energy(setting: int) -> float:
        choice = staircases.choice(setting)
        return 1.0 - max(float(error[index]) for error, index in zip(errors, choice, strict=True)) ** 2

    setting = staircases.highest_within(capacities)
    if setting is None:
        raise rule_cannot_reach(layers, staircases.choice(0), capacities, "no energy threshold")
    note = {
        "energy": least_energy(setting),
        "next_energy": least_energy(setting + 1) if setting < staircases.highest else None,
    }
    return allocated(layers, staircases.choice(setting), note)
