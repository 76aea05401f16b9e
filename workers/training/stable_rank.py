"""The modified stable rank of BSR (Eo et al., arXiv 2111.15179) and its gradient in closed form.

mSR(W, r) = T2 / T1 with T1 = s_1 + ... + s_r and T2 = s_{r+1} + ... + s_q: small where rank r says all. Its gradient is

    U_tail V_tail^T / T1 - (T2 / T1^2) U_top V_top^T,

which needs no derivative of singular vectors, so that repeated singular values do no harm. (The last line of the
printed eq. 3.6 divides the tail by T2; the line above it, and finite differences, say T1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search_spaces.layers import Layer
from search_spaces.schemes.contract import Scheme
from workers.training.foldings import folded, unfolded

__all__ = ["PenalisedLayer", "StableRank", "StableRankPenalty", "stable_rank"]

EXACT_SIDE = 256
"""Up to this smaller side all singular values are found, from the Gram matrix in float64: a millisecond at 64 x 576."""

OVERSAMPLING = 16
POWER_ITERATIONS = 2

_NOISE = 1e-6
"""Singular values below this share of the largest are rounding; their vectors are arbitrary, and left out."""


@dataclass(frozen=True)
class StableRank:
    """The penalty of one matrix.

    Attributes:
        value: mSR; 0 at full rank and for a zero matrix.
        gradient: `(m, n)`; 0 there. Where the singular values on both sides of the cut are equal, one of the
            subgradients.
        tail_energy: share of the squared singular values that rank r leaves out.
    """

    value: torch.Tensor
    gradient: torch.Tensor
    tail_energy: torch.Tensor


def stable_rank(matrix: torch.Tensor, rank: int, draw: torch.Generator | None = None) -> StableRank:
    """The modified stable rank of `matrix`, `(m, n)`, at `rank`, in the matrix's dtype.

    Args:
        matrix: with a smaller side above 256 only its largest singular values are found, by a randomised SVD: twice
            the rank, and 16 more. Directions beyond those are not penalised.
        rank: at least 1: nothing is divided by an empty sum.
        draw: for the randomised SVD.
    """
    side = min(matrix.shape)
    if rank < 1:
        raise ValueError(f"the modified stable rank needs a rank of at least 1, got {rank}")
    left, values, right = _leading(matrix.detach(), min(side, 2 * rank + OVERSAMPLING), draw)
    top = values[:rank].sum()
    tail = values[rank:].sum()
    if rank >= side or float(top) == 0:
        return StableRank(top * 0, torch.zeros_like(matrix), top * 0)
    kept = torch.where(values > _NOISE * values[0], 1.0, 0.0).to(values.dtype)
    kept[:rank] *= -tail / top.square()
    kept[rank:] /= top
    energy = matrix.detach().square().sum()
    return StableRank(tail / top, (left * kept) @ right, (energy - values[:rank].square().sum()).clamp(min=0) / energy)


def _leading(
    matrix: torch.Tensor, count: int, draw: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U `(m, k)`, s `(k,)` and V^T `(k, n)`: all singular values, or the `count` largest ones of a large matrix."""
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = _leading(matrix.T, count, draw)
        return right.T, values, left.T
    if matrix.shape[0] <= EXACT_SIDE:
        return _all_from_gram(matrix)
    sketch = torch.randn(matrix.shape[1], count, generator=draw).to(matrix)
    basis = torch.linalg.qr(matrix @ sketch)[0]
    for _ in range(POWER_ITERATIONS):  # Halko et al., 2011, algorithm 4.4
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    inner, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ inner, values, right


def _all_from_gram(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A wide matrix' decomposition, on the CPU: starting a GPU's eigensolver takes longer than solving it here.

    Squaring in float64 leaves singular values down to 1e-8 of the largest right, further than float32 has digits.
    """
    wide = matrix.to("cpu", torch.float64)
    squares, left = torch.linalg.eigh(wide @ wide.T)
    values = squares.flip(0).clamp(min=0).sqrt()
    left = left.flip(1)
    right = (left.T @ wide) / values.clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(1)
    return left.to(matrix), values.to(matrix), right.to(matrix)


@dataclass(frozen=True)
class PenalisedLayer:
    """A layer whose stable rank is trained.

    Attributes:
        parameter: its weight in the network.
        rank: that it will be truncated to.
    """

    parameter: torch.Tensor
    layer: Layer
    scheme: Scheme
    rank: int

    def stable_rank(self, draw: torch.Generator) -> StableRank:
        """Of the weight as it is."""
        return stable_rank(folded(self.scheme, self.layer, self.parameter.detach()), self.rank, draw)

    def gradient(self, draw: torch.Generator) -> torch.Tensor:
        """The penalty's gradient, shaped and laid out in memory as the weight is."""
        found = unfolded(self.scheme, self.layer, self.stable_rank(draw).gradient)
        return torch.empty_like(self.parameter).copy_(found)


class StableRankPenalty:
    """Adds the penalty's gradients to those of a network, with subspaces that are found again now and then.

    Between two refreshes a step costs one addition per layer: the last gradient is used again (the thesis refreshes
    every 64 iterations). `begin_epoch` refreshes too, so that training can go on from any epoch.

    Args:
        layers: with their ranks.
        refresh: steps.
    """

    def __init__(self, layers: Sequence[PenalisedLayer], refresh: int) -> None:
        self._layers, self._refresh = layers, refresh
        self._gradients: list[torch.Tensor] = []
        self._steps = 0
        self._strength = 0.0
        self._draw = torch.Generator()

    def begin_epoch(self, strength: float, draw: torch.Generator) -> None:
        """Before the first step of an epoch.

        Args:
            strength: lambda.
            draw: for randomised decompositions.
        """
        self._strength, self._draw, self._steps = strength, draw, 0

    def __call__(self, _step: int) -> None:
        """Adds lambda times the gradients to the parameters' `grad`."""
        if not self._layers:
            return
        if self._steps % self._refresh == 0:
            self._gradients = [one.gradient(self._draw) for one in self._layers]
        self._steps += 1
        task = [one.parameter.grad for one in self._layers if one.parameter.grad is not None]
        torch._foreach_add_(task, self._gradients, alpha=self._strength)

    def totals(self) -> tuple[float, float]:
        """(sum of mSR, mean share of energy beyond the ranks) over the layers, as they are."""
        if not self._layers:
            return 0.0, 0.0
        found = [one.stable_rank(self._draw) for one in self._layers]
        return sum(float(one.value) for one in found), sum(float(one.tail_energy) for one in found) / len(found)
