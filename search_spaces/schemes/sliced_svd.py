"""`sliced_svd`: a grouped convolution, then a 1 x 1: ALDS (Liebenwein et al., 2021), folding 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from search_spaces.error_curves import MEASURES, ErrorCurve
from search_spaces.layers import Layer, Stage
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.slice_spectra import (
    divisors,
    finite,
    relative,
    residual_norms,
    slice_errors,
    slice_spectra,
    slices_of,
    whitened_slices,
)

__all__ = ["SlicedSVD"]


class SlicedSVD:
    """Input channels are cut, in order, into k equal slices; every slice gets a truncated SVD of the same rank j.

    Matrix: out x (in kh kw); rank: `(k, j)`. The first stage is the layer's convolution with k groups and k j outputs,
    the second a 1 x 1 back to out: j (k out + in kh kw) weights. A linear layer offers k = 1 only: torch has no grouped
    `Linear`. Channels may be sliced as finely as one by one.
    """

    name = "sliced_svd"

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """(out, in kh kw), of which every slice has n / k columns."""
        return layer.dense.out_channels, layer.dense.parameters // layer.dense.out_channels

    def ranks(self, layer: Layer) -> tuple[tuple[int, int], ...]:
        """Every (k, j), k ascending, then j up to the smaller side of a slice."""
        out, columns = self.matrix_shape(layer)
        return tuple((k, j) for k in self._ks(layer) for j in range(1, min(out, columns // k) + 1))

    def stages(self, layer: Layer, rank: Rank) -> tuple[Stage, ...]:
        """The layer's convolution to k j channels in k groups, then 1 x 1."""
        k, j = _pair(rank)
        one = layer.dense
        # Spelt out: `replace` takes three times as long, and a network has tens of thousands of ranks.
        sliced = Stage(
            one.in_channels, k * j, one.kernel, one.stride, one.padding, one.dilation, k, one.padding_mode, one.linear
        )
        return sliced, Stage(k * j, one.out_channels, linear=one.linear)

    def factorise(
        self, layer: Layer, weight: torch.Tensor, moment: Moment | None = None, ranks: Sequence[Rank] | None = None
    ) -> Factors:
        """SVDs of all slices, for every k that `ranks` name.

        With U a slice's left singular vectors (times the root of its own block of the second moment, if there is one)
        and M the slice, U_j U_j^T M is its best approximation: no whitening has to be undone. Factors are balanced
        and their signs fixed as `decompose` does it.

        Returns:
            For every k `encoder:k`, `(k, q, n / k)`, and `decoder:k`, `(k, q, out)`, q = min(out, n / k).

        Raises:
            ValueError: the weight is not finite.
        """
        wide = finite(weight.flatten(1))
        ks = self._ks(layer) if ranks is None else sorted({_pair(rank)[0] for rank in ranks})
        parts: dict[str, torch.Tensor] = {}
        for k in ks:
            left, _, _ = torch.linalg.svd(
                whitened_slices(wide, k, None if moment is None else moment.second), full_matrices=False
            )
            largest = left.abs().argmax(dim=1, keepdim=True)
            left = left * torch.where(left.gather(1, largest) < 0, -1.0, 1.0)
            rows = left.mT @ slices_of(wide, k)
            scale = rows.norm(dim=2, keepdim=True).sqrt()
            parts[f"encoder:{k}"] = torch.where(scale > 0, rows / scale, 0.0).to(weight.dtype)
            parts[f"decoder:{k}"] = (left.mT * scale).contiguous().to(weight.dtype)
        return Factors(parts)

    def weights(self, layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, ...]:
        """Every slice's first j encoder rows as filters of its group, decoder columns as the 1 x 1.

        Copies where k > 1: a grouped convolution wants every slice's j filters next to each other.
        """
        first, second = self.stages(layer, rank)
        encoder, decoder = _truncated(factors, rank)
        return encoder.reshape(first.weight_shape), decoder.flatten(0, 1).T.reshape(second.weight_shape)

    def dense_weight(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """Every slice's rank-j approximation, best in the norm at hand, side by side."""
        encoder, decoder = _truncated(factors, rank)
        slices = decoder.mT @ encoder
        return slices.transpose(0, 1).reshape(layer.dense.weight_shape)

    def encoder_matrix(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """`(k j, in kh kw)`, block diagonal: a slice's rows see its own columns alone."""
        encoder, _ = _truncated(factors, rank)
        matrix: torch.Tensor = torch.block_diag(*encoder)
        return matrix

    def error_curve(self, layer: Layer, weight: torch.Tensor, measure: str, moment: Moment | None = None) -> ErrorCurve:
        """The error of every (k, j).

        With a moment, every slice is whitened by its own block of the second moment, for `operator` too, and the
        errors are relative to the norm of the whole weight whitened by the whole. `operator` is dear: one
        eigendecomposition per (k, j).

        Raises:
            ValueError: the weight is not finite, or there is no such measure.
        """
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}; there are {', '.join(MEASURES)}")
        matrix, second = finite(weight.flatten(1)), None if moment is None else moment.second
        if measure == "operator":
            (whole,) = slice_spectra(matrix, (1,), second)[1]
            lost = [residual_norms(whitened_slices(matrix, k, second)) for k in self._ks(layer)]
            return ErrorCurve(self.ranks(layer), relative(torch.cat(lost), whole[0]), tuple(whole.tolist()))
        spectra = slice_spectra(matrix, self._ks(layer), second)
        whole = spectra[1][0]
        errors = [error for slices in spectra.values() for error in slice_errors(slices, whole, measure)]
        return ErrorCurve(self.ranks(layer), errors, tuple(whole.tolist()))

    @staticmethod
    def _ks(layer: Layer) -> tuple[int, ...]:
        return (1,) if layer.linear else divisors(layer.dense.in_channels)


def _pair(rank: Rank) -> tuple[int, int]:
    """The (k, j) of a rank.

    Raises:
        TypeError: it is a number, the rank of another scheme.
    """
    if isinstance(rank, int) or len(rank) != 2:
        raise TypeError(f"expected (k, j) as rank, got {rank}")
    return rank[0], rank[1]


def _truncated(factors: Factors, rank: Rank) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder `(k, j, n / k)` and decoder `(k, j, out)`."""
    k, j = _pair(rank)
    return factors.parts[f"encoder:{k}"][:, :j], factors.parts[f"decoder:{k}"][:, :j]
