"""The truncated singular value decomposition that schemes share."""

from __future__ import annotations

import torch

from search_spaces.schemes.contract import Factors

__all__ = ["decompose"]


def decompose(matrix: torch.Tensor) -> Factors:
    """Full SVD of an m x n matrix as balanced factors.

    Computed in float64 and returned in the matrix's dtype. Signs are fixed (the largest entry of every left
    singular vector is positive), so that factors do not depend on the LAPACK at hand; a zero matrix gives zeros.

    Raises:
        ValueError: the matrix has a NaN or an infinity.
    """
    wide = matrix.detach().to(torch.float64)
    if not torch.isfinite(wide).all():
        raise ValueError("the weight has NaN or infinite entries")
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    largest = left.abs().argmax(dim=0, keepdim=True)
    signs = torch.where(left.gather(0, largest) < 0, -1.0, 1.0)
    root = values.sqrt()
    decoder = (left * signs * root).T.contiguous()
    encoder = (right * signs.T * root[:, None]).contiguous()
    return Factors(encoder.to(matrix.dtype), decoder.to(matrix.dtype), values.to(matrix.dtype))
