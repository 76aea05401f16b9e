"""Costs of layers that lost filters: those of the smaller layers themselves; soft counts interpolate them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.costs import COST_NAMES
from search_spaces.layers import Call, Layer, Stage
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.thinned_layers import Channels, ThinnedNetwork, thinned_layer

FIRST = Layer("first", Stage(3, 8, (3, 3), (2, 2), (1, 1)), False, (Call(16, 12),))
SECOND = Layer("second", Stage(8, 6, (1, 3)), True, (Call(8, 6), Call(4, 4, 2)))
LAST = Layer("last", Stage(24, 10, linear=True), True, (Call(1, 1),))
SIZES = (8, 6)


def network(*targets):
    """8 filters, 6 filters, and a linear layer that sees 4 pixels of each of the 6."""
    return ThinnedNetwork(
        (
            thinned_layer(FIRST, Channels(3), Channels(0, ((0, 1),))),
            thinned_layer(SECOND, Channels(0, ((0, 1),)), Channels(0, ((1, 1),))),
            thinned_layer(LAST, Channels(0, ((1, 4),)), Channels(10)),
        ),
        SIZES,
        targets or (("parameters", 0.5),),
    )


def smaller(sizes):
    """The layers that are left."""
    channels = [(3, sizes[0]), (sizes[0], sizes[1]), (4 * sizes[1], 10)]
    return [
        replace(layer, dense=replace(layer.dense, in_channels=inputs, out_channels=outputs))
        for layer, (inputs, outputs) in zip((FIRST, SECOND, LAST), channels, strict=True)
    ]


@given(st.tuples(st.integers(1, 8), st.integers(1, 6)), st.integers(1, 6), st.sampled_from(COST_NAMES))
def test_costs_are_those_of_the_smaller_layers(sizes, rank, cost):
    for shape, layer in zip(network().layers, smaller(sizes), strict=True):
        measure = getattr(layer, cost)
        assert shape.dense(cost, sizes) == measure((layer.dense,))
        assert shape.factored(cost, sizes, rank) == measure(ChannelSVD().stages(layer, rank))


@given(st.lists(st.integers(0, 5), min_size=5, max_size=5), st.integers(0, 4), st.integers(0, 5))
def test_one_change_costs_its_difference(levels, variable, level):
    shapes = network(("parameters", 0.3), ("macs", 0.6))
    changed = [*levels[:variable], level, *levels[variable + 1 :]]
    after = shapes.used_after(levels, shapes.used(levels), variable, level)
    assert after == pytest.approx(shapes.used(changed))


def test_a_layer_is_dense_unless_every_cost_of_the_budget_falls():
    shapes = network()
    full = [size - 1 for size in SIZES]
    assert shapes.ranks([*full, 0, 0, 0]) == (1, 1, 1)
    assert shapes.ranks([*full, 7, 5, 9]) == (None, None, None)
    assert network(("parameters", 0.5), ("volume", 0.5)).ranks([*full, 0, 0, 0]) == (None, None, None)
    assert not any(network(("volume", 0.5)).factorable)


def test_the_dense_network_has_compression_0_and_uses_more_than_any_budget():
    shapes = network(("macs", 0.25))
    dense = [7, 5, 100, 100, 100]
    assert shapes.compression("macs", SIZES, (None, None, None)) == 0
    assert shapes.used(dense) == pytest.approx((1 / 0.75,))


def test_soft_shares_have_gradients():
    shapes = network(("parameters", 0.5), ("macs", 0.5))
    counts = torch.tensor([5.3, 2.2, 1.7, 3.1, 4.6], dtype=torch.float64, requires_grad=True)
    soft = lambda one: torch.stack(shapes.soft(one[:2], one[2:]))  # noqa: E731
    assert torch.autograd.gradcheck(soft, (counts,))
    whole = torch.tensor([5.0, 2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    expected = [1 - shapes.compression(cost, (5, 2), (1, 1, 1)) for cost in ("parameters", "macs")]
    torch.testing.assert_close(soft(whole), torch.tensor(expected, dtype=torch.float64))


def test_a_cost_that_shapes_do_not_tell_is_refused():
    with pytest.raises(ValueError, match="latency"):
        network(("latency@board", 0.5))
