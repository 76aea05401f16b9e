"""What every layer loses at every rung of its ladder: what ranks are fitted to a budget by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from search_spaces.fitting import fit_to_budget
from search_spaces.rank_space import LayerRanks, Rank, RankSpace, RankVector, number
from workers.training.contract import Setup

__all__ = ["energy_losses", "fitted_ranks", "rungs_of", "weights_by_layer"]


def energy_losses(setup: Setup, weights: Mapping[str, torch.Tensor]) -> list[list[float]]:
    """The share of each weight's squared norm that a truncation loses, by rung from 1 to dense.

    Args:
        weights: by layer name, `layer.dense.weight_shape`.
    """
    losses = []
    for layer, scheme, ranks in zip(setup.layers, setup.schemes, setup.space.layers, strict=True):
        curve = scheme.error_curve(layer, weights[layer.name].detach().cpu(), "frobenius")
        errors = dict(zip(curve.ranks, curve.errors, strict=True))
        losses.append([*(errors[rank] ** 2 for rank in ranks.offered), 0.0])
    return losses


def weights_by_layer(network: torch.nn.Module, setup: Setup) -> dict[str, torch.nn.Parameter]:
    """The layers' weights in a network of the dense one's architecture."""
    return {layer.name: network.get_parameter(f"{layer.name}.weight") for layer in setup.layers}


def rungs_of(space: RankSpace, ranks: Sequence[Rank | None]) -> list[int]:
    """The rungs of a rank vector; dense, and any rank that does not shrink its layer, is the one above `useful`.

    A number between those of a ladder is the next one up: on the device that the ladder is of it takes as long.
    """
    return [_rung(layer, rank) for layer, rank in zip(space.layers, ranks, strict=True)]


def _rung(layer: LayerRanks, rank: Rank | None) -> int:
    dense = layer.useful + 1
    if rank is None:
        return dense
    if layer.ladder is None and isinstance(rank, int):
        return min(rank, dense)
    if isinstance(rank, int) and all(isinstance(one, int) for one in layer.offered):
        return next((rung for rung, one in enumerate(layer.offered, start=1) if number(one) >= rank), dense)
    return list(layer.offered).index(rank) + 1 if rank in layer.offered else dense


def fitted_ranks(setup: Setup, ranks: RankVector) -> RankVector:
    """Ranks from a search, changed as little as the budget asks for: a search may end a tolerance over it.

    Ranks that stand (`Setup.ranks_stand`) are not changed.

    Raises:
        InfeasibleBudgetError: no rank vector is within the budget.
    """
    if setup.ranks_stand:
        return ranks
    losses = energy_losses(setup, weights_by_layer(setup.network, setup))
    return fit_to_budget(setup.space, setup.budget, losses, rungs_of(setup.space, ranks))
