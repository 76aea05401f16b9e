"""The activation norm: a weight times a root of its inputs' second moment errs as much as the layer's output does.

With C = L L^T the second moment of the patches p, E|(W - V) p|^2 = |(W - V) L|_F^2: the best truncation in the
activation norm is the truncated SVD of W L, with the whitening undone.
"""

from __future__ import annotations

import torch

__all__ = ["RIDGE", "root_of"]

RIDGE = 1e-9
"""What is added to the second moment's diagonal, as a share of its mean: directions that no calibration input has
are then cut first and still come back at full rank. Far above float64's noise, far below what any layer feels."""

_MOST = 1e-3


def root_of(second: torch.Tensor) -> torch.Tensor:
    """A lower triangular L with L L^T = second + a small ridge.

    Args:
        second: `(n, n)`, symmetric and positive semidefinite up to rounding, float64.

    Returns:
        `(n, n)`, float64; the identity where all inputs are zero, so that the weight's own norm decides.

    Raises:
        ValueError: it is not finite, or far from positive semidefinite.
    """
    if not torch.isfinite(second).all():
        raise ValueError("the calibration inputs have NaN or infinite entries")
    scale = second.diagonal().mean()
    identity = torch.eye(len(second), dtype=second.dtype)
    if scale <= 0:
        return identity
    ridge = RIDGE
    while ridge <= _MOST:
        root: torch.Tensor
        root, failed = torch.linalg.cholesky_ex(second + ridge * scale * identity)
        if not failed:
            return root
        ridge *= 10
    raise ValueError("the second moment of the calibration inputs is not positive semidefinite")
