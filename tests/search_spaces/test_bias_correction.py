"""Specifies bias correction: a factorised layer's mean output is the dense layer's, whatever its stages lose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces.assembly import assemble, replace_layers
from search_spaces.layers import Layer
from search_spaces.moments import Moment
from search_spaces.rank_space import Rank
from search_spaces.schemes.bias_correction import correct_biases
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.refit import refit
from search_spaces.schemes.sliced_svd import SlicedSVD
from search_spaces.schemes.spatial_svd import SpatialSVD
from search_spaces.schemes.truncation import last_bias, multiplied_out
from search_spaces.schemes.tucker2 import Tucker2
from search_spaces.survey import survey
from tests.search_spaces.patches import moment_of, patches_of

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

SCHEMES: list[Scheme] = [ChannelSVD(), SpatialSVD(), SlicedSVD(), Tucker2()]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
roundings = st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-11)])


def surveyed(module: nn.Conv2d | nn.Linear, inputs: torch.Tensor) -> tuple[nn.Module, Layer]:
    model = nn.Sequential(module).eval().requires_grad_(False)
    (layer,) = survey(model, lambda network: network(inputs[:1])).layers
    return model, layer


def check_mean(
    scheme: Scheme,
    module: nn.Conv2d | nn.Linear,
    inputs: torch.Tensor,
    rounding: tuple[torch.dtype, float],
    data: st.DataObject,
) -> None:
    """At a rank, with any norm and last stage: the mean over images and positions, to the dtype's rounding."""
    dtype, tolerance = rounding
    module, inputs = module.to(dtype), inputs.to(dtype) + 0.5
    model, layer = surveyed(module, inputs)
    moment = moment_of(patches_of(module, inputs))
    rank = data.draw(st.sampled_from(scheme.ranks(layer)))
    factors = scheme.factorise(layer, module.weight, moment if data.draw(st.booleans()) else None, [rank])
    if data.draw(st.booleans()):
        factors = refit(scheme, layer, factors, [rank], module.weight, moment, with_bias=data.draw(st.booleans()))
    factors = correct_biases(scheme, layer, factors, [rank], module.weight, moment)
    found = assemble(model, [layer], [scheme], (rank,), {layer.name: factors})
    dims = (0, 1) if layer.linear else (0, 2, 3)
    expected, outputs = (network(inputs).detach().double() for network in (model, found))
    largest = 1.0 + float(torch.maximum(expected.abs().max(), outputs.abs().max()))
    torch.testing.assert_close(outputs.mean(dims), expected.mean(dims), rtol=0, atol=tolerance * largest)


@each_scheme
@given(data=st.data(), rounding=roundings)
def test_convolutions_of_every_geometry(
    scheme: Scheme, data: st.DataObject, rounding: tuple[torch.dtype, float], convolutions: st.SearchStrategy
) -> None:
    convolution, inputs = data.draw(convolutions)
    check_mean(scheme, convolution, inputs, rounding, data)


@each_scheme
@given(data=st.data(), rounding=roundings, bias=st.booleans(), sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_linear_layers(
    scheme: Scheme, data: st.DataObject, rounding: tuple[torch.dtype, float], bias: bool, sizes: tuple[int, int]
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 999)))
    check_mean(scheme, nn.Linear(*sizes, bias=bias), torch.randn(3, 4, sizes[0]), rounding, data)


