"""The table of slices' singular values, beside one plain SVD per slice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.schemes.slice_spectra import (
    divisors,
    residual_norms,
    slice_errors,
    slice_spectra,
    slices_of,
    whitened_slices,
)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """A matrix of any condition and a number of slices that divides its columns."""
    rows, columns = draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 3, 4, 6, 12, 24, 30]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    matrix = torch.randn(rows, columns, dtype=torch.float64)
    if draw(st.booleans()):
        # Rank 1: all other eigenvalues are zero up to rounding, of either sign.
        matrix = torch.outer(matrix[:, 0], matrix[0])
    decay = draw(st.sampled_from([0.0, 1.0, 3.0]))
    matrix = matrix * torch.logspace(0, -decay, rows, dtype=torch.float64).unsqueeze(1)
    scale = draw(st.sampled_from([1e-12, 1.0, 1e12]))
    return matrix * scale, draw(st.sampled_from(divisors(columns)))


def second_moment(columns: int, patches: int) -> torch.Tensor:
    """Of correlated inputs; singular where there are fewer patches than columns."""
    inputs = torch.randn(patches, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    return inputs.T @ inputs / patches


def slice_by_slice(matrix: torch.Tensor, k: int) -> list[torch.Tensor]:
    """The slices, cut by hand."""
    width = matrix.shape[1] // k
    return [matrix[:, i * width : (i + 1) * width] for i in range(k)]


class TestTheSpectra:
    @given(drawn=matrices())
    def test_are_those_of_one_svd_per_slice(self, drawn: tuple[torch.Tensor, int]) -> None:
        matrix, k = drawn
        plain = torch.stack([torch.linalg.svdvals(one) for one in slice_by_slice(matrix, k)])
        largest = torch.linalg.matrix_norm(matrix, 2)
        # Alone, and beside all other slicings, from which it may be summed up.
        for ks in ((k,), divisors(matrix.shape[1])):
            spectra = slice_spectra(matrix, ks)[k]
            assert spectra.dtype == torch.float64
            assert (spectra - plain).abs().max() <= 1e-7 * largest
            assert (spectra.diff(dim=1) <= 0).all()

    @given(drawn=matrices(), patches=st.integers(1, 40))
    def test_with_a_moment_are_those_of_slices_in_the_norm_of_their_own_inputs(
        self, drawn: tuple[torch.Tensor, int], patches: int
    ) -> None:
        matrix, k = drawn
        second = second_moment(matrix.shape[1], patches)
        spectra = slice_spectra(matrix, divisors(matrix.shape[1]), second)[k]
        width = matrix.shape[1] // k
        scale = torch.linalg.matrix_norm(matrix, 2) * second.diagonal().mean().sqrt()
        for i, one in enumerate(slice_by_slice(matrix, k)):
            block = second[i * width : (i + 1) * width, i * width : (i + 1) * width]
            # M C M^T has the squares, without any root of C: its error is the ridge and rounding.
            squares = torch.linalg.eigvalsh(one @ block @ one.T).flip(0)[: spectra.shape[1]]
            assert (spectra[i].square() - squares).abs().max() <= 1e-7 * scale.square() * len(second)

    def test_every_divisor_at_once_from_any_dtype(self) -> None:
        matrix = torch.randn(5, 12).to(torch.bfloat16)
        spectra = slice_spectra(matrix, divisors(12))
        assert {k: tuple(values.shape) for k, values in spectra.items()} == {
            1: (1, 5),
            2: (2, 5),
            3: (3, 4),
            4: (4, 3),
            6: (6, 2),
            12: (12, 1),
        }
        torch.testing.assert_close(spectra[1][0], torch.linalg.svdvals(matrix.double()))

    def test_a_slice_without_inputs_counts_for_nothing(self) -> None:
        second = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
        spectra = slice_spectra(torch.ones(3, 4), (2,), second)[2]
        assert spectra[0, 0] > 1.0
        assert spectra[1, 0] < 1e-3

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused(self, value: float) -> None:
        matrix = torch.zeros(2, 4)
        matrix[1, 3] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            slice_spectra(matrix, (1, 2))


class TestTheErrors:
    @given(drawn=matrices())
    def test_are_each_slices_own_tail(self, drawn: tuple[torch.Tensor, int]) -> None:
        matrix, k = drawn
        spectra = slice_spectra(matrix, (1, k))
        plain = [torch.linalg.svdvals(one).tolist() for one in slice_by_slice(matrix, k)]
        largest = torch.linalg.matrix_norm(matrix, 2).item()
        total = torch.linalg.matrix_norm(matrix).item()
        for j in range(1, len(plain[0]) + 1):
            beyond = [values[j:] for values in plain]
            worst = max((values[0] if values else 0.0 for values in beyond), default=0.0) / largest
            tail = math.sqrt(sum(value**2 for values in beyond for value in values)) / total
            read = {name: slice_errors(spectra[k], spectra[1][0], name)[j - 1] for name in ("max_slice", "bound")}
            assert read["max_slice"] == pytest.approx(worst, abs=1e-7)
            assert read["bound"] == pytest.approx(math.sqrt(k) * worst, abs=1e-6)
            assert slice_errors(spectra[k], spectra[1][0], "frobenius")[j - 1] == pytest.approx(tail, abs=1e-6)

    @pytest.mark.parametrize("measure", ["max_slice", "bound", "frobenius"])
    def test_nothing_is_lost_at_full_rank_or_of_a_zero_weight(self, measure: str) -> None:
        spectra = slice_spectra(torch.randn(4, 6), (1, 2))
        assert slice_errors(spectra[2], spectra[1][0], measure)[-1] == 0.0
        zeros = slice_spectra(torch.zeros(4, 6), (1, 2))
        assert slice_errors(zeros[2], zeros[1][0], measure) == [0.0, 0.0, 0.0]

    def test_other_measures_are_refused(self) -> None:
        for measure in ("operator", "nuclear"):
            with pytest.raises(ValueError, match=measure):
                slice_errors(torch.ones(1, 1), torch.ones(1), measure)


class TestTheResidualsNorm:
    @given(drawn=matrices())
    def test_is_that_of_the_residual_itself(self, drawn: tuple[torch.Tensor, int]) -> None:
        matrix, k = drawn
        norms = residual_norms(slices_of(matrix, k))
        largest = torch.linalg.matrix_norm(matrix, 2)
        for j in range(1, len(norms) + 1):
            residual = []
            for one in slice_by_slice(matrix, k):
                left, values, right = torch.linalg.svd(one, full_matrices=False)
                residual.append(left[:, j:] @ torch.diag(values[j:]) @ right[j:])
            expected = torch.linalg.matrix_norm(torch.cat(residual, dim=1), 2)
            assert (norms[j - 1] - expected).abs() <= 1e-7 * largest

    def test_ends_at_zero(self) -> None:
        assert residual_norms(torch.randn(3, 4, 2, dtype=torch.float64))[-1] == 0.0


class TestSlices:
    def test_are_runs_of_consecutive_columns(self) -> None:
        matrix = torch.arange(12.0).view(2, 6)
        assert torch.equal(slices_of(matrix, 3), torch.stack(slice_by_slice(matrix, 3)))

    def test_without_a_moment_nothing_is_whitened(self) -> None:
        matrix = torch.randn(2, 6, dtype=torch.float64)
        assert torch.equal(whitened_slices(matrix, 2, None), slices_of(matrix, 2))

    def test_a_moment_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(ValueError, match="calibration inputs have NaN"):
            whitened_slices(torch.ones(2, 2, dtype=torch.float64), 1, torch.full((2, 2), math.nan, dtype=torch.float64))

    @given(number=st.integers(1, 600))
    def test_divisors(self, number: int) -> None:
        assert list(divisors(number)) == [k for k in range(1, number + 1) if number % k == 0]
