"""Greedy selection of compression ratios, AIMET's way: one score that every layer must keep when compressed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.searches.allocation.capacities import prices
from orchestrator.searches.allocation.feasibility import require_feasible, rule_cannot_reach
from orchestrator.searches.allocation.left_over import LeftOver
from orchestrator.searches.allocation.options import Allocation, FloatArray, LayerOptions, allocated, usable
from orchestrator.searches.allocation.staircases import Staircases

__all__ = ["score_bisection"]


def score_bisection(
    options: Sequence[LayerOptions], capacities: Mapping[str, float], scores: Sequence[FloatArray]
) -> Allocation:
    """Each layer's cheapest option whose score is at least s; the highest s that fits, then the left-over spent.

    Measured scores are noisy and need not rise with cost. They are made to, by the running maximum from cheap to dear:
    what a dearer option reaches at least, a cheaper one that was measured better reaches for less, so dearer options
    that score no better drop out. A layer whose best score is below s takes that best one. The left-over goes, again
    and again, to the layer whose present score is lowest. Among several limits, cheap is what `prices` says.

    Args:
        options: of every layer.
        capacities: the most that the layers may cost, by cost name.
        scores: `(options,)` per layer: the network's score with this layer alone at this option, more is better; NaN
            where it was not measured. The last one, of the dense layer, is the untouched network's.

    Returns:
        The allocation; the note has `score`, the highest s that fits; None where any does, every layer at its best.

    Raises:
        InfeasibleBudgetError: no measured choice is within every limit, or no score leads to one that is.
        ValueError: a dense layer has no score.
    """
    layers, losses = usable(options, [-np.asarray(score, dtype=np.float64) for score in scores])
    require_feasible(layers, capacities)
    staircases = Staircases.of_thresholds(layers, losses, prices(layers, capacities))
    setting = staircases.highest_within(capacities)
    if setting is None:
        raise rule_cannot_reach(layers, staircases.choice(0), capacities, "no common score")
    # A level is a negated loss, so a score: the one that some layer leaves behind at a higher s.
    note = {"score": float(staircases.levels[setting]) if setting < staircases.highest else None}
    choice = LeftOver(layers, losses, list(capacities)).spend(staircases.choice(setting), capacities)
    return allocated(layers, choice, note)
