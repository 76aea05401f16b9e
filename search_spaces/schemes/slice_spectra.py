"""The spectra of a weight's slices: the table from which ALDS (Liebenwein et al., 2021) reads every error.

An m x n matrix, n = in kh kw as `weight.flatten(1)` lays it out, is cut into k equal runs of consecutive input
channels. Everything is float64: eigenvalues of a Gram matrix square the condition of its slice, and float32 would lose
every singular value below 3e-4 of the largest; float64 loses those below 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from search_spaces.error_curves import MEASURES
from search_spaces.schemes.whitening import RIDGE, root_of

__all__ = [
    "divisors",
    "finite",
    "relative",
    "residual_norms",
    "slice_errors",
    "slice_spectra",
    "slices_of",
    "whitened_slices",
]


def divisors(number: int) -> tuple[int, ...]:
    """Every k that divides `number`, ascending."""
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return tuple(sorted({*low, *(number // k for k in low)}))


def finite(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix in float64, detached.

    Raises:
        ValueError: it has a NaN or an infinity.
    """
    wide = matrix.detach().to(torch.float64)
    if not torch.isfinite(wide).all():
        raise ValueError("the weight has NaN or infinite entries")
    return wide


def slices_of(matrix: torch.Tensor, k: int) -> torch.Tensor:
    """An m x n matrix as k slices of consecutive columns, `(k, m, n / k)`, a view."""
    slices: torch.Tensor = matrix.unflatten(1, (k, -1)).transpose(0, 1)
    return slices


def whitened_slices(matrix: torch.Tensor, k: int, second: torch.Tensor | None) -> torch.Tensor:
    """The slices, each times a root of its own diagonal block of the inputs' second moment, `(k, m, n / k)`.

    What slices have in common through correlated inputs is left out: that is what lets them be cut independently. The
    whole second moment's ridge is added to every block, so that a slice whose inputs are always zero counts for
    nothing (alone it would be taken for one without calibration inputs, and its weight's own norm would decide).

    Args:
        matrix: float64.
        second: `(n, n)`, float64; None leaves the slices as they are.

    Raises:
        ValueError: as `root_of`.
    """
    slices = slices_of(matrix, k)
    if second is None:
        return slices
    width = len(second) // k
    ridge = RIDGE * second.diagonal().mean() * torch.eye(width, dtype=second.dtype)
    blocks = second.unflatten(0, (k, width)).unflatten(2, (k, width)).diagonal(dim1=0, dim2=2)
    return slices @ torch.stack([root_of(block + ridge) for block in blocks.movedim(-1, 0)])


def slice_spectra(
    matrix: torch.Tensor, ks: tuple[int, ...], second: torch.Tensor | None = None
) -> Mapping[int, torch.Tensor]:
    """Singular values of all slices, by k: `(k, q)`, q = min(m, n / k), descending, within 1e-7 of the largest.

    They are roots of the eigenvalues of the slices' smaller-side Gram matrices, all slices of a k at once: several
    times as fast as singular values themselves.

    Args:
        matrix: `(m, n)`.
        second: of the inputs; see `whitened_slices`.

    Raises:
        ValueError: the matrix has a NaN or an infinity.
    """
    wide = finite(matrix)
    spectra: dict[int, torch.Tensor] = {}
    finer: torch.Tensor | None = None
    for k in sorted(ks, reverse=True):
        slices = whitened_slices(wide, k, second)
        if 1 in slices.shape[1:]:
            spectra[k] = torch.linalg.vector_norm(slices, dim=(1, 2)).unsqueeze(1)
        elif slices.shape[1] > slices.shape[2]:
            spectra[k] = _roots(slices.mT @ slices)
        else:
            # M M^T of a slice is the sum of those of the finer slices in it; whitened, these leave something out.
            reusable = finer is not None and second is None and len(finer) % k == 0
            finer = finer.unflatten(0, (k, -1)).sum(1) if finer is not None and reusable else slices @ slices.mT
            spectra[k] = _roots(finer)
    return {k: spectra[k] for k in ks}


def _roots(grams: torch.Tensor) -> torch.Tensor:
    """Roots of the eigenvalues, descending; rounding may leave a zero just below zero."""
    values: torch.Tensor = torch.linalg.eigvalsh(grams).clamp(min=0.0).sqrt().flip(-1)
    return values


def slice_errors(spectra: torch.Tensor, whole: torch.Tensor, measure: str) -> list[float]:
    """The relative errors of cutting every slice to the ranks 1 to q; all 0 where the whole is zero.

    Args:
        spectra: `(k, q)`, the slices' singular values, descending.
        whole: `(min(m, n),)`, those of the whole matrix, descending.
        measure: `max_slice`, `bound` or `frobenius`.

    Raises:
        ValueError: another measure; `operator` needs singular vectors, see `residual_norms`.
    """
    if measure not in MEASURES or measure == "operator":
        raise ValueError(f"no measure {measure!r} of singular values alone")
    beyond = torch.nn.functional.pad(spectra[:, 1:], (0, 1))
    if measure == "frobenius":
        lost, norm = beyond.square().sum(0).flip(0).cumsum(0).flip(0).sqrt(), torch.linalg.vector_norm(whole)
    else:
        factor = math.sqrt(len(spectra)) if measure == "bound" else 1.0
        lost, norm = factor * beyond.amax(0), whole[0]
    return relative(lost, norm)


def relative(lost: torch.Tensor, norm: torch.Tensor) -> list[float]:
    """What is lost as shares of a norm; a zero matrix loses nothing."""
    shares: list[float] = (lost / norm if norm > 0 else torch.zeros_like(lost)).tolist()
    return shares


def residual_norms(slices: torch.Tensor) -> torch.Tensor:
    """The operator norm of [R_1 ... R_k], all slices cut to the ranks 1 to q, `(q,)`, float64.

    With slice i = U_i S_i V_i^T, the residual's Gram matrix is the sum over slices of U_tail S_tail^2 U_tail^T: going
    down from the full rank adds k columns to U_tail S_tail at a time. The smaller side's Gram matrix serves.

    Args:
        slices: `(k, m, n / k)`, float64.
    """
    left, values, _ = torch.linalg.svd(slices, full_matrices=False)
    norms = torch.zeros(values.shape[1], dtype=slices.dtype)
    if len(slices) == 1:
        norms[:-1] = values[0, 1:]
        return norms
    # (q, m, k): what every slice loses with its j-th singular value.
    scaled = (left * values.unsqueeze(1)).permute(2, 1, 0)
    rows = slices.shape[1]
    gram = torch.zeros(rows, rows, dtype=slices.dtype)
    for kept in range(len(scaled) - 1, 0, -1):
        gram = gram + scaled[kept] @ scaled[kept].T
        small = gram
        if (len(scaled) - kept) * len(slices) < rows:
            tail = scaled[kept:].transpose(0, 1).flatten(1)
            small = tail.T @ tail
        norms[kept - 1] = torch.linalg.eigvalsh(small)[-1].sqrt()
    return norms
