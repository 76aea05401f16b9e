"""Singular-value thresholding with gradients that hold at repeated singular values (LeSS, arXiv 2309.13077).

SVT(X, gamma) = U relu(S - gamma) V^T for X = U S V^T. Autograd through an SVD divides by differences of singular
values; the thresholded matrix itself has bounded derivatives. With f_i = relu(s_i - gamma), G = dL/dSVT, A = U^T G V
and its symmetric and antisymmetric parts A_s and A_a:

    dL/dgamma = - sum over s_i > gamma of A_ii
    dL/dX = U (K1 * A_s + K2 * A_a) V^T + (I - U U^T) G V diag(f/s) V^T + U diag(f/s) U^T G (I - V V^T)
    K1_ij = (f_i - f_j) / (s_i - s_j), f'_i on the diagonal;  K2_ij = (f_i + f_j) / (s_i + s_j)

Of the last two terms the one of X's shorter side vanishes. All factors lie in [0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

__all__ = ["singular_value_threshold", "soft_rank"]


def singular_value_threshold(matrix: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix with every singular value lowered by the threshold, and its singular values as they were.

    At threshold 0 this is the identity, gradient included; a negative threshold counts as 0. Computed in float32 at
    least: there is no SVD in half precision.

    Args:
        matrix: `(m, n)`, differentiable.
        threshold: one number, differentiable.

    Returns:
        `(m, n)` in the matrix's dtype, and the singular values `(min(m, n),)`, descending. Among equal singular values
        only the gradient of functions that treat them alike means anything.

    Raises:
        torch.linalg.LinAlgError: the matrix is not finite.
    """
    with torch.autocast(matrix.device.type, enabled=False):
        wide = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
        lowered, values = _Threshold.apply(wide, threshold.to(wide.dtype))
        return lowered.to(matrix.dtype), values


def soft_rank(values: torch.Tensor, threshold: torch.Tensor, sharpness: float = 2.0) -> torch.Tensor:
    """LeSS' differentiable rank, g_r = sum of tanh(tau relu(s_i - gamma)) with tau = sharpness / s_1.

    It is not the number of singular values above the threshold: at threshold 0 the largest counts 0.964 and small ones
    next to nothing. tau is held constant: the authors choose it from the pretrained weight.

    Args:
        values: `(q,)` singular values, descending.
    """
    scale = sharpness / values.detach()[0].clamp_min(torch.finfo(values.dtype).tiny)
    return torch.tanh(scale * torch.relu(values - threshold)).sum()


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        ctx.save_for_backward(left, values, right, threshold)
        lowered = torch.relu(values - threshold.clamp_min(0))
        return (left * lowered) @ right, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor, outer_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right, threshold = ctx.saved_tensors
        bound = threshold.clamp_min(0)
        # At threshold 0 nothing is lost, not even singular values that are 0.
        kept = (values > bound) | (bound == 0)
        lowered = torch.relu(values - bound)
        ratio = torch.where(values > bound, lowered / values.clamp_min(torch.finfo(values.dtype).tiny), kept.to(values))
        inner = left.T @ outer @ right.T
        between = _between(inner, values, lowered, kept) + torch.diag(outer_values)
        matrix = left @ between @ right
        rows, columns = outer.shape
        if rows > columns:
            beside = outer @ right.T
            matrix = matrix + ((beside - left @ inner) * ratio) @ right
        elif columns > rows:
            beside = left.T @ outer
            matrix = matrix + (left * ratio) @ (beside - inner @ right)
        return matrix, -(inner.diagonal() * kept).sum()


def _between(inner: torch.Tensor, values: torch.Tensor, lowered: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """K1 * A_s + K2 * A_a for A = `inner`, `(q, q)`.

    Two singular values on one side of the threshold have K1 = 1 or 0 exactly, however close they are; of two on
    different sides the difference is at least the part above the threshold, so that the quotient is at most 1.
    """
    both, one = kept[:, None] & kept, kept[:, None] ^ kept
    gap = (values[:, None] - values).abs()
    difference = (lowered[:, None] - lowered).abs()
    first = torch.where(one & (gap > 0), difference / torch.where(gap > 0, gap, 1.0), both.to(values))
    total = values[:, None] + values
    second = torch.where(total > 0, (lowered[:, None] + lowered) / torch.where(total > 0, total, 1.0), both.to(values))
    return first * (inner + inner.T) / 2 + second * (inner - inner.T) / 2
