"""Nested layers: one pass computes the mixture of all candidates."""

import pytest
import torch
import torch.nn.functional as F

from search_spaces.layers import Layer, Stage
from search_spaces.schemes.tucker2 import Tucker2
from workers.training.nested_ranks import NestedLayer

LAYERS = {
    "narrowing": Layer("a", Stage(10, 6, (3, 3), (2, 2), (1, 1)), False, ()),
    "widening": Layer("b", Stage(4, 12, (3, 2)), True, ()),
    "1 x 1": Layer("c", Stage(8, 6), False, ()),
    "linear": Layer("d", Stage(7, 9, linear=True), True, ()),
}
CANDIDATES = (1, 3, 4, None)


def nested(name):
    torch.manual_seed(1)
    layer = LAYERS[name]
    weight = torch.randn(layer.dense.weight_shape, dtype=torch.float64)
    factors = Tucker2().factorise(layer, weight)
    return layer, weight, factors, NestedLayer(layer, factors, CANDIDATES).double()


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_is_the_mixture_of_the_candidates(name):
    layer, weight, factors, module = nested(name)
    chances = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    truncated = [Tucker2().dense_weight(layer, factors, rank) for rank in (1, 3, 4)]
    expected = sum(chance * one for chance, one in zip(chances, [*truncated, weight], strict=True))
    torch.testing.assert_close(module.weight(chances), expected)


def test_the_outputs_are_mixed_as_well():
    layer, weight, factors, module = nested("narrowing")
    chances = torch.tensor([0.25] * 4, dtype=torch.float64)
    images = torch.randn(2, 10, 8, 8, dtype=torch.float64)
    weights = [*(Tucker2().dense_weight(layer, factors, rank) for rank in (1, 3, 4)), weight]
    expected = sum(F.conv2d(images, one, stride=2, padding=1) / 4 for one in weights)
    torch.testing.assert_close(F.conv2d(images, module.weight(chances), stride=2, padding=1), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_probabilities_and_factors_have_gradients(name):
    *_, module = nested(name)
    chances = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module.weight, (chances,))
    module.weight(chances).square().sum().backward()
    assert all(factor.grad is not None for factor in module.factors.values())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("place", range(3))
def test_the_trained_factors_truncate_to_what_a_certain_choice_computes(name, place):
    layer, _, _, module = nested(name)
    with torch.no_grad():
        for factor in module.factors.values():
            factor.add_(0.1 * torch.randn_like(factor))
    certain = F.one_hot(torch.tensor(place), 4).double()
    truncated = Tucker2().dense_weight(layer, module.trained(), CANDIDATES[place])
    torch.testing.assert_close(truncated, module.weight(certain))
