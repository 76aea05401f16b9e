"""A layer at one rank: its stages' weights, the last one truncated or fitted, and its bias, kept or corrected."""

from __future__ import annotations

import torch

from search_spaces.layers import Layer
from search_spaces.rank_space import Rank
from search_spaces.schemes.contract import Factors, Scheme

__all__ = ["last_bias", "multiplied_out", "stage_weights"]


def stage_weights(scheme: Scheme, layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, ...]:
    """The weights of a cascade's stages: views of the factors."""
    weights = scheme.weights(layer, factors, rank)
    fitted = factors.last_stages.get(rank)
    return weights if fitted is None else (*weights[:-1], fitted)


def last_bias(factors: Factors, rank: Rank, bias: torch.Tensor | None) -> torch.Tensor | None:
    """The bias of a cascade's last stage, `(out,)`: the layer's own plus its correction; None where there is neither.

    Args:
        bias: the layer's.
    """
    correction = factors.bias_corrections.get(rank)
    if bias is None or correction is None:
        return correction if bias is None else bias
    return bias + correction


def multiplied_out(scheme: Scheme, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
    """The weight that the cascade computes, `layer.dense.weight_shape`."""
    fitted = factors.last_stages.get(rank)
    if fitted is None:
        return scheme.dense_weight(layer, factors, rank)
    return (fitted.flatten(1) @ scheme.encoder_matrix(layer, factors, rank)).view(layer.dense.weight_shape)
