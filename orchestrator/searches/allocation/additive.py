"""The least sum over layers of measured or estimated losses, with its proof, and allocations that come close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.searches.allocation.feasibility import require_feasible
from orchestrator.searches.allocation.integer_program import Effort, Solution, least_loss, out_of_time
from orchestrator.searches.allocation.options import Allocation, FloatArray, LayerOptions, allocated, usable

__all__ = ["additive", "near_optimal"]


def additive(
    options: Sequence[LayerOptions],
    capacities: Mapping[str, float],
    losses: Sequence[FloatArray] | None = None,
    *,
    effort: Effort | None = None,
) -> Allocation:
    """The allocation of least summed loss under any number of limits, by integer programming, to the gap asked for.

    Args:
        capacities: the most that the layers may cost, by cost name.
        losses: `(options,)` per layer, NaN or infinite where an option is not to be taken; by default the errors.
        effort: the default is `Effort()`; a relative gap of 0 makes it exact.

    Returns:
        The allocation; the note has `loss`, and its proof: `status`, `gap`, `bound`.

    Raises:
        InfeasibleBudgetError: no choice is within every limit.
        RunStoppedError: none was found in time.
        ValueError: a dense layer has no finite loss.
    """
    return near_optimal(options, capacities, 1, losses, effort=effort)[0]


def near_optimal(
    options: Sequence[LayerOptions],
    capacities: Mapping[str, float],
    count: int,
    losses: Sequence[FloatArray] | None = None,
    *,
    apart: int = 1,
    effort: Effort | None = None,
) -> list[Allocation]:
    """Up to `count` allocations of small summed loss, best first, to be scored on what really counts.

    Each is the best among those that differ from every earlier one in at least `apart` layers: at 1 they are the
    `count` best of all, which in a deep network are mere variants of one another; a tenth of the layers makes them
    different proposals. Nothing is drawn at random.

    Args:
        capacities, losses, effort: as for `additive`; the effort is for each allocation.
        apart: layers, at least 1.

    Returns:
        Allocations as from `additive`; fewer than `count` where there are no more or time ran out.

    Raises:
        InfeasibleBudgetError, RunStoppedError: there is not even one, as for `additive`.
        ValueError: a dense layer has no finite loss, or `count` or `apart` is below 1.
    """
    if count < 1 or apart < 1:
        raise ValueError(f"count and apart must be at least 1, got {count} and {apart}")
    layers, values = usable(options, losses)
    require_feasible(layers, capacities)
    found: list[Solution] = []
    while len(found) < count:
        before = [(solution.choice, apart) for solution in found if solution.choice is not None]
        solution = least_loss(layers, capacities, values, effort or Effort(), apart_from=before)
        if solution.choice is None:
            break
        found.append(solution)
    if not found:
        raise out_of_time()
    return [allocated(layers, solution.choice or (), solution.note()) for solution in found]
