"""EVBMF: the rank that stands out of noise."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.searches.allocation.empirical_bayes import noise_rank


def _singular_values(rank: int, shape: tuple[int, int], noise: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    m, n = shape
    low = generator.standard_normal((m, rank)) @ generator.standard_normal((rank, n))
    return np.linalg.svd(low + noise * generator.standard_normal(shape), compute_uv=False)


@pytest.mark.parametrize("shape", [(64, 64), (40, 160), (160, 40), (64, 576)])
@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("noise", [0.01, 0.5, 1.0])
def test_finds_the_rank_under_gaussian_noise(shape, rank, noise):
    assert noise_rank(_singular_values(rank, shape, noise, seed=rank), shape) == rank


@pytest.mark.parametrize("shape", [(200, 200), (100, 400), (60, 600)])
def test_a_singular_value_counts_from_the_threshold_on(shape):
    # Empirical variational Bayes keeps s^2 > M variance (1 + tau) (1 + alpha / tau), with tau = 2.5129 sqrt(alpha).
    short, long = shape
    alpha = short / long
    tau = 2.5129 * np.sqrt(alpha)
    threshold = np.sqrt(long * (1 + tau) * (1 + alpha / tau))
    noise = np.linalg.svd(np.random.default_rng(0).standard_normal(shape), compute_uv=False)
    for share, rank in ((1.03, 2), (0.97, 1)):
        values = np.concatenate([[10 * threshold, share * threshold], noise[2:]])
        assert noise_rank(values, shape) == rank


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(64, 64), (16, 144)])
def test_noise_alone_has_rank_one(shape, seed):
    values = np.linalg.svd(np.random.default_rng(seed).standard_normal(shape), compute_uv=False)
    assert noise_rank(values, shape) == 1


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1e6, 1e150])
def test_does_not_depend_on_the_unit(scale):
    values = _singular_values(5, (48, 96), 0.5, seed=0)
    assert noise_rank(scale * values, (48, 96)) == noise_rank(values, (48, 96)) == 5


@pytest.mark.parametrize("values", [[], [0.0], [0.0] * 8])
def test_a_zero_matrix_has_rank_one(values):
    assert noise_rank(np.array(values, dtype=np.float64), (8, 8)) == 1


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_matrix_of_low_rank_without_noise(rank):
    values = _singular_values(rank, (32, 64), 0.0, seed=1)
    values[rank:] = 0.0
    assert noise_rank(values, (32, 64)) == rank
    assert noise_rank(values[:rank], (32, 64)) == rank


def test_a_single_row_or_number():
    assert noise_rank(np.array([3.0]), (1, 7)) == 1
    assert noise_rank(np.array([3.0]), (1, 1)) == 1
    assert noise_rank(np.array([3.0, 1.0]), (2, 2)) in (1, 2)
