"""Singular-value thresholding: its values by the definition, its gradients by finite differences in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.training.singular_value_threshold import singular_value_threshold, soft_rank


def matrix_with(values, rows, columns, seed=0):
    """A matrix with these singular values and random singular vectors, float64."""
    random = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=random, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=random, dtype=torch.float64))[0]
    middle = torch.zeros(rows, columns, dtype=torch.float64)
    middle[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
    return left @ middle @ right


def by_definition(matrix, threshold):
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ torch.diag((values - threshold).clamp_min(0)) @ right


def check_gradients(matrix, threshold):
    matrix = matrix.clone().requires_grad_()
    threshold = torch.tensor(threshold, dtype=torch.float64, requires_grad=True)
    lowered = lambda one, bound: singular_value_threshold(one, bound)[0]  # noqa: E731
    assert torch.autograd.gradcheck(lowered, (matrix, threshold), eps=1e-6, atol=1e-7, rtol=1e-6)
    rank = lambda one, bound: _rank(one, bound)  # noqa: E731
    assert torch.autograd.gradcheck(rank, (matrix, threshold), eps=1e-6, atol=1e-7, rtol=1e-6)


def _rank(matrix, bound):
    """The soft rank with tau fixed, as training has it."""
    values = singular_value_threshold(matrix, bound)[1]
    return torch.tanh(0.7 * torch.relu(values - bound)).sum()


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6), (6, 3), (1, 5), (5, 1)])
def test_it_lowers_every_singular_value_by_the_threshold(rows, columns):
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lowered, values = singular_value_threshold(matrix, torch.tensor(0.6))
    torch.testing.assert_close(lowered, by_definition(matrix, 0.6))
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix))


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 7), (7, 4)])
@pytest.mark.parametrize(
    "values",
    [
        [4.0, 3.0, 2.0, 1.0],
        [3.0, 3.0, 1.0, 1.0],
        [2.0, 2.0, 2.0, 2.0],
        [3.0, 3.0 - 1e-9, 1.0 + 1e-9, 1.0],
        [3.0, 2.0, 0.0, 0.0],
        [1.0, 1.0, 0.5, 0.0],
    ],
    ids=["distinct", "pairs", "all equal", "nearly equal", "rank 2", "below"],
)
def test_gradients_are_the_finite_differences(rows, columns, values):
    check_gradients(matrix_with(values, rows, columns), 1.5)


@given(
    st.lists(st.sampled_from([0.0, 0.4, 0.8, 1.7, 2.5]), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_gradients_hold_for_any_spectrum(values, more_rows, more_columns, seed):
    matrix = matrix_with(sorted(values, reverse=True), len(values) + more_rows, len(values) + more_columns, seed)
    check_gradients(matrix, 1.1)


@pytest.mark.parametrize("values", [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
def test_threshold_0_is_the_identity_with_its_gradient(values):
    matrix = matrix_with(values, 3, 5).requires_grad_()
    lowered, _ = singular_value_threshold(matrix, torch.zeros(()))
    torch.testing.assert_close(lowered, matrix)
    outer = torch.randn(3, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(lowered, matrix, outer)
    torch.testing.assert_close(gradient, outer)


def test_a_negative_threshold_counts_as_0():
    matrix = matrix_with([2.0, 1.0], 2, 3)
    torch.testing.assert_close(singular_value_threshold(matrix, torch.tensor(-0.3))[0], matrix)


def test_where_the_svds_own_gradient_is_infinite_this_one_is_not():
    matrix = torch.eye(3, dtype=torch.float64).requires_grad_()
    weights = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (naive,) = torch.autograd.grad((by_definition(matrix, 0.5) * weights).sum(), matrix)
    assert not torch.isfinite(naive).all()
    lowered, _ = singular_value_threshold(matrix, torch.tensor(0.5, dtype=torch.float64))
    (ours,) = torch.autograd.grad((lowered * weights).sum(), matrix)
    assert torch.isfinite(ours).all()
    assert ours.norm() <= weights.norm() * (1 + 1e-12)  # a proximal operator never lengthens


def test_float32_is_close_to_float64():
    matrix = torch.randn(16, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = singular_value_threshold(matrix, torch.tensor(1.0))[0]
    close = singular_value_threshold(matrix.float(), torch.tensor(1.0))[0]
    torch.testing.assert_close(close.double(), exact, rtol=1e-4, atol=1e-5)


def test_half_precision_comes_back_in_half_precision():
    lowered, values = singular_value_threshold(torch.eye(3, dtype=torch.bfloat16), torch.tensor(0.5))
    assert lowered.dtype == torch.bfloat16
    torch.testing.assert_close(values, torch.ones(3))


def test_a_matrix_with_nan_is_refused():
    with pytest.raises(torch.linalg.LinAlgError):
        singular_value_threshold(torch.full((2, 2), float("nan")), torch.tensor(0.1))


def test_the_soft_rank_counts_the_largest_singular_value_nearly_whole():
    values = torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64)
    assert soft_rank(values, torch.tensor(0.0)).item() == pytest.approx(2 * 0.9640, abs=1e-4)
    assert soft_rank(values, torch.tensor(2.0)).item() == 0
    assert soft_rank(torch.zeros(2), torch.tensor(0.0)).item() == 0
