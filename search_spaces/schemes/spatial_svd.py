"""`spatial_svd`: a k x 1 convolution to r channels, then a 1 x k (thesis' scheme 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from search_spaces.error_curves import ErrorCurve
from search_spaces.layers import Layer, Padding, Stage
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank, number
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.decomposition import decompose, spectrum, spectrum_curve
from search_spaces.schemes.whitening import root_of

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

    def ranks(self, layer: Layer) -> range:
        """Up to the smaller side of the matrix."""
        return range(1, min(self.matrix_shape(layer)) + 1)

    def stages(self, layer: Layer, rank: Rank) -> tuple[Stage, ...]:
        """K x 1 to `rank` channels, then 1 x k."""
        dense, rank = layer.dense, number(rank)
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

    def factorise(
        self, layer: Layer, weight: torch.Tensor, moment: Moment | None = None, ranks: Sequence[Rank] | None = None
    ) -> Factors:
        """SVD of the weight folded to (out kw) x (in kh)."""
        return decompose(self._folded(layer, weight), self._root(layer, moment))

    def weights(self, layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, ...]:
        """Encoder rows as k x 1 filters, decoder rows as 1 x k filters."""
        rank = number(rank)
        first, second = self.stages(layer, rank)
        out, _, _, width = self._four_dimensional(layer)
        horizontal = factors.decoder[:rank].view(rank, out, width).transpose(0, 1)
        return factors.encoder[:rank].view(first.weight_shape), horizontal.reshape(second.weight_shape)

    def dense_weight(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """The rank-r approximation of the weight, best in the norm at hand."""
        kept = number(rank)
        out, inputs, height, width = self._four_dimensional(layer)
        folded = (factors.decoder[:kept].T @ factors.encoder[:kept]).view(out, width, inputs, height)
        return folded.permute(0, 2, 3, 1).reshape(layer.dense.weight_shape)

    def encoder_matrix(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """`(r kw, in kh kw)`: every k x 1 filter once for each column of the patch that the 1 x k filter sees."""
        kept = number(rank)
        _, inputs, height, width = self._four_dimensional(layer)
        columns = torch.eye(width, dtype=factors.encoder.dtype)
        filters = factors.encoder[:kept].view(kept, 1, inputs, height, 1) * columns.view(1, width, 1, 1, width)
        return filters.reshape(kept * width, inputs * height * width)

    def error_curve(self, layer: Layer, weight: torch.Tensor, measure: str, moment: Moment | None = None) -> ErrorCurve:
        """From the singular values."""
        values = spectrum(self._folded(layer, weight), self._root(layer, moment))
        return spectrum_curve(self.ranks(layer), values, measure)

    def _folded(self, layer: Layer, weight: torch.Tensor) -> torch.Tensor:
        out, inputs, height, width = self._four_dimensional(layer)
        folded = weight.reshape(out, inputs, height, width).permute(0, 3, 1, 2)
        return folded.reshape(out * width, inputs * height)

    def _root(self, layer: Layer, moment: Moment | None) -> torch.Tensor | None:
        """Of the second moment of the patch's columns, on average.

        The error of the output is a sum over the patch's columns; what they have in common is left out here (exactly
        minimised it has no nested truncations), and made good where the last stage is fitted to the outputs.
        """
        if moment is None:
            return None
        _, inputs, height, width = self._four_dimensional(layer)
        column, side = inputs * height, (inputs, height, width)
        second = moment.second.view(*side, *side).diagonal(dim1=2, dim2=5).mean(-1)
        return root_of(second.reshape(column, column))

    @staticmethod
    def _four_dimensional(layer: Layer) -> tuple[int, int, int, int]:
        """(out, in, kernel height, kernel width), linear layers included."""
        return layer.dense.out_channels, layer.dense.in_channels, *layer.dense.kernel
