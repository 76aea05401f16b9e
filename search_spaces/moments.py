"""The second moment of a layer's inputs: what turns the error of its weight into the error of its output."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Moment"]


@dataclass(frozen=True)
class Moment:
    """Mean and second moment of a layer's input patches over a calibration batch.

    A patch is what one output position sees, laid out as `weight.flatten(1)` lays out its columns: n = in kh kw
    numbers (in, for a linear layer), zeros where it reaches into the padding.

    Attributes:
        second: `(n, n)`, the mean of p p^T, float64: float32 sums over millions of patches lose the small eigenvalues.
        mean: `(n,)`, the mean of p, float64.
        patches: how many there were.
    """

    second: torch.Tensor
    mean: torch.Tensor
    patches: int

    def check_finite(self) -> None:
        """Raises ValueError where an entry is NaN or infinite."""
        if not (torch.isfinite(self.second).all() and torch.isfinite(self.mean).all()):
            raise ValueError("the calibration inputs have NaN or infinite entries")
