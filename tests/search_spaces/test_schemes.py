"""Every scheme: best approximations, cascades that compute them, for every geometry of convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces.assembly import assemble
from search_spaces.errors import ConfigError
from search_spaces.layers import Call, Layer, Stage
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.registry import schemes
from search_spaces.survey import survey

SCHEMES = [schemes().get(name, "search.scheme") for name in ("channel_svd", "spatial_svd")]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

CONV = Layer("conv", Stage(3, 6, (3, 2), (1, 1), (1, 0)), True, (Call(7, 7),))
LINEAR = Layer("linear", Stage(5, 4, linear=True), True, (Call(1, 1),))


def _folded(scheme: Scheme, layer: Layer, weight: torch.Tensor) -> np.ndarray:
    """The matrix whose truncated SVD the scheme takes, folded by numpy."""
    out, inputs, height, width = layer.dense.out_channels, layer.dense.in_channels, *layer.dense.kernel
    four = weight.double().numpy().reshape(out, inputs, height, width)
    if scheme.name == "channel_svd":
        return four.reshape(out, -1)
    return four.transpose(0, 3, 1, 2).reshape(out * width, inputs * height)


class TestCascadesComputeTheTruncatedWeight:
    """The assembled network does what the dense one would with the truncated weight."""

    @each_scheme
    @given(data=st.data())
    def test_convolutions(self, scheme: Scheme, data: st.DataObject, convolutions: st.SearchStrategy) -> None:
        convolution, inputs = data.draw(convolutions)
        dtype, tolerance = data.draw(st.sampled_from([(torch.float32, 1e-4), (torch.float64, 1e-10)]))
        self._check(scheme, convolution.to(dtype), inputs.to(dtype), data.draw(st.floats(0, 1)), tolerance)

    @each_scheme
    @given(sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)), bias=st.booleans(), share=st.floats(0, 1))
    def test_linear_layers(self, scheme: Scheme, sizes: tuple[int, int], bias: bool, share: float) -> None:
        linear = nn.Linear(*sizes, bias=bias, dtype=torch.float64)
        self._check(scheme, linear, torch.randn(2, 3, sizes[0], dtype=torch.float64), share, 1e-10)

    def _check(self, scheme: Scheme, module: nn.Module, inputs: torch.Tensor, share: float, tolerance: float) -> None:
        model = nn.Sequential(module)
        (layer,) = survey(model, lambda network: network(inputs[:1])).layers
        factors = scheme.factorise(layer, module.weight)
        full = len(scheme.ranks(layer))
        rank = 1 + int(share * (full - 1))
        expected = model(inputs)
        scale = expected.abs().max() + 1.0
        at_full_rank = assemble(model, [layer], [scheme], (full,), {layer.name: factors})
        assert (at_full_rank(inputs) - expected).abs().max() <= tolerance * scale
        truncated = assemble(model, [layer], [scheme], (rank,), {layer.name: factors})
        with torch.no_grad():
            module.weight.copy_(scheme.dense_weight(layer, factors, rank))
        assert (truncated(inputs) - model(inputs)).abs().max() <= tolerance * scale


class TestTruncationIsBest:
    """Eckart and Young: nothing of the same rank is nearer in the Frobenius norm."""

    @each_scheme
    @pytest.mark.parametrize("layer", [CONV, LINEAR], ids=["conv", "linear"])
    def test_the_error_is_numpys(self, scheme: Scheme, layer: Layer) -> None:
        weight = torch.randn(layer.dense.weight_shape, dtype=torch.float64)
        factors = scheme.factorise(layer, weight)
        values = np.linalg.svd(_folded(scheme, layer, weight), compute_uv=False)
        np.testing.assert_allclose(factors.singular_values.numpy(), values, rtol=1e-10)
        for rank in range(1, len(scheme.ranks(layer)) + 1):
            truncated = scheme.dense_weight(layer, factors, rank)
            tail = np.sqrt(np.sum(values[rank:] ** 2))
            assert torch.linalg.norm(weight - truncated).item() == pytest.approx(tail, rel=1e-9, abs=1e-9)
            assert np.linalg.matrix_rank(_folded(scheme, layer, truncated), tol=1e-9) == rank

    @each_scheme
    def test_factors_are_balanced(self, scheme: Scheme) -> None:
        factors = scheme.factorise(CONV, torch.randn(CONV.dense.weight_shape))
        torch.testing.assert_close(factors.encoder.norm(dim=1), factors.singular_values.sqrt())
        torch.testing.assert_close(factors.decoder.norm(dim=1), factors.singular_values.sqrt())

    @each_scheme
    def test_signs_do_not_depend_on_the_library(self, scheme: Scheme) -> None:
        factors = scheme.factorise(CONV, torch.randn(CONV.dense.weight_shape))
        largest = factors.decoder.gather(1, factors.decoder.abs().argmax(dim=1, keepdim=True))
        assert (largest > 0).all()


class TestStages:
    """What stands for a layer."""

    def test_channel_svd_is_a_thin_convolution_and_a_1_x_1(self) -> None:
        dense = Stage(3, 6, (3, 3), (2, 2), (1, 1), (1, 1), padding_mode="reflect")
        layer = Layer("conv", dense, False, (Call(8, 8),))
        first, second = SCHEMES[0].stages(layer, 2)
        assert first == Stage(3, 2, (3, 3), (2, 2), (1, 1), (1, 1), padding_mode="reflect")
        assert second == Stage(2, 6)

    def test_spatial_svd_divides_the_axes(self) -> None:
        layer = Layer("conv", Stage(3, 6, (3, 5), (2, 1), (1, 2), (1, 2)), False, (Call(9, 9),))
        first, second = SCHEMES[1].stages(layer, 2)
        assert first == Stage(3, 2, (3, 1), (2, 1), (1, 0), (1, 1))
        assert second == Stage(2, 6, (1, 5), (1, 1), (0, 2), (1, 2))

    def test_spatial_svd_of_a_strided_1_x_1_strides_first(self) -> None:
        layer = Layer("conv", Stage(3, 6, (1, 1), (2, 2)), False, (Call(8, 8),))
        first, second = SCHEMES[1].stages(layer, 2)
        assert first == Stage(3, 2, (1, 1), (2, 2))
        assert second == Stage(2, 6)

    @pytest.mark.parametrize(("scheme", "full"), list(zip(SCHEMES, (6, 9), strict=True)), ids=["channel", "spatial"])
    def test_full_rank(self, scheme: Scheme, full: int) -> None:
        # 3 -> 6 channels, 3 x 2: channel 6 x 18, spatial (6 * 2) x (3 * 3).
        assert len(scheme.ranks(CONV)) == full
        assert len(scheme.ranks(LINEAR)) == 4

    @each_scheme
    def test_weights_are_views_of_the_factors(self, scheme: Scheme) -> None:
        for layer in (CONV, LINEAR):
            factors = scheme.factorise(layer, torch.randn(layer.dense.weight_shape))
            stored = {factors.encoder.untyped_storage().data_ptr(), factors.decoder.untyped_storage().data_ptr()}
            weights = scheme.weights(layer, factors, 2)
            assert {weight.untyped_storage().data_ptr() for weight in weights} == stored
            shapes = [stage.weight_shape for stage in scheme.stages(layer, 2)]
            assert [tuple(weight.shape) for weight in weights] == shapes


class TestHardWeights:
    """Weights that a decomposition could trip over."""

    @each_scheme
    def test_zero_stays_zero(self, scheme: Scheme) -> None:
        factors = scheme.factorise(CONV, torch.zeros(CONV.dense.weight_shape))
        for tensor in factors.tensors().values():
            assert torch.equal(tensor, torch.zeros_like(tensor))

    @each_scheme
    def test_a_rank_deficient_weight_is_exact_from_its_rank_on(self, scheme: Scheme) -> None:
        weight = torch.ones(CONV.dense.weight_shape, dtype=torch.float64)
        factors = scheme.factorise(CONV, weight)
        torch.testing.assert_close(scheme.dense_weight(CONV, factors, 1), weight)
        torch.testing.assert_close(scheme.dense_weight(CONV, factors, 5), weight)

    @each_scheme
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_not_finite_is_refused(self, scheme: Scheme, value: float) -> None:
        weight = torch.zeros(CONV.dense.weight_shape)
        weight[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            scheme.factorise(CONV, weight)

    @each_scheme
    def test_half_precision_keeps_its_dtype_and_its_accuracy(self, scheme: Scheme) -> None:
        weight = torch.randn(CONV.dense.weight_shape).to(torch.bfloat16)
        factors = scheme.factorise(CONV, weight)
        assert {tensor.dtype for tensor in factors.tensors().values()} == {torch.bfloat16}
        rebuilt = scheme.dense_weight(CONV, factors, len(scheme.ranks(CONV))).float()
        # Two roundings of 2^-9 each.
        assert torch.linalg.norm(rebuilt - weight.float()) < 0.02 * torch.linalg.norm(weight.float())

    @each_scheme
    def test_the_weight_itself_is_left_alone(self, scheme: Scheme) -> None:
        weight = nn.Parameter(torch.randn(CONV.dense.weight_shape))
        before = weight.detach().clone()
        factors = scheme.factorise(CONV, weight)
        assert torch.equal(weight, before)
        assert not factors.encoder.requires_grad


def test_the_registry_knows_the_schemes() -> None:
    assert {"channel_svd", "spatial_svd"} <= set(schemes().names())
    with pytest.raises(ConfigError, match=r"unknown scheme 'chanel_svd'; did you mean 'channel_svd'\?"):
        schemes().get("chanel_svd", "search.scheme")
