"""R-VBMF: variational Bayes says each layer's rank; one factor on all of them meets the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.searches.allocation.empirical_bayes import noise_rank
from orchestrator.searches.allocation.feasibility import require_feasible, rule_cannot_reach
from orchestrator.searches.allocation.options import Allocation, FloatArray, LayerOptions, allocated, usable
from orchestrator.searches.allocation.pareto import IndexArray, frontier
from orchestrator.searches.allocation.staircases import Staircases
from search_spaces.errors import ConfigError

__all__ = ["vbmf"]


def vbmf(options: Sequence[LayerOptions], capacities: Mapping[str, float]) -> Allocation:
    """Each layer at rho times its variational Bayes rank, rounded down; the largest rho that fits, which may exceed 1.

    Where ranks are numbers a layer takes its largest rank up to that, at least its smallest, and is left dense beyond
    its largest. Other ranks, (k, j) for one, do not compare with the rank of the whole matrix; there rank r allows
    what r costs as a plain factorisation, the share r (m + n) / (m n) of the dense layer in every limited cost, and
    the layer takes the most accurate option within it.

    Args:
        options: with singular values.
        capacities: the most that the layers may cost, by cost name.

    Returns:
        The allocation; the note has `ranks`, those of variational Bayes by layer name, and `scale`, the rho from which
        on the allocation results.

    Raises:
        ConfigError: a layer has no singular values.
        InfeasibleBudgetError: no choice is within every limit, or no rho leads to one that is.
    """
    layers, errors = usable(options)
    ranks = {layer.name: _rank(layer) for layer in layers}
    require_feasible(layers, capacities)
    rungs, levels = [], []
    for layer, error in zip(layers, errors, strict=True):
        rung, reached_at = _ladder(layer, error, list(capacities))
        rungs.append(rung)
        levels.append(reached_at / ranks[layer.name])
    staircases = Staircases(layers, rungs, levels)
    setting = staircases.highest_within(capacities)
    if setting is None:
        raise rule_cannot_reach(layers, staircases.choice(0), capacities, "no multiple of the variational Bayes ranks")
    scale = float(staircases.levels[setting - 1]) if setting else 0.0
    return allocated(layers, staircases.choice(setting), {"ranks": ranks, "scale": scale})


def _rank(layer: LayerOptions) -> int:
    if not len(layer.singular_values):
        raise ConfigError(
            "search.scheme",
            f"variational Bayes needs the singular values of one matrix per layer, and {layer.name} has none; "
            "use a scheme that decomposes one matrix (channel_svd, spatial_svd)",
        )
    return noise_rank(layer.singular_values, layer.matrix_shape)


def _ladder(layer: LayerOptions, errors: FloatArray, costs: Sequence[str]) -> tuple[IndexArray, FloatArray]:
    """The layer's options from the lowest up, and at which rank of the whole matrix each but the first is reached."""
    numbers = [rank for rank in layer.ranks if isinstance(rank, int)]
    if len(numbers) == len(layer.ranks) - 1:
        # Dense last, one above the largest rank that shrinks the layer.
        reached = np.array([*numbers, max(numbers, default=0) + 1], dtype=np.float64)
        rung = np.argsort(reached, kind="stable")
    else:
        m, n = layer.matrix_shape
        share = np.max([layer.costs[cost] / (float(layer.costs[cost][-1]) or 1.0) for cost in costs], axis=0)
        # Just below a whole number is that number: j (m + n) / (m n) is not exact.
        reached = np.ceil(share * (m * n / (m + n)) - 1e-9)
        rung = frontier(errors, reached)
    return rung, reached[rung[1:]]
