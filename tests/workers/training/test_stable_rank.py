"""The modified stable rank: its gradient against finite differences in float64, and the cases without one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.layers import Call, Layer, Stage
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.spatial_svd import SpatialSVD
from workers.training.foldings import folded, unfolded
from workers.training.stable_rank import PenalisedLayer, StableRankPenalty, stable_rank


def with_values(values: list[float], shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """A float64 matrix with these singular values."""
    draw = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), generator=draw, dtype=torch.float64))[0] for size in shape
    )
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def reference(matrix: torch.Tensor, rank: int) -> float:
    values = torch.linalg.svdvals(matrix)
    return float(values[rank:].sum() / values[:rank].sum())


def finite_differences(matrix: torch.Tensor, rank: int, step: float = 1e-6) -> torch.Tensor:
    gradient = torch.zeros_like(matrix)
    for place in range(matrix.numel()):
        change = torch.zeros_like(matrix)
        change.view(-1)[place] = step
        gradient.view(-1)[place] = (reference(matrix + change, rank) - reference(matrix - change, rank)) / (2 * step)
    return gradient


SPECTRA = {
    "distinct": [5.0, 3.0, 2.0, 1.0],
    "first two equal": [3.0, 3.0, 2.0, 1.0],
    "middle two equal": [4.0, 3.0, 3.0, 1.0],
    "last two equal": [4.0, 2.0, 1.0, 1.0],
    "nearly rank 1": [9.0, 1e-3, 5e-4, 1e-4],
}


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
@pytest.mark.parametrize(
    ("values", "rank"),
    # Equal on both sides of the cut there is no derivative; see the subgradients.
    [(values, rank) for values in SPECTRA.values() for rank in (1, 2, 3) if values[rank - 1] > values[rank]],
)
def test_gradient_is_that_of_finite_differences(values: list[float], rank: int, shape: tuple[int, int]) -> None:
    matrix = with_values(values + [0.5 * values[-1]] * (min(shape) - 4), shape)
    found = stable_rank(matrix, rank)
    assert float(found.value) == pytest.approx(reference(matrix, rank), rel=1e-9, abs=1e-10)
    # The step must be far below the smallest singular value, at which the tail has a kink.
    expected = finite_differences(matrix, rank, step=1e-6)
    torch.testing.assert_close(found.gradient, expected, rtol=1e-5, atol=2e-7 / min(values))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**16), rows=st.integers(2, 5), columns=st.integers(2, 6), rank=st.integers(1, 5))
def test_gradient_of_random_matrices(seed: int, rows: int, columns: int, rank: int) -> None:
    if rank >= min(rows, columns):
        rank = 1
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(matrix)
    if float(values[-1]) < 1e-3 or float(values[rank - 1] - values[rank]) < 1e-3:
        return
    torch.testing.assert_close(
        stable_rank(matrix, rank).gradient, finite_differences(matrix, rank), rtol=1e-4, atol=1e-5
    )


def test_at_equal_values_on_both_sides_of_the_cut_it_is_a_subgradient() -> None:
    """T1 is convex: T1(B) >= T1(A) + <G, B - A>. With T2 = |A|_* - T1 the gradient tells G."""
    matrix = with_values([3.0, 2.0, 2.0, 1.0], (4, 6))
    found = stable_rank(matrix, 2)
    top, tail = 5.0, 3.0
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    # gradient = (P - G) / T1 - T2 / T1^2 G, P the nuclear norm's.
    largest = (left @ right / top - found.gradient) / (1 / top + tail / top**2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = matrix + torch.randn(4, 6, dtype=torch.float64, generator=draw)
        rise = float(torch.linalg.svdvals(other)[:2].sum()) - top
        assert rise >= float((largest * (other - matrix)).sum()) - 1e-9


@pytest.mark.parametrize("matrix", [torch.zeros(3, 5), torch.zeros(5, 3, dtype=torch.float64)])
def test_a_zero_matrix(matrix: torch.Tensor) -> None:
    found = stable_rank(matrix, 2)
    assert float(found.value) == float(found.tail_energy) == 0.0
    assert torch.equal(found.gradient, matrix)


@pytest.mark.parametrize("rank", [3, 4])
def test_at_full_rank_nothing_is_left_to_train_away(rank: int) -> None:
    found = stable_rank(torch.randn(3, 5), rank)
    assert float(found.value) == 0.0
    assert torch.equal(found.gradient, torch.zeros(3, 5))


def test_rank_0_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a rank of at least 1, got 0"):
        stable_rank(torch.randn(3, 5), 0)


def test_a_matrix_of_its_rank_has_a_finite_gradient_that_only_grows_its_top() -> None:
    matrix = with_values([3.0, 2.0], (5, 6))
    found = stable_rank(matrix, 2)
    assert float(found.value) == pytest.approx(0, abs=1e-7)
    assert float(found.tail_energy) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(found.gradient, torch.zeros_like(matrix), atol=1e-7, rtol=0)


def test_descending_the_gradient_lowers_the_tail() -> None:
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    before = stable_rank(matrix, 3)
    for _ in range(300):
        matrix = matrix - 0.05 * stable_rank(matrix, 3).gradient
    after = stable_rank(matrix, 3)
    assert float(after.value) < 0.6 * float(before.value)
    assert float(after.tail_energy) < 0.5 * float(before.tail_energy)


def test_large_matrices_are_decomposed_by_a_randomised_svd() -> None:
    values = [10 * 0.9**place for place in range(300)]
    matrix = with_values(values, (300, 400)).float()
    found = stable_rank(matrix, 10, torch.Generator().manual_seed(0))
    left, exact, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    top, tail = exact[:10].sum(), exact[10:36].sum()
    assert float(found.value) == pytest.approx(float(tail / top), rel=1e-2)
    expected = left[:, 10:36] @ right[10:36] / top - tail / top**2 * left[:, :10] @ right[:10]
    assert float((found.gradient - expected).norm() / expected.norm()) < 0.35
    cosine = torch.nn.functional.cosine_similarity(found.gradient.flatten(), expected.float().flatten(), dim=0)
    assert float(cosine) > 0.95
    assert float(found.tail_energy) == pytest.approx(float(exact[10:].square().sum() / exact.square().sum()), rel=1e-3)


LAYER = Layer("conv", Stage(3, 8, (3, 3), padding=(1, 1)), False, (Call(4, 4),))


@pytest.mark.parametrize("scheme", [ChannelSVD(), SpatialSVD()], ids=lambda scheme: scheme.name)
def test_folding_is_the_schemes_own(scheme: Scheme) -> None:
    weight = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    matrix = folded(scheme, LAYER, weight)
    assert torch.equal(unfolded(scheme, LAYER, matrix), weight)
    values = scheme.factorise(LAYER, weight).singular_values
    torch.testing.assert_close(torch.linalg.svdvals(matrix), values)


def test_between_refreshes_the_last_gradient_is_used_again() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last))
    penalty = StableRankPenalty([PenalisedLayer(weight, LAYER, ChannelSVD(), 2)], refresh=2)
    penalty.begin_epoch(0.5, torch.Generator())
    added = []
    for step in range(3):
        weight.grad = torch.ones_like(weight)
        penalty(step)
        added.append(weight.grad - 1)
        with torch.no_grad():
            weight.add_(torch.randn(8, 3, 3, 3))
    assert torch.equal(added[0], added[1])
    assert not torch.equal(added[1], added[2])


def test_what_is_added_is_lambda_times_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3))
    penalty = StableRankPenalty([PenalisedLayer(weight, LAYER, SpatialSVD(), 2)], refresh=64)
    penalty.begin_epoch(0.5, torch.Generator())
    weight.grad = torch.zeros_like(weight)
    penalty(0)
    expected = stable_rank(folded(SpatialSVD(), LAYER, weight.detach()), 2)
    torch.testing.assert_close(folded(SpatialSVD(), LAYER, weight.grad), 0.5 * expected.gradient)
    assert penalty.totals() == pytest.approx((float(expected.value), float(expected.tail_energy)))


def test_no_layer_with_a_rank_means_no_penalty() -> None:
    penalty = StableRankPenalty([], refresh=64)
    penalty.begin_epoch(1.0, torch.Generator())
    penalty(0)
    assert penalty.totals() == (0.0, 0.0)
