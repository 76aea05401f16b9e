"""`channel_svd`: a k x k convolution to r channels, then a 1 x 1 (thesis' scheme 1; ALDS' folding 0 with k = 1)."""

from __future__ import annotations

from dataclasses import replace

import torch

from search_spaces.layers import Layer, Stage
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.decomposition import decompose

__all__ = ["ChannelSVD"]


class ChannelSVD:
    """Matrix: out x (in k k). The first stage carries stride, padding and dilation; a linear layer becomes two."""

    name = "channel_svd"

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """(out, in k k)."""
        return layer.dense.out_channels, layer.dense.parameters // layer.dense.out_channels

    def full_rank(self, layer: Layer) -> int:
        """The smaller side of the matrix."""
        return min(self.matrix_shape(layer))

    def stages(self, layer: Layer, rank: int) -> tuple[Stage, ...]:
        """K x k to `rank` channels, then 1 x 1."""
        dense = layer.dense
        return (
            replace(dense, out_channels=rank),
            Stage(rank, dense.out_channels, linear=dense.linear),
        )

    def factorise(self, layer: Layer, weight: torch.Tensor) -> Factors:
        """SVD of the weight folded to out x (in k k)."""
        return decompose(weight.flatten(1))

    def weights(self, layer: Layer, factors: Factors, rank: int) -> tuple[torch.Tensor, ...]:
        """Encoder rows as k x k filters, decoder columns as the 1 x 1."""
        first, second = self.stages(layer, rank)
        return (
            factors.encoder[:rank].view(first.weight_shape),
            factors.decoder[:rank].T.reshape(second.weight_shape),
        )

    def dense_weight(self, layer: Layer, factors: Factors, rank: int) -> torch.Tensor:
        """The rank-r approximation of the weight, best in the Frobenius norm."""
        return (factors.decoder[:rank].T @ factors.encoder[:rank]).view(layer.dense.weight_shape)
