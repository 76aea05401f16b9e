"""One option per layer, least summed loss, under any number of limits: a multiple-choice knapsack, solved by HiGHS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from orchestrator.searches.allocation.capacities import dense_total, fits
from orchestrator.searches.allocation.options import Choice, FloatArray, LayerOptions
from orchestrator.searches.allocation.pareto import IndexArray, undominated
from search_spaces.errors import RunStoppedError

__all__ = ["Effort", "Solution", "least_loss", "out_of_time"]

# HiGHS stops 1e-6 (absolute) short of the optimum whatever gap is asked for: losses are blown up to this span.
_SPAN = 1e4
# HiGHS lets limits be overrun by 1e-6 (here: of the dense cost). A choice that does is excluded, this many times ...
_EXCLUSIONS = 50
# ... and then all limits are narrowed by a little more than that.
_NARROWER = 2e-6


@dataclass(frozen=True)
class Effort:
    """When to stop.

    Attributes:
        relative_gap: of the loss, to its proven bound; 0 goes on to the optimum. Near it the last tenth of a percent
            can take most of the time: for ResNet-56 (7,000 options) about a second to 1e-3 and minutes to 0.
        time_limit_s: wall-clock seconds; a solution that it cuts short may differ from machine to machine.
    """

    relative_gap: float = 1e-3
    time_limit_s: float = 60.0


@dataclass(frozen=True)
class Solution:
    """What came of it.

    Attributes:
        choice: one option per layer; None if there is none, or none was found in time.
        status: `optimal` (within the gap asked for), `stopped` (not proven) or `infeasible` (proven).
        loss: of the choice, summed over the layers.
        bound: no choice within the limits has a smaller loss; None if nothing was proven.
    """

    choice: tuple[int, ...] | None
    status: Literal["optimal", "stopped", "infeasible"]
    loss: float | None = None
    bound: float | None = None

    @property
    def gap(self) -> float | None:
        """How far the loss may lie above the optimum, relative to the loss (absolute where the loss is 0)."""
        if self.loss is None or self.bound is None:
            return None
        return max(0.0, self.loss - self.bound) / (abs(self.loss) or 1.0)

    def note(self) -> dict[str, object]:
        """For an allocation's note."""
        return {"status": self.status, "loss": self.loss, "gap": self.gap, "bound": self.bound}


def out_of_time() -> RunStoppedError:
    """The error for a solver that found nothing in its time, where something may well be."""
    return RunStoppedError(
        "the integer program found no allocation within the limits in its time; give it more, or widen a limit"
    )


def least_loss(
    options: Sequence[LayerOptions],
    capacities: Mapping[str, float],
    losses: Sequence[FloatArray],
    effort: Effort,
    *,
    apart_from: Sequence[tuple[Choice, int]] = (),
) -> Solution:
    """The choice of least summed loss within every limit; never over one of them, whatever HiGHS tolerates.

    Args:
        losses: `(options,)` per layer, finite.
        apart_from: choices to keep away from, each with the number of layers that must differ from it.
    """
    program = _Program(options, capacities, losses, keep_all=bool(apart_from))
    for choice, layers in apart_from:
        program.exclude(choice, layers)
    for _ in range(_EXCLUSIONS):
        solution = program.solve(effort)
        if solution.choice is None or fits(options, solution.choice, capacities):
            return solution
        program.exclude(solution.choice, 1)
    solution = program.solve(effort, narrower=_NARROWER)
    if solution.choice is None or not fits(options, solution.choice, capacities):
        return Solution(None, "stopped")
    return Solution(solution.choice, "stopped", solution.loss)


class _Program:
    """Variables x[l, j] in {0, 1}: layer l takes option j."""

    def __init__(
        self,
        options: Sequence[LayerOptions],
        capacities: Mapping[str, float],
        losses: Sequence[FloatArray],
        *,
        keep_all: bool,
    ) -> None:
        self._losses = losses
        # A dominated option is never needed, unless better choices are excluded.
        self._kept: list[IndexArray] = [
            np.arange(len(loss))
            if keep_all
            else undominated(loss, [layer.costs[cost] for cost in capacities] or [np.zeros_like(loss)])
            for layer, loss in zip(options, losses, strict=True)
        ]
        self._starts = np.cumsum([0, *(len(kept) for kept in self._kept)])
        lowest = [float(loss.min()) for loss in losses]
        over = np.concatenate([loss[kept] - low for loss, kept, low in zip(losses, self._kept, lowest, strict=True)])
        # Divided before it is multiplied: _SPAN over a subnormal loss would be infinite.
        self._largest = float(over.max()) or 1.0
        self._offset = sum(lowest)
        self._objective = over / self._largest * _SPAN
        units = [dense_total(options, cost) or 1.0 for cost in capacities]
        self._rows: list[Any] = [
            np.concatenate([layer.costs[cost][kept] for layer, kept in zip(options, self._kept, strict=True)]) / unit
            for cost, unit in zip(capacities, units, strict=True)
        ]
        self._most = [most / unit for most, unit in zip(capacities.values(), units, strict=True)]
        self._limits = len(self._rows)

    def exclude(self, choice: Choice, layers: int) -> None:
        """At least so many layers must take another option than in `choice`."""
        row = np.zeros(self._starts[-1])
        for kept, start, index in zip(self._kept, self._starts[:-1], choice, strict=True):
            row[start + np.flatnonzero(kept == index)] = 1.0
        self._rows.append(row)
        self._most.append(len(choice) - layers)

    def solve(self, effort: Effort, *, narrower: float = 0.0) -> Solution:
        most = np.array(self._most, dtype=np.float64)
        most[: self._limits] -= narrower
        layer = np.repeat(np.arange(len(self._kept)), np.diff(self._starts))
        one_each = sparse.csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))
        constraints = [LinearConstraint(one_each, 1, 1)]
        if self._rows:
            constraints.append(LinearConstraint(sparse.csr_array(np.stack(self._rows)), -np.inf, most))
        result = milp(
            self._objective,
            integrality=np.ones(len(layer)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": effort.relative_gap, "time_limit": effort.time_limit_s},
        )
        if result.status == 2:
            return Solution(None, "infeasible")
        if result.x is None:
            return Solution(None, "stopped")
        picked = [int(np.argmax(result.x[a:b])) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)]
        choice = tuple(int(kept[pick]) for kept, pick in zip(self._kept, picked, strict=True))
        loss = sum(float(values[index]) for values, index in zip(self._losses, choice, strict=True))
        dual = result.mip_dual_bound
        bound = None if dual is None or not np.isfinite(dual) else float(dual) / _SPAN * self._largest + self._offset
        return Solution(choice, "optimal" if result.status == 0 else "stopped", loss, bound)
