"""The truncated singular value decomposition that schemes share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from search_spaces.error_curves import ErrorCurve, relative_errors
from search_spaces.schemes.contract import Factors

__all__ = ["decompose", "spectrum", "spectrum_curve"]


def decompose(matrix: torch.Tensor, root: torch.Tensor | None = None) -> Factors:
    """Full SVD of an m x n matrix as balanced factors.

    Computed in float64 and returned in the matrix's dtype. Signs are fixed (the largest entry of every left
    singular vector is positive), so that factors do not depend on the LAPACK at hand; a zero matrix gives zeros.

    Args:
        root: `(n, n)` of `root_of`: truncations are then best for |(M - M_r) root|, and the singular values are those
            of M root. With U its left singular vectors, M_r = U_r U_r^T M: the whitening is undone without an inverse.

    Raises:
        ValueError: the matrix has a NaN or an infinity.
    """
    wide = _checked(matrix)
    left, values, _ = torch.linalg.svd(wide if root is None else wide @ root, full_matrices=False)
    largest = left.abs().argmax(dim=0, keepdim=True)
    left = left * torch.where(left.gather(0, largest) < 0, -1.0, 1.0)
    rows = left.T @ wide
    scale = rows.norm(dim=1, keepdim=True).sqrt()
    encoder = torch.where(scale > 0, rows / scale, 0.0)
    decoder = (left * scale.T).T.contiguous()
    return Factors.of_matrix(*(one.to(matrix.dtype) for one in (encoder, decoder, values)))


def spectrum(matrix: torch.Tensor, root: torch.Tensor | None = None) -> torch.Tensor:
    """Singular values of an m x n matrix (times `root`), `(min(m, n),)`, descending, float64.

    Raises:
        ValueError: the matrix has a NaN or an infinity.
    """
    wide = _checked(matrix)
    values: torch.Tensor = torch.linalg.svdvals(wide if root is None else wide @ root)
    return values


def spectrum_curve(ranks: Sequence[int], values: torch.Tensor, measure: str) -> ErrorCurve:
    """The errors of truncating one matrix, from its singular values."""
    return ErrorCurve(ranks, relative_errors(values.tolist(), measure)[1:], tuple(values.tolist()))


def _checked(matrix: torch.Tensor) -> torch.Tensor:
    wide = matrix.detach().to(torch.float64)
    if not torch.isfinite(wide).all():
        raise ValueError("the weight has NaN or infinite entries")
    return wide