def corrected(scheme: Scheme, *, bias: bool = True) -> tuple[nn.Module, Layer, torch.Tensor, Moment, Factors]:
    """A convolution in float64 with its inputs' patches and moment, and factors with every rank's bias corrected."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, 1, 1, bias=bias, dtype=torch.float64)
    inputs = torch.rand(5, 4, 6, 6, dtype=torch.float64)
    model, layer = surveyed(convolution, inputs)
    patches = patches_of(convolution, inputs)
    moment = moment_of(patches)
    truncated = scheme.factorise(layer, convolution.weight)
    factors = correct_biases(scheme, layer, truncated, scheme.ranks(layer), convolution.weight, moment)
    return model, layer, patches, moment, factors


@each_scheme
def test_the_mean_squared_error_falls_by_the_square_of_the_correction(scheme: Scheme) -> None:
    model, layer, patches, _, factors = corrected(scheme)
    for rank in scheme.ranks(layer):
        lost = model[0].weight.flatten(1) - multiplied_out(scheme, layer, factors, rank).flatten(1)  # type: ignore[index]
        errors, correction = patches @ lost.T, factors.bias_corrections[rank]
        before, after = errors.square().mean(0), (errors - correction).square().mean(0)
        torch.testing.assert_close(after, before - correction.square())


@each_scheme
@given(data=st.data())
def test_last_stage_and_bias_together_are_the_affine_least_squares_ones(
    scheme: Scheme, data: st.DataObject, convolutions: st.SearchStrategy
) -> None:
    """As lstsq has it, with a column of ones beside the last stage's inputs."""
    convolution, inputs = data.draw(convolutions)
    convolution, inputs = convolution.double(), inputs.double() + 1.0
    _, layer = surveyed(convolution, inputs)
    patches, weight = patches_of(convolution, inputs), convolution.weight.detach()
    moment, outputs = moment_of(patches), patches @ weight.flatten(1).T
    rank = data.draw(st.sampled_from(scheme.ranks(layer)))
    truncated = scheme.factorise(layer, weight, None, [rank])
    inner = patches @ scheme.encoder_matrix(layer, truncated, rank).T
    inner = torch.cat([inner, torch.ones(len(inner), 1, dtype=inner.dtype)], 1)
    least = (outputs - inner @ torch.linalg.lstsq(inner, outputs, driver="gelsd").solution).square().mean()
    fitted = refit(scheme, layer, truncated, [rank], weight, moment, with_bias=True)
    found = correct_biases(scheme, layer, fitted, [rank], weight, moment)
    computed = patches @ multiplied_out(scheme, layer, found, rank).flatten(1).T + found.bias_corrections[rank]
    assert float((outputs - computed).square().mean()) <= float(least) + 1e-7 * float(outputs.square().mean())


@each_scheme
def test_constant_inputs_need_the_bias_alone(scheme: Scheme) -> None:
    """Their moments about the mean are rounding, of float32 products: it must not be fitted to."""
    torch.manual_seed(1)
    weight, row = torch.randn(6, 40), torch.rand(1, 40) + 1.0
    _, layer = surveyed(nn.Linear(40, 6), row)
    moment = Moment((row.T @ row).double(), row[0].double(), 9)
    rank = scheme.ranks(layer)[2]
    truncated = scheme.factorise(layer, weight, None, [rank])
    fitted = refit(scheme, layer, truncated, [rank], weight, moment, with_bias=True)
    found = correct_biases(scheme, layer, fitted, [rank], weight, moment)
    largest = float(scheme.weights(layer, truncated, rank)[-1].abs().max())
    assert float(found.last_stages[rank].abs().max()) < 3 * largest
    computed = multiplied_out(scheme, layer, found, rank) @ row[0] + found.bias_corrections[rank]
    torch.testing.assert_close(computed, weight @ row[0], rtol=1e-5, atol=1e-5)


@each_scheme
def test_sliced_stages_too_have_one_bias_the_last_one_s(scheme: Scheme) -> None:
    model, layer, _, _, factors = corrected(scheme, bias=False)
    rank = (2, 2) if isinstance(scheme, SlicedSVD) else 2
    network = assemble(model, [layer], [scheme], (rank,), {layer.name: factors})
    *others, last = network[0]
    assert all(stage.bias is None for stage in others)
    assert torch.equal(last.bias, factors.bias_corrections[rank])


def test_the_bias_is_the_layer_s_own_and_its_correction() -> None:
    own, correction = torch.randn(3), torch.randn(3)
    with_one, without = Factors({}, bias_corrections={2: correction}), Factors({})
    for rank, factors, bias, expected in (
        (2, with_one, own, own + correction),
        (2, with_one, None, correction),
        (3, with_one, own, own),
        (2, without, own, own),
    ):
        found = last_bias(factors, rank, bias)
        assert found is not None
        assert torch.equal(found, expected)
    assert last_bias(without, 2, None) is None


