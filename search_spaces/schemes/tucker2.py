"""`tucker2`: a 1 x 1, a k x k between few channels, and a 1 x 1 (Kim et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from search_spaces.error_curves import MEASURES, ErrorCurve
from search_spaces.layers import Layer, Stage
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank, number
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.decomposition import decompose
from search_spaces.schemes.slice_spectra import finite, relative
from search_spaces.schemes.whitening import root_of

__all__ = ["Tucker2"]


class Tucker2:
    """Truncated higher-order SVD over the two channel modes of out x in x kh x kw.

    Stages at rank r: a 1 x 1 to r1 channels, the layer's k x k convolution from r1 to r2, a 1 x 1 to out. Both are r,
    as far as the modes go: r1 = min(r, in, out kh kw) and r2 = min(r, out, in kh kw), the unfoldings' smaller sides,
    so that the highest rank gives the weight itself. A 1 x 1 without bias maps padding to padding: it may come first.

    For a 1 x 1 kernel and a linear layer a middle stage would be wasted: there this is `channel_svd`.
    """

    name = "tucker2"

    def __init__(self) -> None:
        self._flat = ChannelSVD()

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        """(out, in kh kw): the unfolding along the output channels."""
        return self._flat.matrix_shape(layer)

    def ranks(self, layer: Layer) -> range:
        """Up to the larger one of the two modes' ranks."""
        return self._flat.ranks(layer) if _is_flat(layer) else range(1, max(_modes(layer)) + 1)

    def stages(self, layer: Layer, rank: Rank) -> tuple[Stage, ...]:
        """1 x 1, k x k, 1 x 1."""
        if _is_flat(layer):
            return self._flat.stages(layer, rank)
        inner, outer = _cut(layer, rank)
        dense = layer.dense
        return (
            Stage(dense.in_channels, inner),
            replace(dense, in_channels=inner, out_channels=outer),
            Stage(outer, dense.out_channels),
        )

    def factorise(
        self, layer: Layer, weight: torch.Tensor, moment: Moment | None = None, ranks: Sequence[Rank] | None = None
    ) -> Factors:
        """SVDs of both unfoldings, and what is left between them.

        Returns:
            `inner`, `(q1, in)`, balanced against the core; `outer`, `(q2, out)`, orthonormal rows; and `core`,
            `(q2, q1, kh, kw)`. Leading blocks of the three are the truncations.

        Raises:
            ValueError: the weight is not finite.
        """
        if _is_flat(layer):
            return self._flat.factorise(layer, weight, moment)
        inner, outer, core, _ = _higher_order_svd(layer, weight, moment)
        parts = {"inner": inner, "outer": outer, "core": core.unflatten(2, layer.dense.kernel)}
        return Factors({name: part.to(weight.dtype) for name, part in parts.items()})

    def weights(self, layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, ...]:
        """The leading blocks of inner, core and outer."""
        if _is_flat(layer):
            return self._flat.weights(layer, factors, rank)
        first, _, last = self.stages(layer, rank)
        inner, core, outer = _truncated(layer, factors, rank)
        return inner.view(first.weight_shape), core, outer.T.reshape(last.weight_shape)

    def dense_weight(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """The truncated tensor multiplied out."""
        if _is_flat(layer):
            return self._flat.dense_weight(layer, factors, rank)
        *_, outer = _truncated(layer, factors, rank)
        return (outer.T @ self.encoder_matrix(layer, factors, rank)).view(layer.dense.weight_shape)

    def encoder_matrix(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        """`(r2, in kh kw)`: the core's filters over all input channels."""
        if _is_flat(layer):
            return self._flat.encoder_matrix(layer, factors, rank)
        inner, core, _ = _truncated(layer, factors, rank)
        return torch.einsum("bahw,ac->bchw", core, inner).flatten(1)

    def error_curve(self, layer: Layer, weight: torch.Tensor, measure: str, moment: Moment | None = None) -> ErrorCurve:
        """From the residual of every rank, folded to out x (in kh kw) and, with a moment, whitened as a whole.

        All measures but `frobenius` are its operator norm: there are no slices. Those are dear: one
        eigendecomposition per rank.

        Raises:
            ValueError: the weight is not finite, or there is no such measure.
        """
        if _is_flat(layer):
            return self._flat.error_curve(layer, weight, measure, moment)
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}; there are {', '.join(MEASURES)}")
        inner, outer, core, values = _higher_order_svd(layer, weight, moment)
        frobenius = measure == "frobenius"
        if moment is None:
            grams = _core_grams(core * inner.norm(dim=1).view(1, -1, 1))
            squares = [gram.trace() if frobenius else _largest(gram) for gram in grams][::-1]
        else:
            residuals = _residuals(finite(weight).flatten(2), inner, outer, core, root_of(moment.second))
            squares = [one.square().sum() if frobenius else _largest(one @ one.T) for one in residuals]
        lost = torch.stack(squares).sqrt()
        # The highest rank is the weight itself: rounding is not an error.
        lost[-1] = 0.0
        norm = torch.linalg.vector_norm(values) if frobenius else values[0]
        return ErrorCurve(self.ranks(layer), relative(lost, norm), tuple(values.tolist()))


def _is_flat(layer: Layer) -> bool:
    return layer.linear or layer.dense.kernel == (1, 1)


def _modes(layer: Layer) -> tuple[int, int]:
    """(q1, q2): the highest ranks of the input and the output mode."""
    dense = layer.dense
    positions = dense.kernel[0] * dense.kernel[1]
    return (
        min(dense.in_channels, dense.out_channels * positions),
        min(dense.out_channels, dense.in_channels * positions),
    )


def _cut(layer: Layer, rank: Rank) -> tuple[int, int]:
    """(r1, r2) at a rank."""
    inner, outer = _modes(layer)
    return min(number(rank), inner), min(number(rank), outer)


def _truncated(layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inner `(r1, in)`, core `(r2, r1, kh, kw)` and outer `(r2, out)`: views."""
    inner, outer = _cut(layer, rank)
    return factors.parts["inner"][:inner], factors.parts["core"][:outer, :inner], factors.parts["outer"][:outer]


def _higher_order_svd(
    layer: Layer, weight: torch.Tensor, moment: Moment | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inner `(q1, in)`, outer `(q2, out)`, core `(q2, q1, kh kw)`, singular values of out x (in kh kw); float64.

    Both modes' bases are left singular vectors of an unfolding times a root of its inputs' second moment: for the
    output mode the whole weight and the whole moment, for the input mode (out kh kw) x in and the channels' second
    moment, averaged over kernel positions. The projection onto left singular vectors needs no whitening undone
    (`decompose`): with X = P_r P_r^T X the inner stage is P_r^T X, and P_r what the core is made of.
    """
    wide = finite(weight).flatten(2)
    out, inputs, positions = wide.shape
    root = channels = None
    if moment is not None:
        root = root_of(moment.second)
        shared = moment.second.view(inputs, positions, inputs, positions).diagonal(dim1=1, dim2=3).mean(-1)
        channels = root_of(shared)
    outer = decompose(wide.flatten(1), root)
    basis = _unit_rows(outer.decoder)
    inner = decompose(wide.transpose(1, 2).reshape(out * positions, inputs), channels)
    core = torch.einsum("bo,aop->bap", basis, inner.decoder.view(-1, out, positions))
    return inner.encoder, basis, core, outer.singular_values


def _unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of norm 1; zero rows stay zero."""
    norms = rows.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0.0)


def _core_grams(core: torch.Tensor) -> Iterator[torch.Tensor]:
    """T_r T_r^T, T_r the core without its leading r x r block: all that the truncation loses; highest r first.

    Args:
        core: `(q2, q1, kh kw)` between orthonormal bases. What is lost is summed up, not what is kept taken from the
            whole: small errors stay exact.
    """
    rows, columns = core.shape[:2]
    beyond = torch.zeros(rows, rows, dtype=core.dtype)
    whole = core.flatten(1) @ core.flatten(1).T
    for rank in range(max(rows, columns), 0, -1):
        if rank < columns:
            beyond = beyond + core[:, rank] @ core[:, rank].T
        gram = beyond.clone()
        gram[rank:, rank:] = whole[rank:, rank:]
        yield gram


def _residuals(
    weight: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor, core: torch.Tensor, root: torch.Tensor
) -> Iterator[torch.Tensor]:
    """What the ranks 1, 2, ... lack, out x (in kh kw) in the basis `outer` and whitened: `(q2, n)` each.

    From one rank to the next the core's block grows by one column and one row: that costs little more than a product
    with `root`, where multiplying every rank out would cost hundreds. One tensor, changed in place.

    Args:
        weight: `(out, in, kh kw)`, float64.
    """
    positions = torch.eye(weight.shape[2], dtype=weight.dtype)

    left = outer @ weight.flatten(1) @ root
    rows, columns = core.shape[:2]
    for rank in range(max(rows, columns)):
        if rank < columns:
            filters = torch.einsum("c,pq->pcq", inner[rank], positions).flatten(1) @ root
            left[:rank] -= core[:rank, rank] @ filters
        if rank < rows:
            left[rank] -= torch.einsum("ap,ac->cp", core[rank, : rank + 1], inner[: rank + 1]).flatten() @ root
        yield left


def _largest(gram: torch.Tensor) -> torch.Tensor:
    """The largest eigenvalue: the square of the operator norm."""
    largest: torch.Tensor = torch.linalg.eigvalsh(gram)[-1]
    return largest
