"""How many singular values of a matrix stand out of its noise: analytic empirical variational Bayes (EVBMF).

Nakajima, Sugiyama, Babacan, Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14 (2013): a singular value survives exactly if it exceeds a threshold that follows from the
noise variance, and the noise variance minimises a function of one variable.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

from orchestrator.searches.allocation.options import FloatArray

__all__ = ["noise_rank"]

_GRID = 64  # the objective may have several minima: the best of a coarse grid is refined


def noise_rank(singular_values: FloatArray, matrix_shape: tuple[int, int]) -> int:
    """The rank that EVBMF gives an m x n matrix, at least 1.

    Args:
        singular_values: of the matrix, descending, float64; up to min(m, n), those left out count as zero.
        matrix_shape: (m, n).
    """
    short, long = sorted(matrix_shape)
    largest = float(singular_values[0]) if len(singular_values) else 0.0
    if largest <= 0:
        return 1
    alpha = short / long
    # The smallest x at which the analytic solution is not zero; 2.5129 sqrt(alpha) is the paper's approximation.
    tau = 2.5129 * math.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    # Relative to the largest; an exact zero would make the logarithm infinite at every variance alike.
    scaled = np.full(short, np.finfo(np.float64).eps)
    scaled[: len(singular_values)] = np.maximum(singular_values / largest, np.finfo(np.float64).eps)
    energies = np.square(scaled)
    variance = _noise_variance(energies, alpha, long, threshold)
    return max(1, int(np.count_nonzero(energies > long * variance * threshold)))


def _noise_variance(energies: FloatArray, alpha: float, long: int, threshold: float) -> float:
    """The variance that minimises the free energy.

    Args:
        energies: squared singular values, `(L,)`, descending, positive.
        alpha: L over M, the longer side `long`.
        threshold: of squared singular values in units of M times the variance.
    """
    short = len(energies)
    # At most so many components can be told from noise.
    most = max(0, min(math.ceil(short / (1 + alpha)) - 1, short) - 1)
    rest = energies[most:] if most + 1 >= short else energies[most + 1 :]
    low = math.log(max(float(rest[0]) / (long * threshold), float(rest.mean()) / long))
    high = max(low, math.log(float(energies.sum()) / (short * long)))

    def free_energy(log_variance: float) -> float:
        return _free_energy(energies / (long * math.exp(log_variance)), alpha, threshold)

    grid = np.linspace(low, high, _GRID)
    best = int(np.argmin([free_energy(float(value)) for value in grid]))
    around = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    if around[0] >= around[1]:
        return math.exp(around[0])
    return math.exp(float(minimize_scalar(free_energy, bounds=around, method="bounded", options={"xatol": 1e-9}).x))


def _free_energy(x: FloatArray, alpha: float, threshold: float) -> float:
    """The paper's free energy, up to a constant and a factor: noise terms below the threshold, signal terms above it.

    Args:
        x: squared singular values over M times the variance.
    """
    signal, noise = x[x > threshold], x[x <= threshold]
    shifted = signal - (1 + alpha)
    tau = 0.5 * (shifted + np.sqrt(np.square(shifted) - 4 * alpha))
    terms = signal - tau + np.log((tau + 1) / signal) + alpha * np.log(tau / alpha + 1)
    return float((noise - np.log(noise)).sum() + terms.sum())
