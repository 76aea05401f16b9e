"""Refitting: the last stage of a truncated cascade, fitted by least squares to the dense layer's outputs.

With M the layer's weight and E the stages before the last, both as matrices over the input patch p, the last stage D
that minimises E|(M - D E) p|^2 solves D G = M C E^T, where C is the second moment of p and G = E C E^T. It is solved
for the difference from the truncated last stage D0, (D - D0) G = (M - D0 E) C E^T, with a small ridge: where the
calibration inputs say nothing, the truncated stage stays.

Where the bias is corrected (`bias_correction.py`), it takes whatever mean is lost: the last stage fits the rest best
with moments about the mean in place of C.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from search_spaces.layers import Layer
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank
from search_spaces.schemes.contract import Factors, Scheme

__all__ = ["refit"]

LEAST = 1e-12
"""Smallest ridge, as a share of the diagonal: far above float64's rounding.

The ridge is at least the rounding of the weight's dtype: it bounds the fitted weights so that rounding them costs no
more than such a share of the error.
"""

_MOST = 1e-1

_ELSEWHERE = 1e-3
"""How much the inputs' largest moment counts in the diagonal that the ridge is a share of.

A row of E that meets hardly any input has a diagonal that is rounding alone: moments are sums of float32 products.
"""


def refit(
    scheme: Scheme,
    layer: Layer,
    factors: Factors,
    ranks: Iterable[Rank],
    weight: torch.Tensor,
    moment: Moment,
    *,
    with_bias: bool = False,
) -> Factors:
    """Fits the last stage at every rank asked for; the output's mean squared error never rises.

    With a bias that is corrected after it, the error that never rises, and is least, is that of both together.

    Args:
        factors: of this weight by this scheme; may hold last stages already, which stay at the other ranks. Bias
            corrections are left out: they are those of other last stages.
        ranks: where to fit.
        weight: the layer's, `layer.dense.weight_shape`.
        moment: of the layer's inputs.
        with_bias: the bias will be corrected.

    Returns:
        Factors with the same parts and `last_stages`, shaped as the last stages' weights, in the weight's dtype;
        computed in float64, because normal equations square the condition number.

    Raises:
        ValueError: the moment is not finite or far from positive semidefinite.
    """
    moment.check_finite()
    families: dict[tuple[int, ...], list[Rank]] = {}
    for rank in ranks:
        families.setdefault(() if isinstance(rank, int) else rank[:-1], []).append(rank)
    fitted: dict[Rank, torch.Tensor] = {}
    for family in families.values():
        fitted.update(_refit_family(scheme, layer, factors, family, weight.detach(), moment, with_bias))
    return Factors(factors.parts, {**factors.last_stages, **fitted})


@dataclass(frozen=True)
class _Equations:
    """The normal equations of one encoder; those of its first p rows are the leading p of everything here.

    Attributes:
        gram: G, `(P, P)`; with a bias, about the mean, as the target is.
        target: M C E^T, `(out, P)`.
        scale: `(P,)`, roots of the diagonal that the ridge is a share of.
        root: `(P, P)`, lower triangular: its square is G + ridge, both sides divided by `scale`.
    """

    gram: torch.Tensor
    target: torch.Tensor
    scale: torch.Tensor
    root: torch.Tensor

    @classmethod
    def of(
        cls, encoder: torch.Tensor, matrix: torch.Tensor, moment: Moment, ridge: float, with_bias: bool
    ) -> _Equations:
        """Of encoder `(P, n)` and matrix `(out, n)`, float64.

        With a bias, the ridge is a share of the same diagonal: of constant inputs, moments about the mean are nothing
        but the rounding of these.

        Raises:
            ValueError: no ridge makes G positive definite.
        """
        second = moment.second
        image = second @ encoder.T
        gram, target = encoder @ image, matrix @ image
        gram = (gram + gram.T) / 2
        largest = second.diagonal().max().clamp(min=0)
        shares = gram.diagonal().clamp(min=0) + _ELSEWHERE * largest * encoder.square().sum(1)
        scale = torch.where(shares > 0, shares, 1.0).sqrt()
        if with_bias:
            mean = encoder @ moment.mean
            gram, target = gram - torch.outer(mean, mean), target - torch.outer(matrix @ moment.mean, mean)
        scaled = gram / scale / scale[:, None]
        while ridge <= _MOST:
            root, failed = torch.linalg.cholesky_ex(scaled + ridge * torch.eye(len(scaled), dtype=scaled.dtype))
            if not failed:
                return cls(gram, target, scale, root)
            ridge *= 10
        raise ValueError("the second moment of the calibration inputs is not positive semidefinite")

    def solve(self, truncated: torch.Tensor) -> torch.Tensor:
        """The fitted last stage from the truncated one, `(out, p)`."""
        size = truncated.shape[1]
        residual = self.target[:, :size] - truncated @ self.gram[:size, :size]
        scaled = (residual / self.scale[:size]).T
        return truncated + (torch.cholesky_solve(scaled, self.root[:size, :size]).T / self.scale[:size])

    def change(self, truncated: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
        """By how much the mean squared error of every output rises, `(out,)`."""
        size = truncated.shape[1]
        gram = self.gram[:size, :size]
        step = fitted - truncated
        residual = self.target[:, :size] - truncated @ gram
        return (step * (step @ gram - 2 * residual)).sum(1)


def _refit_family(
    scheme: Scheme,
    layer: Layer,
    factors: Factors,
    ranks: Sequence[Rank],
    weight: torch.Tensor,
    moment: Moment,
    with_bias: bool,
) -> dict[Rank, torch.Tensor]:
    """Fitted last stages of ranks whose encoders are mostly parts of the largest one."""
    matrix = weight.flatten(1).double()
    ridge = max(LEAST, torch.finfo(weight.dtype).eps)
    sizes = {rank: scheme.stages(layer, rank)[-1].parameters for rank in ranks}
    largest = scheme.encoder_matrix(layer, factors, max(ranks, key=sizes.__getitem__))
    shared: dict[int, _Equations] = {}
    fitted: dict[Rank, torch.Tensor] = {}
    for rank in ranks:
        encoder = scheme.encoder_matrix(layer, factors, rank)
        blocks = _blocks(encoder, largest, rank)
        whole = encoder if blocks is None else largest
        order = _interleaved(len(encoder), blocks or 1)
        equations = None if blocks is None else shared.get(blocks)
        if equations is None:
            rows = whole[_interleaved(len(whole), blocks or 1)]
            equations = _Equations.of(rows.double(), matrix, moment, ridge, with_bias)
        if blocks is not None:
            shared[blocks] = equations
        last = scheme.weights(layer, factors, rank)[-1]
        fitted[rank] = _fitted(equations, last.flatten(1), order).view(last.shape)
    return fitted


def _fitted(equations: _Equations, truncated: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The last stage `(out, p)` whose columns in `order` are the equations' first p; rounded, and nowhere worse."""
    before = truncated[:, order].double()
    rounded = equations.solve(before).to(truncated.dtype)
    rises = equations.change(before, rounded.double()) >= 0
    best = torch.empty_like(truncated, memory_format=torch.contiguous_format)
    best[:, order] = torch.where(rises[:, None], truncated[:, order], rounded)
    return best


def _blocks(encoder: torch.Tensor, largest: torch.Tensor, rank: Rank) -> int | None:
    """In how many blocks, each cut after some rows, `encoder` is contained in `largest`; None if it is not.

    One where ranks are nested as they are; k where a layer is sliced into k slices of its inputs.
    """
    for blocks in (1,) if isinstance(rank, int) else (1, rank[0]):
        if len(encoder) % blocks or len(largest) % blocks:
            continue
        parts = largest.reshape(blocks, -1, largest.shape[1])[:, : len(encoder) // blocks]
        if torch.equal(encoder, parts.reshape(encoder.shape)):
            return blocks
    return None


def _interleaved(rows: int, blocks: int) -> torch.Tensor:
    """Row numbers, the first of every block before the second of any: smaller encoders come first."""
    return torch.arange(rows).view(blocks, -1).T.reshape(-1)
