"""Layers and stages are numbers; they agree with torch and with what one counts by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces.layers import Call, Layer, Stage


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(data=st.data())
def test_a_stages_output_size_is_torchs(data: st.DataObject, convolutions: st.SearchStrategy) -> None:
    convolution, inputs = data.draw(convolutions)
    stage = Stage(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        padding_mode=convolution.padding_mode,
    )
    assert stage.output_size(*inputs.shape[-2:]) == convolution(inputs).shape[-2:]
    assert stage.weight_shape == convolution.weight.shape
    assert stage.parameters == convolution.weight.numel()


def test_a_linear_stage_has_a_two_dimensional_weight() -> None:
    stage = Stage(5, 3, linear=True)
    assert stage.weight_shape == nn.Linear(5, 3).weight.shape
    assert stage.parameters == 15
    assert stage.output_size(1, 7) == (1, 7)


def test_a_grouped_stage_divides_its_input_channels() -> None:
    stage = Stage(8, 4, (3, 3), groups=2)
    assert stage.weight_shape == nn.Conv2d(8, 4, 3, groups=2).weight.shape
    assert stage.parameters == 4 * 4 * 9


class TestCostsByHand:
    """3 x 3, 2 -> 4 channels, stride 2, padding 1, on 8 x 8: 4 x 4 positions of 72 weights."""

    dense = Stage(2, 4, (3, 3), (2, 2), (1, 1))
    thin = (Stage(2, 1, (3, 3), (2, 2), (1, 1)), Stage(1, 4))

    def test_dense(self) -> None:
        layer = Layer("conv", self.dense, False, (Call(8, 8),))
        assert layer.parameters((self.dense,)) == 72
        assert layer.macs((self.dense,)) == 72 * 16
        assert layer.volume((self.dense,)) == 4 * 16

    def test_a_cascade(self) -> None:
        layer = Layer("conv", self.dense, False, (Call(8, 8),))
        assert layer.parameters(self.thin) == 18 + 4
        assert layer.macs(self.thin) == (18 + 4) * 16
        assert layer.volume(self.thin) == (1 + 4) * 16

    def test_every_call_costs_but_weights_count_once(self) -> None:
        layer = Layer("conv", self.dense, True, (Call(8, 8), Call(4, 4, count=3)))
        assert layer.parameters((self.dense,)) == 72
        assert layer.macs((self.dense,)) == 72 * (16 + 3 * 4)
        assert layer.volume((self.dense,)) == 4 * (16 + 3 * 4)

    def test_a_later_stage_works_on_what_the_first_puts_out(self) -> None:
        vertical = Stage(2, 1, (3, 1), (2, 1), (1, 0))
        horizontal = Stage(1, 4, (1, 3), (1, 2), (0, 1))
        layer = Layer("conv", self.dense, False, (Call(8, 8),))
        assert layer.macs((vertical, horizontal)) == 6 * (4 * 8) + 12 * (4 * 4)


def test_shapes_are_hashable_and_compare_by_value() -> None:
    assert {Stage(2, 4), Stage(2, 4)} == {Stage(2, 4)}
    assert torch.Size(Stage(2, 4).weight_shape) == (4, 2, 1, 1)
