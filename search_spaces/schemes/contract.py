"""What a scheme is: stages (shapes), factors (one decomposition) and weights (its truncations)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from search_spaces.layers import Layer, Stage

__all__ = ["Factors", "Scheme"]


@dataclass(frozen=True)
class Factors:
    """One full decomposition of a layer, ordered so that truncating is slicing.

    With M the scheme's m x n matrix of the layer and q = min(m, n): M = decoder.T @ encoder.

    Attributes:
        encoder: `(q, n)`, rows sqrt(s_i) v_i^T; the first r rows are rank r's first stage.
        decoder: `(q, m)`, rows sqrt(s_i) u_i^T.
        singular_values: `(q,)`, descending.
    """

    encoder: torch.Tensor
    decoder: torch.Tensor
    singular_values: torch.Tensor

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The tensors by name, for whoever stores them."""
        return {
            "encoder": self.encoder,
            "decoder": self.decoder,
            "singular_values": self.singular_values,
        }


class Scheme(Protocol):
    """A way to stand a cascade of thin stages in for one layer."""

    name: str

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """(m, n) of the matrix that is decomposed."""

    def full_rank(self, layer: Layer) -> int:
        """The rank of the full decomposition."""

    def stages(self, layer: Layer, rank: int) -> tuple[Stage, ...]:
        """The cascade's stages at `rank`; the last one carries the layer's bias."""

    def factorise(self, layer: Layer, weight: torch.Tensor) -> Factors:
        """Decomposes the weight once, for all ranks.

        Args:
            weight: the layer's weight, `layer.dense.weight_shape`, any floating dtype.

        Returns:
            Factors in the weight's dtype; the decomposition itself runs in float64, because it is done once
            and float32 singular vectors of nearly equal values differ between machines.

        Raises:
            ValueError: the weight is not finite.
        """

    def weights(self, layer: Layer, factors: Factors, rank: int) -> tuple[torch.Tensor, ...]:
        """The stages' weights at `rank`: views of the factors, nothing is copied."""

    def dense_weight(self, layer: Layer, factors: Factors, rank: int) -> torch.Tensor:
        """The truncated weight multiplied out, `layer.dense.weight_shape`."""
