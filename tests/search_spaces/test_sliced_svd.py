"""`sliced_svd` (ALDS): slices, cascades, errors, and the activation norm."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from search_spaces.assembly import assemble
from search_spaces.error_curves import MEASURES
from search_spaces.layers import Call, Layer, Stage
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.registry import schemes
from search_spaces.schemes.slice_spectra import divisors
from search_spaces.schemes.sliced_svd import SlicedSVD
from search_spaces.survey import survey

SCHEME = SlicedSVD()
CONV = Layer("conv", Stage(6, 5, (3, 2), (1, 1), (1, 0)), True, (Call(7, 7),))
WIDE = Layer("wide", Stage(4, 9, (1, 1)), False, (Call(4, 4),))
LINEAR = Layer("linear", Stage(6, 4, linear=True), True, (Call(1, 1),))
LAYERS = (CONV, WIDE, LINEAR)
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def weight_of(layer: Layer, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layer.dense.weight_shape, dtype=torch.float64, generator=generator)


def patches_of(layer: Layer, count: int, seed: int = 1) -> torch.Tensor:
    """Correlated input patches, `(count, n)`."""
    generator = torch.Generator().manual_seed(seed)
    columns = SCHEME.matrix_shape(layer)[1]
    mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    return torch.randn(count, columns, dtype=torch.float64, generator=generator) @ mixing + 0.5


def moment_of(patches: torch.Tensor) -> Moment:
    return Moment(patches.T @ patches / len(patches), patches.mean(0), len(patches))


def output_error(layer: Layer, patches: torch.Tensor, weight: torch.Tensor, factors: Factors, rank: Rank) -> float:
    """Root of the mean squared error of the outputs on these patches."""
    residual = (weight - SCHEME.dense_weight(layer, factors, rank)).flatten(1)
    return (patches @ residual.T).square().sum(1).mean().sqrt().item()


class TestCascades:
    """The assembled network does what the dense one would with the truncated weight."""

    @given(data=st.data())
    def test_convolutions(self, data: st.DataObject, convolutions: st.SearchStrategy) -> None:
        drawn, inputs = data.draw(convolutions)
        convolution, inputs = drawn.double(), inputs.double()
        model = nn.Sequential(convolution)
        (layer,) = survey(model, lambda network: network(inputs[:1])).layers
        factors = SCHEME.factorise(layer, convolution.weight)
        rank = data.draw(st.sampled_from(SCHEME.ranks(layer)))
        cascade = assemble(model, [layer], [SCHEME], (rank,), {layer.name: factors})
        assert cascade[0][0].groups == rank[0]
        padded = inputs
        if convolution.padding_mode != "zeros":
            padded = functional.pad(inputs, convolution._reversed_padding_repeated_twice, convolution.padding_mode)
        expected = functional.conv2d(
            padded,
            SCHEME.dense_weight(layer, factors, rank),
            convolution.bias,
            convolution.stride,
            convolution.padding if convolution.padding_mode == "zeros" else 0,
            convolution.dilation,
        )
        torch.testing.assert_close(cascade(inputs), expected, rtol=1e-9, atol=1e-9)

    @given(sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)), bias=st.booleans(), data=st.data())
    def test_linear_layers(self, sizes: tuple[int, int], bias: bool, data: st.DataObject) -> None:
        linear, inputs = nn.Linear(*sizes, bias=bias).double(), torch.randn(2, 3, sizes[0], dtype=torch.float64)
        model = nn.Sequential(linear)
        (layer,) = survey(model, lambda network: network(inputs)).layers
        factors = SCHEME.factorise(layer, linear.weight)
        rank = data.draw(st.sampled_from(SCHEME.ranks(layer)))
        cascade = assemble(model, [layer], [SCHEME], (rank,), {layer.name: factors})
        assert [type(stage) for stage in cascade[0]] == [nn.Linear, nn.Linear]
        expected = functional.linear(inputs, SCHEME.dense_weight(layer, factors, rank), linear.bias)
        torch.testing.assert_close(cascade(inputs), expected, rtol=1e-9, atol=1e-9)

    @each_layer
    @pytest.mark.parametrize("with_moment", [False, True])
    def test_the_last_stage_times_the_encoder_is_the_weight(self, layer: Layer, with_moment: bool) -> None:
        moment = moment_of(patches_of(layer, 50)) if with_moment else None
        factors = SCHEME.factorise(layer, weight_of(layer), moment)
        for rank in SCHEME.ranks(layer):
            last = SCHEME.weights(layer, factors, rank)[-1]
            encoder = SCHEME.encoder_matrix(layer, factors, rank)
            assert encoder.shape == (rank[0] * rank[1], SCHEME.matrix_shape(layer)[1])
            product = (last.flatten(1) @ encoder).view(layer.dense.weight_shape)
            torch.testing.assert_close(product, SCHEME.dense_weight(layer, factors, rank))

    @each_layer
    def test_weights_have_their_stages_shapes_and_count(self, layer: Layer) -> None:
        factors = SCHEME.factorise(layer, weight_of(layer))
        out, columns = SCHEME.matrix_shape(layer)
        for k, j in SCHEME.ranks(layer):
            stages = SCHEME.stages(layer, (k, j))
            weights = SCHEME.weights(layer, factors, (k, j))
            assert [tuple(weight.shape) for weight in weights] == [stage.weight_shape for stage in stages]
            assert layer.parameters(stages) == j * (k * out + columns) == sum(weight.numel() for weight in weights)


class TestRanks:
    def test_every_divisor_and_every_rank_of_its_slices(self) -> None:
        # 6 channels, 3 x 2: slices of 36, 18, 12 and 6 columns; 5 rows.
        assert SCHEME.ranks(CONV) == tuple((k, j) for k in (1, 2, 3, 6) for j in range(1, 6))
        # 4 channels, 1 x 1: slices of 4, 2 and 1 columns; 9 rows.
        assert SCHEME.ranks(WIDE) == ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (4, 1))

    def test_linear_layers_are_not_sliced(self) -> None:
        assert SCHEME.ranks(LINEAR) == ((1, 1), (1, 2), (1, 3), (1, 4))

    def test_the_grouped_stage_keeps_the_geometry(self) -> None:
        dense = Stage(4, 6, (3, 5), (2, 1), (1, 2), (1, 2), padding_mode="reflect")
        first, second = SCHEME.stages(Layer("conv", dense, False, (Call(9, 9),)), (2, 3))
        assert first == replace(dense, out_channels=6, groups=2)
        assert second == Stage(6, 6)

    def test_other_schemes_ranks_are_refused(self) -> None:
        for rank in (3, (1, 2, 3)):
            with pytest.raises(TypeError, match=r"\(k, j\)"):
                SCHEME.stages(CONV, rank)

    def test_only_the_slicings_asked_for_are_decomposed(self) -> None:
        weight = weight_of(CONV)
        some = SCHEME.factorise(CONV, weight, ranks=[(3, 2), (1, 1), (3, 4)])
        assert set(some.parts) == {"encoder:1", "decoder:1", "encoder:3", "decoder:3"}
        every = SCHEME.factorise(CONV, weight)
        assert len(every.parts) == 8
        assert all(torch.equal(part, every.parts[name]) for name, part in some.parts.items())

    def test_factors_survive_being_stored(self) -> None:
        factors = SCHEME.factorise(CONV, weight_of(CONV))
        again = Factors.from_tensors(factors.tensors())
        assert torch.equal(SCHEME.dense_weight(CONV, again, (3, 2)), SCHEME.dense_weight(CONV, factors, (3, 2)))


class TestTruncation:
    @each_layer
    @pytest.mark.parametrize("patches", [None, 400, 3], ids=["weight norm", "activation norm", "singular moment"])
    def test_the_highest_rank_is_the_weight(self, layer: Layer, patches: int | None) -> None:
        weight = weight_of(layer)
        moment = None if patches is None else moment_of(patches_of(layer, patches))
        factors = SCHEME.factorise(layer, weight, moment)
        highest = dict(SCHEME.ranks(layer))
        assert set(highest) == set((1,) if layer.linear else divisors(layer.dense.in_channels))
        for rank in highest.items():
            torch.testing.assert_close(SCHEME.dense_weight(layer, factors, rank), weight, rtol=1e-10, atol=1e-10)

    @each_layer
    @pytest.mark.parametrize("with_moment", [False, True])
    def test_one_slice_is_channel_svd(self, layer: Layer, with_moment: bool) -> None:
        moment, channel = moment_of(patches_of(layer, 90)) if with_moment else None, ChannelSVD()
        sliced = SCHEME.factorise(layer, weight_of(layer), moment)
        whole = channel.factorise(layer, weight_of(layer), moment)
        for rank in channel.ranks(layer):
            expected = channel.dense_weight(layer, whole, rank)
            torch.testing.assert_close(SCHEME.dense_weight(layer, sliced, (1, rank)), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sliced.parts["decoder:1"][0], whole.decoder, rtol=1e-6, atol=1e-6)

    @each_layer
    def test_every_slice_loses_the_tail_of_its_own_svd(self, layer: Layer) -> None:
        weight = weight_of(layer)
        factors = SCHEME.factorise(layer, weight)
        for k, j in SCHEME.ranks(layer):
            residual = weight - SCHEME.dense_weight(layer, factors, (k, j))
            for lost, one in zip(residual.chunk(k, dim=1), weight.chunk(k, dim=1), strict=True):
                values = torch.linalg.svd(one.flatten(1)).S
                torch.testing.assert_close(torch.linalg.norm(lost), torch.linalg.norm(values[j:]))

    def test_factors_are_balanced_and_signed(self) -> None:
        factors = SCHEME.factorise(CONV, weight_of(CONV))
        for k in (1, 2, 3, 6):
            encoder, decoder = factors.parts[f"encoder:{k}"], factors.parts[f"decoder:{k}"]
            torch.testing.assert_close(encoder.norm(dim=2), decoder.norm(dim=2))
            assert (decoder.gather(2, decoder.abs().argmax(dim=2, keepdim=True)) > 0).all()

    def test_zero_stays_zero(self) -> None:
        factors = SCHEME.factorise(CONV, torch.zeros(CONV.dense.weight_shape))
        assert not any(part.any() for part in factors.parts.values())

    def test_half_precision_keeps_its_dtype_and_its_accuracy(self) -> None:
        weight = weight_of(CONV).to(torch.bfloat16)
        factors = SCHEME.factorise(CONV, weight)
        assert {part.dtype for part in factors.parts.values()} == {torch.bfloat16}
        rebuilt = SCHEME.dense_weight(CONV, factors, (2, 5)).float()
        assert torch.linalg.norm(rebuilt - weight.float()) < 0.02 * torch.linalg.norm(weight.float())

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused(self, value: float) -> None:
        weight = torch.zeros(CONV.dense.weight_shape)
        weight[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            SCHEME.factorise(CONV, weight)
        for measure in MEASURES:
            with pytest.raises(ValueError, match="NaN or infinite"):
                SCHEME.error_curve(CONV, weight, measure)


class TestErrorCurves:
    @each_layer
    def test_frobenius_and_operator_are_the_truncated_weights(self, layer: Layer) -> None:
        weight = weight_of(layer)
        factors = SCHEME.factorise(layer, weight)
        for measure, order in (("frobenius", "fro"), ("operator", 2)):
            curve = SCHEME.error_curve(layer, weight, measure)
            assert list(curve.ranks) == list(SCHEME.ranks(layer))
            for rank, error in zip(curve.ranks, curve.errors, strict=True):
                residual = (weight - SCHEME.dense_weight(layer, factors, rank)).flatten(1)
                whole = torch.linalg.matrix_norm(weight.flatten(1), order)
                expected = (torch.linalg.matrix_norm(residual, order) / whole).item()
                assert error == pytest.approx(expected, abs=1e-6)

    @each_layer
    def test_max_slice_is_the_worst_slice_over_the_whole(self, layer: Layer) -> None:
        weight = weight_of(layer)
        whole = torch.linalg.svd(weight.flatten(1)).S[0]
        curve = SCHEME.error_curve(layer, weight, "max_slice")
        for (k, j), error in zip(curve.ranks, curve.errors, strict=True):
            values = [torch.linalg.svd(one.flatten(1)).S for one in weight.chunk(k, dim=1)]
            expected = max(float(one[j]) if j < len(one) else 0.0 for one in values) / float(whole)
            assert error == pytest.approx(expected, abs=1e-7)

    @each_layer
    @pytest.mark.parametrize("with_moment", [False, True])
    def test_the_operator_norm_lies_between_max_slice_and_the_bound(self, layer: Layer, with_moment: bool) -> None:
        moment = moment_of(patches_of(layer, 60)) if with_moment else None
        low, true, high = (
            SCHEME.error_curve(layer, weight_of(layer), measure, moment).errors
            for measure in ("max_slice", "operator", "bound")
        )
        assert all(a - 1e-7 <= b <= c + 1e-7 for a, b, c in zip(low, true, high, strict=True))

    @pytest.mark.parametrize("with_moment", [False, True])
    @pytest.mark.parametrize("measure", MEASURES)
    def test_one_slice_reads_as_channel_svd(self, measure: str, with_moment: bool) -> None:
        moment = moment_of(patches_of(CONV, 90)) if with_moment else None
        sliced = SCHEME.error_curve(CONV, weight_of(CONV), measure, moment)
        channel = ChannelSVD().error_curve(CONV, weight_of(CONV), measure, moment)
        assert list(sliced.errors[:5]) == pytest.approx(list(channel.errors), abs=1e-6)
        assert list(sliced.singular_values) == pytest.approx(list(channel.singular_values), rel=1e-6)

    @pytest.mark.parametrize("measure", MEASURES)
    def test_whole_slices_and_zero_weights_lose_nothing(self, measure: str) -> None:
        curve = SCHEME.error_curve(CONV, weight_of(CONV), measure)
        assert [error for (_, j), error in zip(curve.ranks, curve.errors, strict=True) if j == 5] == [0.0] * 4
        assert not any(SCHEME.error_curve(CONV, torch.zeros(CONV.dense.weight_shape), measure).errors)

    def test_other_measures_are_refused(self) -> None:
        with pytest.raises(ValueError, match="unknown measure 'nuclear'"):
            SCHEME.error_curve(CONV, weight_of(CONV), "nuclear")


class TestTheActivationNorm:
    @each_layer
    def test_one_slice_loses_least_of_the_output(self, layer: Layer) -> None:
        weight, patches = weight_of(layer), patches_of(layer, 200)
        activation, plain = SCHEME.factorise(layer, weight, moment_of(patches)), SCHEME.factorise(layer, weight)
        # Without any root of the moment: the outputs on these patches, whose tail no other rank-j map can beat.
        outputs = torch.linalg.svdvals(patches @ weight.flatten(1).T) / math.sqrt(len(patches))
        curve = SCHEME.error_curve(layer, weight, "frobenius", moment_of(patches))
        errors = dict(zip(curve.ranks, curve.errors, strict=True))
        for rank in [one for one in SCHEME.ranks(layer) if one[0] == 1]:
            lost = output_error(layer, patches, weight, activation, rank)
            assert lost <= output_error(layer, patches, weight, plain, rank) + 1e-6
            assert lost == pytest.approx(torch.linalg.norm(outputs[rank[1] :]).item(), abs=1e-4)
            assert errors[rank] == pytest.approx(lost / torch.linalg.norm(outputs).item(), abs=1e-6)

    def test_every_slice_loses_least_of_its_own_output(self) -> None:
        weight, patches = weight_of(CONV), patches_of(CONV, 200)
        factors = SCHEME.factorise(CONV, weight, moment_of(patches))
        for k, j in SCHEME.ranks(CONV):
            residual = (weight - SCHEME.dense_weight(CONV, factors, (k, j))).flatten(1)
            cut = zip(residual.chunk(k, dim=1), weight.flatten(1).chunk(k, dim=1), patches.chunk(k, dim=1), strict=True)
            for lost, one, seen in cut:
                tail = torch.linalg.norm(torch.linalg.svdvals(seen @ one.T)[j:])
                assert torch.linalg.norm(seen @ lost.T).item() == pytest.approx(tail.item(), rel=1e-6, abs=1e-3)

    def test_dead_inputs_are_cut_first_and_come_back_last(self) -> None:
        weight, patches = weight_of(CONV), patches_of(CONV, 200)
        patches[:, :12] = 0.0  # Both channels of the first of three slices.
        moment = moment_of(patches)
        curve = SCHEME.error_curve(CONV, weight, "max_slice", moment)
        alive = SCHEME.error_curve(CONV, weight * (torch.arange(6) >= 2).view(1, 6, 1, 1), "max_slice", moment)
        assert list(curve.errors) == pytest.approx(list(alive.errors), abs=1e-4)
        factors = SCHEME.factorise(CONV, weight, moment)
        torch.testing.assert_close(SCHEME.dense_weight(CONV, factors, (3, 5)), weight)


def test_it_is_registered() -> None:
    assert isinstance(schemes().get("sliced_svd", "search.scheme"), SlicedSVD)