def test_only_the_layers_and_ranks_that_are_corrected_have_another_bias() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    layers, scheme = survey(model, lambda network: network(torch.zeros(1, 4))).layers, ChannelSVD()
    factors = {layer.name: scheme.factorise(layer, model.get_parameter(f"{layer.name}.weight")) for layer in layers}
    moment = moment_of(torch.rand(9, 4))
    factors["0"] = correct_biases(scheme, layers[0], factors["0"], [2], model.get_parameter("0.weight"), moment)
    network = assemble(model, layers, [scheme] * 3, (2, 2, 2), factors)
    assert [network[index][1].bias is not None for index in range(3)] == [True, False, True]
    assert torch.equal(network[2][1].bias, model[2].bias)
    assert assemble(model, layers, [scheme] * 3, (1, None, 1), factors)[0][1].bias is None
    bare = replace_layers(model, layers, [scheme] * 3, (2, 2, 2), corrected=["0"])
    bare.load_state_dict(network.state_dict())
    assert torch.equal(bare(torch.ones(2, 4)), network(torch.ones(2, 4)))


@each_scheme
def test_factors_are_stored_with_their_corrections(scheme: Scheme) -> None:
    model, layer, _, moment, factors = corrected(scheme)
    weight: Any = model[0].weight  # type: ignore[index]
    both = correct_biases(
        scheme, layer, refit(scheme, layer, factors, scheme.ranks(layer), weight, moment), [], weight, moment
    )
    for kept in (factors, both):
        again = Factors.from_tensors(kept.tensors())
        for name in ("parts", "last_stages", "bias_corrections"):
            one, other = getattr(kept, name), getattr(again, name)
            assert list(one) == list(other)
            assert all(one[key] is other[key] for key in one)


@each_scheme
def test_only_the_ranks_asked_for_are_corrected(scheme: Scheme) -> None:
    model, layer, _, moment, factors = corrected(scheme)
    weight: Any = model[0].weight  # type: ignore[index]
    first, second = scheme.ranks(layer)[:2]
    bare = Factors(factors.parts)
    once = correct_biases(scheme, layer, bare, [first], weight, moment)
    twice = correct_biases(scheme, layer, once, [second], weight, moment)
    assert (set(bare.bias_corrections), set(once.bias_corrections)) == (set(), {first})
    assert set(twice.bias_corrections) == {first, second}
    for rank in (first, second):
        torch.testing.assert_close(twice.bias_corrections[rank], factors.bias_corrections[rank])


@each_scheme
def test_fitting_last_stages_leaves_out_corrections_of_others(scheme: Scheme) -> None:
    model, layer, _, moment, factors = corrected(scheme)
    weight: Any = model[0].weight  # type: ignore[index]
    assert refit(scheme, layer, factors, scheme.ranks(layer)[:1], weight, moment).bias_corrections == {}


@each_scheme
def test_nothing_is_lost_at_full_rank_or_where_inputs_are_zero(scheme: Scheme) -> None:
    model, layer, patches, _, factors = corrected(scheme)
    weight: Any = model[0].weight  # type: ignore[index]
    full: Rank = (1, 6) if isinstance(scheme, SlicedSVD) else len(scheme.ranks(layer))
    assert float(factors.bias_corrections[full].abs().max()) < 1e-12
    nothing = moment_of(torch.zeros_like(patches))
    zero = correct_biases(scheme, layer, factors, scheme.ranks(layer), weight, nothing)
    assert not any(correction.any() for correction in zero.bias_corrections.values())


def test_a_correction_has_the_weight_s_dtype() -> None:
    model, layer, _, moment, factors = corrected(ChannelSVD())
    weight: Any = model[0].weight  # type: ignore[index]
    narrow = Factors({name: part.bfloat16() for name, part in factors.parts.items()})
    found = correct_biases(ChannelSVD(), layer, narrow, [2], weight.bfloat16(), moment).bias_corrections[2]
    assert (found.dtype, tuple(found.shape)) == (torch.bfloat16, (6,))


def test_moments_that_are_not_finite_are_refused() -> None:
    model, layer, _, moment, factors = corrected(ChannelSVD())
    weight: Any = model[0].weight  # type: ignore[index]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            correct_biases(
                ChannelSVD(), layer, factors, [2], weight, replace(moment, mean=torch.full_like(moment.mean, value))
            )
