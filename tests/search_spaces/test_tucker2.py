"""`tucker2`: higher-order SVD of both channel modes, its cascades, errors, and the activation norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces.assembly import assemble
from search_spaces.error_curves import MEASURES
from search_spaces.layers import Call, Layer, Stage
from search_spaces.moments import Moment
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.registry import schemes
from search_spaces.schemes.tucker2 import Tucker2
from search_spaces.schemes.whitening import root_of
from search_spaces.survey import survey

SCHEME = Tucker2()
CONV = Layer("conv", Stage(4, 6, (3, 2), (1, 1), (1, 0)), True, (Call(7, 7),))
NARROW = Layer("narrow", Stage(7, 3, (2, 2)), True, (Call(7, 7),))
STEM = Layer("stem", Stage(1, 9, (2, 2)), False, (Call(7, 7),))
FLAT = Layer("flat", Stage(4, 6, (1, 1), (2, 2)), True, (Call(7, 7),))
LINEAR = Layer("linear", Stage(5, 4, linear=True), True, (Call(1, 1),))
LAYERS = (CONV, NARROW, STEM, FLAT, LINEAR)
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
each_convolution = pytest.mark.parametrize("layer", LAYERS[:3], ids=lambda layer: layer.name)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def weight_of(layer: Layer, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layer.dense.weight_shape, dtype=torch.float64, generator=generator)


def patches_of(layer: Layer, count: int) -> torch.Tensor:
    """Correlated input patches, `(count, n)`."""
    generator = torch.Generator().manual_seed(1)
    columns = SCHEME.matrix_shape(layer)[1]
    mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    return torch.randn(count, columns, dtype=torch.float64, generator=generator) @ mixing + 0.5


def moment_of(patches: torch.Tensor) -> Moment:
    return Moment(patches.T @ patches / len(patches), patches.mean(0), len(patches))


def truncated_by_numpy(weight: torch.Tensor, rank: int) -> np.ndarray:
    """HOSVD as the textbook has it: project both channel modes onto their leading singular vectors."""
    tensor = weight.numpy()
    out, inputs = tensor.shape[:2]
    left = np.linalg.svd(tensor.reshape(out, -1))[0][:, :rank]
    right = np.linalg.svd(tensor.transpose(1, 0, 2, 3).reshape(inputs, -1))[0][:, :rank]
    return np.einsum("ox,yx,ci,di,ydhw->ochw", left, left, right, right, tensor)


class TestCascades:
    """The assembled network does what the dense one would with the truncated weight."""

    @given(data=st.data())
    def test_convolutions(self, data: st.DataObject, convolutions: st.SearchStrategy) -> None:
        convolution, inputs = data.draw(convolutions)
        self._check(convolution.double(), inputs.double(), data.draw(st.floats(0, 1)))

    @given(sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)), bias=st.booleans(), share=st.floats(0, 1))
    def test_linear_layers(self, sizes: tuple[int, int], bias: bool, share: float) -> None:
        self._check(nn.Linear(*sizes, bias=bias).double(), torch.randn(2, 3, sizes[0], dtype=torch.float64), share)

    def _check(self, module: nn.Module, inputs: torch.Tensor, share: float) -> None:
        model = nn.Sequential(module)
        (layer,) = survey(model, lambda network: network(inputs[:1])).layers
        factors = SCHEME.factorise(layer, module.weight)
        ranks = SCHEME.ranks(layer)
        whole = assemble(model, [layer], [SCHEME], (ranks[-1],), {layer.name: factors})
        torch.testing.assert_close(whole(inputs), model(inputs), rtol=1e-9, atol=1e-9)
        rank = ranks[int(share * (len(ranks) - 1))]
        truncated = assemble(model, [layer], [SCHEME], (rank,), {layer.name: factors})
        with torch.no_grad():
            module.weight.copy_(SCHEME.dense_weight(layer, factors, rank))
        torch.testing.assert_close(truncated(inputs), model(inputs), rtol=1e-9, atol=1e-9)

    @each_layer
    @pytest.mark.parametrize("with_moment", [False, True])
    def test_the_last_stage_times_the_encoder_is_the_weight(self, layer: Layer, with_moment: bool) -> None:
        moment = moment_of(patches_of(layer, 50)) if with_moment else None
        factors = SCHEME.factorise(layer, weight_of(layer), moment)
        for rank in SCHEME.ranks(layer):
            last = SCHEME.weights(layer, factors, rank)[-1]
            product = last.flatten(1) @ SCHEME.encoder_matrix(layer, factors, rank)
            torch.testing.assert_close(
                product.view(layer.dense.weight_shape), SCHEME.dense_weight(layer, factors, rank)
            )

    @each_layer
    def test_weights_are_views_of_the_factors_in_their_stages_shapes(self, layer: Layer) -> None:
        factors = SCHEME.factorise(layer, weight_of(layer))
        stored = {part.untyped_storage().data_ptr() for part in factors.parts.values()}
        for rank in SCHEME.ranks(layer):
            stages, weights = SCHEME.stages(layer, rank), SCHEME.weights(layer, factors, rank)
            assert [tuple(weight.shape) for weight in weights] == [stage.weight_shape for stage in stages]
            assert {weight.untyped_storage().data_ptr() for weight in weights} <= stored


class TestStages:
    def test_the_middle_one_keeps_the_geometry(self) -> None:
        dense = Stage(4, 6, (3, 5), (2, 1), (1, 2), (1, 2), padding_mode="reflect")
        stages = SCHEME.stages(Layer("conv", dense, True, (Call(9, 9),)), 2)
        middle = Stage(2, 2, (3, 5), (2, 1), (1, 2), (1, 2), padding_mode="reflect")
        assert stages == (Stage(4, 2), middle, Stage(2, 6))

    @pytest.mark.parametrize(
        ("layer", "highest"),
        # conv: 4 and 6 channels; stem: 1 input channel of 2 x 2 spans 4 of 9 output channels.
        [(CONV, (4, 6)), (NARROW, (7, 3)), (STEM, (1, 4))],
        ids=["conv", "narrow", "stem"],
    )
    def test_both_modes_go_as_far_as_they_can(self, layer: Layer, highest: tuple[int, int]) -> None:
        assert SCHEME.ranks(layer) == range(1, max(highest) + 1)
        for rank in SCHEME.ranks(layer):
            first, middle, last = SCHEME.stages(layer, rank)
            assert (first.out_channels, last.in_channels) == (min(rank, highest[0]), min(rank, highest[1]))
            assert (middle.in_channels, middle.out_channels) == (first.out_channels, last.in_channels)

    @pytest.mark.parametrize("layer", [FLAT, LINEAR], ids=["1 x 1", "linear"])
    def test_without_a_kernel_it_is_channel_svd(self, layer: Layer) -> None:
        channel, weight, moment = ChannelSVD(), weight_of(layer), moment_of(patches_of(layer, 50))
        assert SCHEME.ranks(layer) == channel.ranks(layer)
        assert SCHEME.stages(layer, 2) == channel.stages(layer, 2)
        tucker, two = SCHEME.factorise(layer, weight, moment), channel.factorise(layer, weight, moment)
        assert torch.equal(SCHEME.dense_weight(layer, tucker, 2), channel.dense_weight(layer, two, 2))
        for measure in MEASURES:
            assert SCHEME.error_curve(layer, weight, measure) == channel.error_curve(layer, weight, measure)


class TestTruncation:
    @each_convolution
    def test_is_the_textbooks(self, layer: Layer) -> None:
        weight = weight_of(layer)
        factors = SCHEME.factorise(layer, weight)
        for rank in SCHEME.ranks(layer):
            expected = truncated_by_numpy(weight, rank)
            np.testing.assert_allclose(SCHEME.dense_weight(layer, factors, rank).numpy(), expected, atol=1e-10)

    @each_layer
    @pytest.mark.parametrize("patches", [None, 400, 3], ids=["weight norm", "activation norm", "singular moment"])
    def test_the_highest_rank_is_the_weight(self, layer: Layer, patches: int | None) -> None:
        weight = weight_of(layer)
        moment = None if patches is None else moment_of(patches_of(layer, patches))
        factors = SCHEME.factorise(layer, weight, moment)
        rebuilt = SCHEME.dense_weight(layer, factors, SCHEME.ranks(layer)[-1])
        torch.testing.assert_close(rebuilt, weight, rtol=1e-9, atol=1e-9)

    def test_a_weight_of_few_channels_is_exact_from_their_number_on(self) -> None:
        small = torch.randn(2, 2, 3, 2, dtype=torch.float64)
        left, right = torch.randn(6, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
        weight = torch.einsum("ox,ci,xihw->ochw", left, right, small)
        factors = SCHEME.factorise(CONV, weight)
        for rank in range(2, 7):
            torch.testing.assert_close(SCHEME.dense_weight(CONV, factors, rank), weight)
        assert SCHEME.error_curve(CONV, weight, "frobenius").errors[1] < 1e-12

    @each_layer
    def test_zero_stays_zero(self, layer: Layer) -> None:
        factors = SCHEME.factorise(layer, torch.zeros(layer.dense.weight_shape))
        full = SCHEME.ranks(layer)[-1]
        assert not SCHEME.dense_weight(layer, factors, full).any()
        assert not any(part.isnan().any() for part in factors.parts.values())

    @each_layer
    def test_half_precision_keeps_its_dtype_and_its_accuracy(self, layer: Layer) -> None:
        weight = weight_of(layer).to(torch.bfloat16)
        factors = SCHEME.factorise(layer, weight)
        assert {part.dtype for part in factors.parts.values()} == {torch.bfloat16}
        rebuilt = SCHEME.dense_weight(layer, factors, SCHEME.ranks(layer)[-1]).float()
        # Three roundings of 2^-9 each, and those of the products.
        assert torch.linalg.norm(rebuilt - weight.float()) < 0.03 * torch.linalg.norm(weight.float())

    @each_layer
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused(self, layer: Layer, value: float) -> None:
        weight = torch.full(layer.dense.weight_shape, value)
        with pytest.raises(ValueError, match="NaN or infinite"):
            SCHEME.factorise(layer, weight)
        for measure in MEASURES:
            with pytest.raises(ValueError, match="NaN or infinite"):
                SCHEME.error_curve(layer, weight, measure)

    def test_factors_survive_being_stored(self) -> None:
        factors = SCHEME.factorise(CONV, weight_of(CONV))
        again = Factors.from_tensors(factors.tensors())
        assert torch.equal(SCHEME.dense_weight(CONV, again, 2), SCHEME.dense_weight(CONV, factors, 2))


class TestErrorCurves:
    @each_layer
    @pytest.mark.parametrize("measure", MEASURES)
    @pytest.mark.parametrize("patches", [None, 90, 3], ids=["weight norm", "activation norm", "singular moment"])
    def test_are_the_truncated_weights(self, layer: Layer, measure: str, patches: int | None) -> None:
        weight = weight_of(layer)
        moment = None if patches is None else moment_of(patches_of(layer, patches))
        root = None if moment is None else root_of(moment.second)
        factors = SCHEME.factorise(layer, weight, moment)
        curve = SCHEME.error_curve(layer, weight, measure, moment)
        assert list(curve.ranks) == list(SCHEME.ranks(layer))
        order = "fro" if measure == "frobenius" else 2

        def norm(tensor: torch.Tensor) -> torch.Tensor:
            folded = tensor.flatten(1)
            return torch.linalg.matrix_norm(folded if root is None else folded @ root, order)

        for rank, error in zip(curve.ranks, curve.errors, strict=True):
            residual = weight - SCHEME.dense_weight(layer, factors, rank)
            assert error == pytest.approx((norm(residual) / norm(weight)).item(), abs=1e-6)
        assert curve.errors[-1] == 0.0

    @each_layer
    @pytest.mark.parametrize("measure", MEASURES)
    def test_zero_weights_lose_nothing(self, layer: Layer, measure: str) -> None:
        assert not any(SCHEME.error_curve(layer, torch.zeros(layer.dense.weight_shape), measure).errors)

    @each_layer
    def test_other_measures_are_refused(self, layer: Layer) -> None:
        with pytest.raises(ValueError, match="unknown measure 'nuclear'"):
            SCHEME.error_curve(layer, weight_of(layer), "nuclear")


class TestTheActivationNorm:
    """Averaging the moment over kernel positions is exact where all are alike: there optimality can be seen."""

    def test_each_mode_keeps_what_matters_to_the_output(self) -> None:
        # Channels of very different sizes, the same and uncorrelated at every position.
        weight, positions = weight_of(CONV), 6
        channels = torch.tensor([100.0, 10.0, 1.0, 0.1], dtype=torch.float64)
        second = torch.diag(channels.repeat_interleave(positions))
        moment = Moment(second, torch.zeros(len(second), dtype=torch.float64), 1000)
        activation, plain = SCHEME.factorise(CONV, weight, moment), SCHEME.factorise(CONV, weight)

        def lost(factors: Factors, rank: int) -> float:
            residual = (weight - SCHEME.dense_weight(CONV, factors, rank)).flatten(1)
            return torch.linalg.norm(residual * second.diagonal().sqrt()).item()

        for rank in range(1, 4):
            assert lost(activation, rank) < lost(plain, rank)
        scaled = weight * channels.sqrt().view(1, 4, 1, 1)
        for rank in SCHEME.ranks(CONV):
            # Whitening a diagonal moment is scaling the channels: HOSVD of the scaled weight, scaled back.
            expected = torch.from_numpy(truncated_by_numpy(scaled, rank)) / channels.sqrt().view(1, 4, 1, 1)
            torch.testing.assert_close(SCHEME.dense_weight(CONV, activation, rank), expected, rtol=1e-6, atol=1e-6)

    def test_the_input_mode_weighs_channels_by_their_average_over_positions(self) -> None:
        weight = weight_of(CONV)
        sizes = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) ** 3
        moment = Moment(torch.diag(sizes.flatten()), torch.zeros(24, dtype=torch.float64), 1000)
        unfolded = weight.permute(0, 2, 3, 1).reshape(36, 4)
        left = torch.linalg.svd(unfolded * sizes.mean(1).sqrt(), full_matrices=False).U
        rows = nn.functional.normalize(left.T @ unfolded, dim=1)
        inner = nn.functional.normalize(SCHEME.factorise(CONV, weight, moment).parts["inner"], dim=1)
        torch.testing.assert_close((rows * inner).sum(1).abs(), torch.ones(4, dtype=torch.float64))


def test_it_is_registered() -> None:
    assert isinstance(schemes().get("tucker2", "search.scheme"), Tucker2)
