"""The largest product of the layers' kept energies: greedily (eq. 2.2) or as an integer program (eq. 2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.searches.allocation.capacities import prices
from orchestrator.searches.allocation.feasibility import require_feasible, rule_cannot_reach
from orchestrator.searches.allocation.integer_program import Effort, least_loss, out_of_time
from orchestrator.searches.allocation.left_over import LeftOver
from orchestrator.searches.allocation.options import Allocation, Choice, FloatArray, LayerOptions, allocated, usable
from orchestrator.searches.allocation.pareto import convex_frontier, slopes
from orchestrator.searches.allocation.staircases import Staircases

__all__ = ["energy_product", "energy_product_exact"]


def energy_product(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> Allocation:
    """Eq. 2.2, greedily: from the dense network down, always the step that loses least log energy per cost saved.

    Steps go along each layer's convex frontier, one layer at a time, until the budget is met; what is then left of
    it goes to the steps back that gain most per cost. Among several limits, the cost is what `prices` says.

    Args:
        options: with relative errors by the measure `frobenius`; the energy kept is 1 - error^2. Options that keep
            none are left out.
        capacities: the most that the layers may cost, by cost name.

    Returns:
        The allocation; the note has `log_energy`, the natural logarithm of the product.

    Raises:
        InfeasibleBudgetError: no choice is within every limit, or the greedy way leads to none.
    """
    layers, losses = _log_losses(options)
    require_feasible(layers, capacities)
    price = prices(layers, capacities)
    corners = [convex_frontier(loss, value) for loss, value in zip(losses, price, strict=True)]
    levels = [-slopes(*layer) for layer in zip(losses, price, corners, strict=True)]
    staircases = Staircases(layers, corners, levels, together=False)
    setting = staircases.highest_within(capacities)
    if setting is None:
        raise rule_cannot_reach(layers, staircases.choice(0), capacities, "no greedy step")

    def gain_per_price(layer: int, option: int, better: int) -> float:
        gain = float(losses[layer][option] - losses[layer][better])
        paid = float(price[layer][better] - price[layer][option])
        return gain / paid if paid > 0 else float("inf")

    choice = LeftOver(layers, losses, list(capacities)).spend(staircases.choice(setting), capacities, gain_per_price)
    return allocated(layers, choice, {"solver": "greedy", "log_energy": _log_energy(losses, choice)})


def energy_product_exact(
    options: Sequence[LayerOptions], capacities: Mapping[str, float], *, effort: Effort | None = None
) -> Allocation:
    """Eq. 2.3: the largest sum of the layers' log energies under several limits at once, one option per layer.

    Args:
        options, capacities: as for `energy_product`.
        effort: the default is `Effort()`; a relative gap of 0 makes it exact.

    Returns:
        The allocation; the note has `log_energy`, and `status`, `gap` and `bound` of the negated sum that is minimised.

    Raises:
        InfeasibleBudgetError: no choice is within every limit.
        RunStoppedError: none was found in time.
    """
    layers, losses = _log_losses(options)
    require_feasible(layers, capacities)
    solution = least_loss(layers, capacities, losses, effort or Effort())
    if solution.choice is None:
        raise out_of_time()
    note = {"solver": "integer_program", "log_energy": _log_energy(losses, solution.choice), **solution.note()}
    return allocated(layers, solution.choice, note)


def _log_losses(options: Sequence[LayerOptions]) -> tuple[list[LayerOptions], list[FloatArray]]:
    """-log(1 - error^2) per option: 0 for dense. Infinite where nothing is kept, so `usable` leaves these out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # log1p: most errors are small, and 1 - error^2 would round them away. + 0: no negative zeros.
        losses = [-np.log1p(-np.square(layer.errors)) + 0.0 for layer in options]
    return usable(options, losses)


def _log_energy(losses: Sequence[FloatArray], choice: Choice) -> float:
    return 0.0 - sum(float(loss[index]) for loss, index in zip(losses, choice, strict=True))
