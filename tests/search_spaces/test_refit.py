"""Specifies refitting: the last stage is the least-squares one, on explicit patches, for every geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces.assembly import assemble
from search_spaces.error_curves import ErrorCurve
from search_spaces.layers import Call, Layer, Stage
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.refit import refit
from search_spaces.schemes.spatial_svd import SpatialSVD
from search_spaces.schemes.truncation import multiplied_out, stage_weights
from search_spaces.survey import survey
from tests.search_spaces.patches import moment_of, patches_of

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Sliced:
    """A linear layer whose inputs are cut into k slices, each truncated by itself: ranks are (k, j)."""

    name = "sliced"

    def matrix_shape(self, layer: Layer) -> tuple[int, int]:
        return layer.dense.out_channels, layer.dense.in_channels

    def ranks(self, layer: Layer) -> Sequence[Rank]:
        return [(slices, rank) for slices in (1, 2, 3) for rank in (1, 2)]

    def stages(self, layer: Layer, rank: Rank) -> tuple[Stage, ...]:
        assert isinstance(rank, tuple)
        kept, dense = rank[0] * rank[1], layer.dense
        return Stage(dense.in_channels, kept, linear=True), Stage(kept, dense.out_channels, linear=True)

    def factorise(
        self, layer: Layer, weight: torch.Tensor, moment: Moment | None = None, ranks: Sequence[Rank] | None = None
    ) -> Factors:
        parts = {}
        for slices in (1, 2, 3):
            for index, part in enumerate(weight.chunk(slices, dim=1)):
                left, values, right = torch.linalg.svd(part, full_matrices=False)
                parts[f"{slices}.{index}"] = torch.cat([left[:, :2].T, (values[:, None] * right)[:2]], 1)
        return Factors(parts)

    def weights(self, layer: Layer, factors: Factors, rank: Rank) -> tuple[torch.Tensor, ...]:
        assert isinstance(rank, tuple)
        out = layer.dense.out_channels
        last = [factors.parts[f"{rank[0]}.{index}"][: rank[1], :out].T for index in range(rank[0])]
        return self.encoder_matrix(layer, factors, rank), torch.cat(last, 1)

    def dense_weight(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        first, last = self.weights(layer, factors, rank)
        return last @ first

    def encoder_matrix(self, layer: Layer, factors: Factors, rank: Rank) -> torch.Tensor:
        assert isinstance(rank, tuple)
        out = layer.dense.out_channels
        return torch.block_diag(*(factors.parts[f"{rank[0]}.{i}"][: rank[1], out:] for i in range(rank[0])))

    def error_curve(self, layer: Layer, weight: torch.Tensor, measure: str, moment: Moment | None = None) -> ErrorCurve:
        raise NotImplementedError


SCHEMES: list[Scheme] = [ChannelSVD(), SpatialSVD()]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)

CONV = Layer("conv", Stage(3, 6, (3, 3), (1, 1), (1, 1)), True, (Call(7, 7),))
LINEAR = Layer("linear", Stage(12, 7, linear=True), True, (Call(1, 1),))


def output_error(
    scheme: Scheme, layer: Layer, factors: Factors, rank: Rank, weight: torch.Tensor, patches: torch.Tensor
) -> float:
    """Mean squared error of the outputs, from the patches themselves in float64."""
    lost = weight.double().flatten(1) - multiplied_out(scheme, layer, factors, rank).double().flatten(1)
    return float((patches.double() @ lost.T).square().sum(1).mean())


def check(scheme: Scheme, layer: Layer, weight: torch.Tensor, patches: torch.Tensor, tolerance: float) -> Factors:
    """Every rank reaches the error of lstsq, which knows no normal equations, and none gets worse."""
    truncated = scheme.factorise(layer, weight)
    fitted = refit(scheme, layer, truncated, scheme.ranks(layer), weight, moment_of(patches))
    wide = patches.double()
    outputs = wide @ weight.double().flatten(1).T
    scale = float(outputs.square().sum(1).mean()) + 1e-300
    for rank in scheme.ranks(layer):
        inner = wide @ scheme.encoder_matrix(layer, truncated, rank).double().T
        best = torch.linalg.lstsq(inner, outputs, driver="gelsd").solution
        least = float((outputs - inner @ best).square().sum(1).mean())
        before = output_error(scheme, layer, truncated, rank, weight, patches)
        after = output_error(scheme, layer, fitted, rank, weight, patches)
        assert after <= before * (1 + tolerance) + tolerance * scale
        assert after <= least * (1 + tolerance) + tolerance * scale
        last = fitted.last_stages[rank]
        assert tuple(last.shape) == scheme.stages(layer, rank)[-1].weight_shape
        assert last.dtype == weight.dtype
        assert last.is_contiguous()
    return fitted


@each_scheme
@given(data=st.data())
def test_convolutions_of_every_geometry(scheme: Scheme, data: st.DataObject, convolutions: st.SearchStrategy) -> None:
    convolution, inputs = data.draw(convolutions)
    convolution, inputs = convolution.double(), inputs.double()
    (layer,) = survey(nn.Sequential(convolution), lambda network: network(inputs[:1])).layers
    check(scheme, layer, convolution.weight.detach(), patches_of(convolution, inputs), 1e-7)


@each_scheme
@given(seed=st.integers(0, 999), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), count=st.integers(1, 12))
def test_linear_layers_with_few_samples_and_many(scheme: Scheme, seed: int, sizes: tuple[int, int], count: int) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(*sizes, dtype=torch.float64)
    layer = Layer("linear", Stage(*sizes, linear=True), True, (Call(1, 1),))
    check(scheme, layer, linear.weight.detach(), torch.randn(count, sizes[0], dtype=torch.float64), 1e-7)


@pytest.mark.parametrize("count", [1, 5, 200])
def test_sliced_layers(count: int) -> None:
    torch.manual_seed(3)
    weight = torch.randn(7, 12, dtype=torch.float64)
    mixed = torch.randn(count, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    check(Sliced(), LINEAR, weight, mixed, 1e-7)


@each_scheme
def test_correlated_inputs_gain_much(scheme: Scheme) -> None:
    torch.manual_seed(0)
    weight = torch.randn(CONV.dense.weight_shape, dtype=torch.float64)
    patches = torch.randn(500, 27, dtype=torch.float64) @ torch.randn(27, 27, dtype=torch.float64) + 1.0
    fitted = check(scheme, CONV, weight, patches, 1e-9)
    truncated = Factors(fitted.parts)
    rank = 3
    after = output_error(scheme, CONV, fitted, rank, weight, patches)
    assert after < 0.95 * output_error(scheme, CONV, truncated, rank, weight, patches)


@each_scheme
def test_the_assembled_network_has_the_smaller_error(scheme: Scheme) -> None:
    torch.manual_seed(1)
    convolution = nn.Conv2d(3, 6, 3, 2, 1, dtype=torch.float64)
    model = nn.Sequential(convolution)
    inputs = torch.rand(20, 3, 9, 9, dtype=torch.float64)
    (layer,) = survey(model, lambda network: network(inputs[:1])).layers
    truncated = scheme.factorise(layer, convolution.weight)
    patches = patches_of(convolution, inputs)
    fitted = refit(scheme, layer, truncated, [2], convolution.weight, moment_of(patches))
    expected = model(inputs)

    @torch.no_grad()
    def error(factors: Factors) -> float:
        return float(
            (assemble(model, [layer], [scheme], (2,), {layer.name: factors})(inputs) - expected).square().mean()
        )

    assert error(fitted) < 0.9 * error(truncated)
    per_position = output_error(scheme, layer, fitted, 2, convolution.weight.detach(), patches)
    assert error(fitted) == pytest.approx(per_position / 6, rel=1e-9)


class TestHardMoments:
    @each_scheme
    def test_zero_inputs_keep_the_truncated_stage(self, scheme: Scheme) -> None:
        weight = torch.randn(CONV.dense.weight_shape)
        truncated = scheme.factorise(CONV, weight)
        fitted = refit(scheme, CONV, truncated, scheme.ranks(CONV), weight, moment_of(torch.zeros(4, 27)))
        for rank in scheme.ranks(CONV):
            assert torch.equal(fitted.last_stages[rank], scheme.weights(CONV, truncated, rank)[-1])

    @each_scheme
    @pytest.mark.parametrize("count", [1, 4])
    def test_few_patches_are_met_exactly(self, scheme: Scheme, count: int) -> None:
        torch.manual_seed(2)
        weight = torch.randn(CONV.dense.weight_shape, dtype=torch.float64)
        patches = torch.randn(count, 27, dtype=torch.float64)
        fitted = check(scheme, CONV, weight, patches, 1e-7)
        assert output_error(scheme, CONV, fitted, 5, weight, patches) < 1e-8

    @each_scheme
    def test_dead_channels(self, scheme: Scheme) -> None:
        torch.manual_seed(4)
        weight = torch.randn(CONV.dense.weight_shape, dtype=torch.float64)
        patches = torch.randn(100, 27, dtype=torch.float64)
        patches[:, 9:18] = 0.0
        check(scheme, CONV, weight, patches, 1e-9)

    @each_scheme
    def test_a_moment_with_the_rounding_of_float32(self, scheme: Scheme) -> None:
        torch.manual_seed(5)
        weight = torch.randn(CONV.dense.weight_shape)
        patches = torch.rand(1000, 5) @ torch.randn(5, 27)  # five of 27 directions
        rounded = Moment((patches.T @ patches / 1000).double(), patches.double().mean(0), 1000)
        truncated = scheme.factorise(CONV, weight)
        fitted = refit(scheme, CONV, truncated, scheme.ranks(CONV), weight, rounded)
        scale = float((patches @ weight.flatten(1).T).square().sum(1).mean())
        for rank in scheme.ranks(CONV):
            before = output_error(scheme, CONV, truncated, rank, weight, patches)
            assert output_error(scheme, CONV, fitted, rank, weight, patches) <= before + 1e-6 * scale

    @each_scheme
    def test_a_zero_weight(self, scheme: Scheme) -> None:
        weight = torch.zeros(CONV.dense.weight_shape)
        truncated = scheme.factorise(CONV, weight)
        fitted = refit(scheme, CONV, truncated, [1, 4], weight, moment_of(torch.randn(50, 27)))
        assert all(not last.any() for last in fitted.last_stages.values())

    @each_scheme
    def test_what_is_not_finite_or_no_moment_is_refused(self, scheme: Scheme) -> None:
        weight = torch.randn(CONV.dense.weight_shape)
        truncated = scheme.factorise(CONV, weight)
        moment = moment_of(torch.randn(50, 27))
        for second in (torch.full((27, 27), float("nan")).double(), torch.full((27, 27), float("inf")).double()):
            with pytest.raises(ValueError, match="NaN or infinite"):
                refit(scheme, CONV, truncated, [2], weight, replace(moment, second=second))
        with pytest.raises(ValueError, match="not positive semidefinite"):
            refit(scheme, CONV, truncated, [2], weight, replace(moment, second=-moment.second))


@each_scheme
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_rounding_to_the_weights_dtype_never_makes_it_worse(
    scheme: Scheme, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(6)
    weight = torch.randn(CONV.dense.weight_shape).to(dtype)
    patches = torch.randn(400, 27) @ torch.randn(27, 27) + 2.0
    truncated = scheme.factorise(CONV, weight)
    fitted = refit(scheme, CONV, truncated, scheme.ranks(CONV), weight, moment_of(patches))
    scale = float((patches @ weight.float().flatten(1).T).square().sum(1).mean())
    for rank in scheme.ranks(CONV):
        first, last = (one.double() for one in stage_weights(scheme, CONV, fitted, rank))
        assert first.dtype == last.dtype
        before = _wide_error(scheme, truncated, rank, weight, patches)
        assert _wide_error(scheme, fitted, rank, weight, patches) <= before * (1 + 1e-9) + 1e-12 * scale
    best = _wide_error(scheme, fitted, len(scheme.ranks(CONV)), weight, patches)
    assert best <= tolerance**2 * scale


def _wide_error(scheme: Scheme, factors: Factors, rank: Rank, weight: torch.Tensor, patches: torch.Tensor) -> float:
    """As `output_error`, the stages multiplied in float64."""
    last = stage_weights(scheme, CONV, factors, rank)[-1].double().flatten(1)
    lost = weight.double().flatten(1) - last @ scheme.encoder_matrix(CONV, factors, rank).double()
    return float((patches.double() @ lost.T).square().sum(1).mean())


@each_scheme
def test_only_the_ranks_asked_for_change(scheme: Scheme) -> None:
    weight = torch.randn(CONV.dense.weight_shape)
    truncated = scheme.factorise(CONV, weight)
    before = {name: tensor.clone() for name, tensor in truncated.parts.items()}
    moment = moment_of(torch.randn(60, 27))
    once = refit(scheme, CONV, truncated, [2], weight, moment)
    twice = refit(scheme, CONV, once, [3], weight, moment)
    assert set(once.last_stages) == {2}
    assert set(twice.last_stages) == {2, 3}
    assert twice.last_stages[2] is once.last_stages[2]
    assert not truncated.last_stages
    assert all(torch.equal(truncated.parts[name], tensor) for name, tensor in before.items())
    assert refit(scheme, CONV, truncated, [], weight, moment).last_stages == {}


@each_scheme
def test_a_rank_is_fitted_alike_alone_and_among_others(scheme: Scheme) -> None:
    weight = torch.randn(CONV.dense.weight_shape, dtype=torch.float64)
    truncated = scheme.factorise(CONV, weight)
    moment = moment_of(torch.randn(300, 27))
    together = refit(scheme, CONV, truncated, scheme.ranks(CONV), weight, moment)
    for rank in scheme.ranks(CONV):
        alone = refit(scheme, CONV, truncated, [rank], weight, moment).last_stages[rank]
        torch.testing.assert_close(alone, together.last_stages[rank], rtol=1e-7, atol=1e-7)
