"""`spatial_svd`: a k x 1 convolution to r channels, then a 1 x k (thesis' scheme 2)."""

from __future__ import annotations

from dataclasses import replace

import torch

from search_spaces.layers import Layer, Padding, Stage
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.decomposition import decompose

__all__ = ["SpatialSVD"]


def _axis_padding(padding: Padding, axis: int) -> Padding:
    """The padding along one axis alone."""
    if isinstance(padding, str):
        return padding
    return (padding[0], 0) if axis == 0 else (0, padding[1])


class SpatialSVD:
    """Matrix: (out kw) x (in kh). Each stage strides, pads and dilates along its own axis.

    Where the kernel is one column wide (1 x 1 included) the first stage takes the whole stride and padding: the
    second then computes no more positions than needed.
    """

    name = "spatial_svd"

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """(out kw, in kh)."""
        dense = layer.dense
        return dense.out_channels * dense.kernel[1], dense.in_channels * dense.kernel[0]

    def full_rank(self, layer: Layer) -> int:
        """The smaller side of the matrix."""
        return min(self.matrix_shape(layer))

    def stages(self, layer: Layer, rank: int) -> tuple[Stage, ...]:
        """K x 1 to `rank` channels, then 1 x k."""
        dense = layer.dense
        if dense.kernel[1] == 1:
            return replace(dense, out_channels=rank), Stage(rank, dense.out_channels, linear=dense.linear)
        vertical = replace(
            dense,
            out_channels=rank,
            kernel=(dense.kernel[0], 1),
            stride=(dense.stride[0], 1),
            padding=_axis_padding(dense.padding, 0),
            dilation=(dense.dilation[0], 1),
        )
        horizontal = replace(
            dense,
            in_channels=rank,
            kernel=(1, dense.kernel[1]),
            stride=(1, dense.stride[1]),
            padding=_axis_padding(dense.padding, 1),
            dilation=(1, dense.dilation[1]),
        )
        return vertical, horizontal

    def factorise(self, layer: Layer, weight: torch.Tensor) -> Factors:
        """SVD of the weight folded to (out kw) x (in kh)."""
        out, inputs, height, width = self._four_dimensional(layer)
        folded = weight.reshape(out, inputs, height, width).permute(0, 3, 1, 2)
        return decompose(folded.reshape(out * width, inputs * height))

    def weights(self, layer: Layer, factors: Factors, rank: int) -> tuple[torch.Tensor, ...]:
        """Encoder rows as k x 1 filters, decoder rows as 1 x k filters."""
        first, second = self.stages(layer, rank)
        out, _, _, width = self._four_dimensional(layer)
        horizontal = factors.decoder[:rank].view(rank, out, width).transpose(0, 1)
        return factors.encoder[:rank].view(first.weight_shape), horizontal.reshape(second.weight_shape)

    def dense_weight(self, layer: Layer, factors: Factors, rank: int) -> torch.Tensor:
        """The rank-r approximation of the weight, best in the Frobenius norm."""
        out, inputs, height, width = self._four_dimensional(layer)
        folded = (factors.decoder[:rank].T @ factors.encoder[:rank]).view(out, width, inputs, height)
        return folded.permute(0, 2, 3, 1).reshape(layer.dense.weight_shape)

    @staticmethod
    def _four_dimensional(layer: Layer) -> tuple[int, int, int, int]:
        """(out, in, kernel height, kernel width), linear layers included."""
        return layer.dense.out_channels, layer.dense.in_channels, *layer.dense.kernel
