"""ALDS' global step, exactly: the smallest maximum error over the layers under a budget.

For a given error eps the layers decouple: each needs its cheapest option with error <= eps. What they need together is
a non-increasing step function of eps, so the optimum is the smallest attainable error at which it fits. Liebenwein et
al. (NeurIPS 2021) alternate between ranks and subspaces from random starts instead; no start is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.searches.allocation.capacities import fits, prices, total
from orchestrator.searches.allocation.feasibility import FIRST_FOUND, require_feasible
from orchestrator.searches.allocation.integer_program import Effort, least_loss, out_of_time
from orchestrator.searches.allocation.left_over import LeftOver
from orchestrator.searches.allocation.options import Allocation, FloatArray, LayerOptions, allocated, usable
from orchestrator.searches.allocation.staircases import Staircases

__all__ = ["Frontiers", "minimax"]


class Frontiers:
    """The Pareto frontiers of all layers under one cost: built once, solved for any number of budgets.

    Args:
        options: of every layer; options with an infinite or undefined error or cost are left out.
        cost: name of the cost that is limited.
    """

    def __init__(self, options: Sequence[LayerOptions], cost: str) -> None:
        self._options, errors = usable(options)
        self._cost = cost
        self._errors = errors
        self._staircases = Staircases.of_thresholds(
            self._options, errors, [layer.costs[cost] for layer in self._options]
        )
        self._left_over = LeftOver(self._options, errors, [cost])

    def solve(self, most: float, *, spend: bool = True) -> Allocation:
        """The smallest maximum error whose choice costs at most `most`.

        Args:
            spend: whether what is left of the budget goes, again and again, to the worst layer that can still be
                improved (leximax refinement); the maximum error stays what it is.

        Returns:
            The allocation; its note is the certificate: `error`, the `next_smaller_error` that can be attained (None
            if there is none) with `its_cost`, and the `budget`, which that cost exceeds.

        Raises:
            InfeasibleBudgetError: the cheapest rank of every layer costs more than `most`.
        """
        limit = {self._cost: most}
        require_feasible(self._options, limit)
        setting = self._staircases.highest_within(limit)
        assert setting is not None, "setting 0 is every layer's cheapest option, which fits"
        choice = self._staircases.choice(setting)
        note: dict[str, object] = {
            "solver": "frontiers",
            "proven": True,
            "error": self._largest_error(choice),
            "next_smaller_error": None,
            "its_cost": None,
            "budget": most,
        }
        if setting < self._staircases.highest:
            next_choice = self._staircases.choice(setting + 1)
            note["next_smaller_error"] = self._largest_error(next_choice)
            note["its_cost"] = total(self._options, next_choice, self._cost)
        if spend:
            choice = self._left_over.spend(choice, limit)
        return allocated(self._options, choice, note)

    def _largest_error(self, choice: Sequence[int]) -> float:
        return _largest_error(self._errors, choice)


def minimax(
    options: Sequence[LayerOptions],
    capacities: Mapping[str, float],
    *,
    spend: bool = True,
    effort: Effort | None = None,
) -> Allocation:
    """The allocation of smallest maximum error.

    Under one limit by `Frontiers`. Under several the layers no longer decouple, because the cheapest option by one cost
    need not be so by another: the attainable errors are bisected and an integer program says whether one can be met.

    Args:
        capacities: the most that the layers may cost, by cost name.
        spend: see `Frontiers.solve`.
        effort: for each integer program; the default is `Effort()`.

    Returns:
        The allocation; its note says which `solver`, `error`, `next_smaller_error` and whether all that is `proven`
        (an integer program that ran out of time counts as not met).

    Raises:
        InfeasibleBudgetError: no choice is within every limit.
        RunStoppedError: an integer program found none in time.
    """
    if len(capacities) == 1:
        ((cost, most),) = capacities.items()
        return Frontiers(options, cost).solve(most, spend=spend)
    layers, errors = usable(options)
    require_feasible(layers, capacities)
    search = _Bisection(layers, errors, capacities, effort or Effort())
    choice, smaller = search.run()
    note = {
        "solver": "integer_program",
        "proven": search.proven,
        "error": _largest_error(errors, choice),
        "next_smaller_error": smaller,
    }
    if spend:
        choice = LeftOver(layers, errors, list(capacities)).spend(choice, capacities)
    return allocated(layers, choice, note)


def _largest_error(errors: Sequence[FloatArray], choice: Sequence[int]) -> float:
    return max(float(error[index]) for error, index in zip(errors, choice, strict=True))


class _Bisection:
    """The smallest error threshold that several limits allow."""

    def __init__(
        self,
        options: Sequence[LayerOptions],
        errors: Sequence[FloatArray],
        capacities: Mapping[str, float],
        effort: Effort,
    ) -> None:
        self._options, self._errors, self._capacities = options, errors, capacities
        self._effort = Effort(FIRST_FOUND.relative_gap, effort.time_limit_s)
        self.proven = True

    def run(self) -> tuple[list[int], float | None]:
        """The best choice, and the largest attainable error below its own (None if its own is the smallest)."""
        # No threshold can be met below the smallest error of some layer.
        least = max(float(error.min()) for error in self._errors)
        attainable = np.unique(np.concatenate(self._errors))
        attainable = attainable[attainable >= least]
        low, high = -1, len(attainable) - 1
        best = self._within(float(attainable[high]))
        if best is None:
            raise out_of_time()
        while high - low > 1:
            middle = (low + high) // 2
            found = self._within(float(attainable[middle]))
            if found is None:
                low = middle
            else:
                best = found
                high = int(np.searchsorted(attainable, _largest_error(self._errors, best)))
                low = min(low, high - 1)
        return best, float(attainable[high - 1]) if high > 0 else None

    def _within(self, threshold: float) -> list[int] | None:
        """A choice within the limits and without an error above the threshold."""
        kept: list[NDArray[np.intp]] = [np.flatnonzero(error <= threshold) for error in self._errors]
        below = [layer.only(error <= threshold) for layer, error in zip(self._options, self._errors, strict=True)]
        price = prices(below, self._capacities)
        picked: Sequence[int] | None = [int(np.argmin(values)) for values in price]
        # Most thresholds need no integer program: the cheapest by all costs together often fits.
        if not fits(below, picked or (), self._capacities):
            solution = least_loss(below, self._capacities, price, self._effort)
            self.proven &= solution.choice is not None or solution.status == "infeasible"
            picked = solution.choice
        return None if picked is None else [int(indices[pick]) for indices, pick in zip(kept, picked, strict=True)]
