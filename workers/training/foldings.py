"""A layer's weight as the one matrix whose singular values a scheme cuts off, and back."""

from __future__ import annotations

import torch

from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.schemes.contract import Scheme

__all__ = ["folded", "require_foldable", "unfolded"]

FOLDABLE = ("channel_svd", "spatial_svd")


def require_foldable(scheme: Scheme, method: str) -> None:
    """Only schemes that truncate one matrix have what mSR and nuclear norms are about.

    Raises:
        ConfigError: another scheme.
    """
    if scheme.name not in FOLDABLE:
        raise ConfigError(
            "search.scheme", f"{method} trains singular values of one matrix a layer; {scheme.name} has others, "
            f"take {' or '.join(FOLDABLE)}"
        )  # fmt: skip


def folded(scheme: Scheme, layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """The weight as the scheme's matrix, `(m, n)`: out x (in kh kw), or (out kw) x (in kh) for `spatial_svd`."""
    if scheme.name != "spatial_svd" or layer.linear:
        return weight.flatten(1)
    return weight.permute(0, 3, 1, 2).reshape(scheme.matrix_shape(layer))


def unfolded(scheme: Scheme, layer: Layer, matrix: torch.Tensor) -> torch.Tensor:
    """A matrix `(m, n)` as a weight, `layer.dense.weight_shape`."""
    if scheme.name != "spatial_svd" or layer.linear:
        return matrix.reshape(layer.dense.weight_shape)
    out, inputs, height, width = layer.dense.weight_shape
    return matrix.view(out, width, inputs, height).permute(0, 2, 3, 1)
