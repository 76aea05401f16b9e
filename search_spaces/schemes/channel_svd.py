"""`channel_svd`: a k x k convolution to r channels, then a 1 x 1 (thesis' scheme 1; ALDS' folding 0 with k = 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from search_spaces.error_curves import ErrorCurve
from search_spaces.layers import Layer, Stage
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank, number
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.decomposition import decompose, spectrum, spectrum_curve
from search_spaces.schemes.whitening import root_of

__all__ = ["ChannelSVD"]


class ChannelSVD:
    """Matrix: out x (in k k). The first stage carries stride, padding and dilation; a linear layer becomes two."""

    name = "channel_svd"

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """(out, in k k)."""
        return layer.dense.out_channels, layer.dense.parameters // layer.dense.out_channels

    def ranks(self, layer: Layer) -> range:
        """Up to the smaller side of the matrix."""
        return range(1, min(self.matrix_shape(layer)) + 1)

    def stages(self, layer: Layer, rank: Rank) -> tuple[Stage, ...]:
        """K x k to `rank` channels, then 1 x 1."""
        dense, rank = layer.dense, number(rank)
        return (
            replace(dense, out_channels=rank),
            Stage(rank, dense.out_channels, linear=dense.linear),
        )

    def factorise(
        self, layer: Layer, weight: torch.Tensor, moment: Moment | None = None, ranks: Sequence[Rank] | None = None
    ) -> Factors:
        """SVD of the weight folded to out x (in k k)."""
        return decompose(weight.flatten(1), self._root(moment))

    def weights(self, layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, ...]:
        """Encoder rows as k x k filters, decoder columns as the 1 x 1."""
        first, second = self.stages(layer, rank)
        return (
            factors.encoder[: number(rank)].view(first.weight_shape),
            factors.decoder[: number(rank)].T.reshape(second.weight_shape),
        )

    def dense_weight(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """The rank-r approximation of the weight, best in the norm at hand."""
        kept = number(rank)
        return (factors.decoder[:kept].T @ factors.encoder[:kept]).view(layer.dense.weight_shape)

    def encoder_matrix(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """`(r, in k k)`: the encoder's rows."""
        return factors.encoder[: number(rank)]

    def error_curve(self, layer: Layer, weight: torch.Tensor, measure: str, moment: Moment | None = None) -> ErrorCurve:
        """From the singular values."""
        return spectrum_curve(self.ranks(layer), spectrum(weight.flatten(1), self._root(moment)), measure)

    @staticmethod
    def _root(moment: Moment | None) -> torch.Tensor | None:
        return None if moment is None else root_of(moment.second)
