"""Specifies layers made ready for a rank: what they compute, with batch norm folded in, and what memory they hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.spatial_svd import SpatialSVD
from search_spaces.survey import survey
from workers.prepared_layer import PreparedLayers, fold_of
from workers.slot import Slot, open_slots


def slot_of(module: nn.Module, scheme: Scheme, inputs: Tensor) -> Slot:
    model = nn.Sequential(module).eval().requires_grad_(False)
    layers = list(survey(model, lambda one: one(inputs[:1])).layers)
    weight: Any = module.weight
    return open_slots(model, layers, [scheme], {"0": scheme.factorise(layers[0], weight)})[0]


def norm_of(channels: int, dtype: torch.dtype = torch.float64) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).to(dtype).eval().requires_grad_(False)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 3)
    norm.weight.normal_()
    norm.bias.normal_()
    return norm


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    torch.manual_seed(draw(st.integers(0, 999)))
    return nn.Conv2d(
        draw(st.integers(1, 20)),
        draw(st.integers(1, 40)),
        draw(st.sampled_from([1, 3, (3, 1), (1, 3), (5, 3)])),
        stride=draw(st.sampled_from([1, 1, 2])),
        padding=draw(st.sampled_from([0, 1])),
        dilation=draw(st.sampled_from([1, 1, 2])),
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "circular", "replicate"])),
    ).double()


@settings(max_examples=60)
@given(conv=convolutions(), data=st.data(), channels_last=st.booleans(), fold=st.booleans(), corrected=st.booleans())
def test_every_rank_computes_what_the_slot_computes(
    conv: nn.Conv2d, data: st.DataObject, channels_last: bool, fold: bool, corrected: bool
) -> None:
    inputs = torch.randn(2, conv.in_channels, 11, 11, dtype=torch.float64)
    slot = slot_of(conv, data.draw(st.sampled_from([ChannelSVD(), SpatialSVD()])), inputs)
    if corrected:
        corrections = {rank: torch.randn_like(conv.weight[:, 0, 0, 0]) for rank in slot.scheme.ranks(slot.layer)}
        slot.factors = replace(slot.factors, bias_corrections=corrections)
    prepared = PreparedLayers([slot], channels_last=channels_last)
    norm = norm_of(conv.out_channels)
    assert not fold or prepared.fold(slot, norm)
    for rank in (None, data.draw(st.integers(1, len(slot.scheme.ranks(slot.layer))))):
        slot.rank = rank
        expected = norm(slot(inputs)) if fold else slot(inputs)
        torch.testing.assert_close(prepared.forward(slot, rank)(inputs), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scheme", [ChannelSVD(), SpatialSVD()])
@pytest.mark.parametrize("rank", [None, 1, 5, 20])
def test_linear_layers_too(scheme: Scheme, rank: int | None) -> None:
    inputs = torch.randn(2, 3, 40, dtype=torch.float64)
    slot = slot_of(nn.Linear(40, 30).double(), scheme, inputs)
    slot.rank = rank
    found = PreparedLayers([slot]).forward(slot, rank)(inputs)
    torch.testing.assert_close(found, slot(inputs), rtol=1e-9, atol=1e-9)


def test_a_fold_is_rounded_once_even_in_half_precision() -> None:
    conv, norm = nn.Conv2d(3, 4, 3).bfloat16(), norm_of(4, torch.bfloat16)
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    slot = slot_of(conv, ChannelSVD(), inputs)
    prepared = PreparedLayers([slot])
    assert prepared.fold(slot, norm)
    found = prepared.forward(slot, None)(inputs)
    assert found.dtype == torch.bfloat16
    exact = norm.double()(conv.double()(inputs.double()))
    assert float((found.double() - exact).abs().max()) <= 2**-7 * float(exact.abs().max())


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def hooked(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    norm.register_forward_hook(lambda module, inputs, output: output * 2)
    return norm


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4).train(),
        nn.BatchNorm2d(4, track_running_stats=False).eval(),
        OwnNorm(4).eval(),
        hooked(nn.BatchNorm2d(4).eval()),
    ],
    ids=["train", "batch statistics", "subclass", "hook"],
)
def test_what_is_no_plain_batch_norm_in_eval_mode_is_not_folded(norm: nn.BatchNorm2d) -> None:
    assert fold_of(norm) is None


def test_without_weight_and_bias_a_batch_norm_folds_as_well() -> None:
    norm = nn.BatchNorm2d(3, affine=False).eval()
    fold = fold_of(norm)
    assert fold is not None
    inputs = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        (inputs * fold.scale.view(-1, 1, 1) + fold.shift.view(-1, 1, 1)).float(), norm(inputs), rtol=1e-6, atol=1e-6
    )


def test_nothing_is_folded_into_a_linear_layer() -> None:
    inputs = torch.randn(2, 5, 5, 5)  # channels in the second dimension, features in the last: the sizes even fit
    slot = slot_of(nn.Linear(5, 5), ChannelSVD(), inputs)
    assert not PreparedLayers([slot]).fold(slot, norm_of(5, torch.float32))


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_that_the_layer_does_not_have_is_refused(rank: int) -> None:
    slot = slot_of(nn.Linear(4, 6), ChannelSVD(), torch.randn(2, 4))
    with pytest.raises(ValueError, match=rf"0 has no rank {rank}"):
        PreparedLayers([slot]).forward(slot, rank)


def test_low_ranks_run_as_cascades_and_high_ones_multiplied_out() -> None:
    inputs = torch.randn(2, 64, 4, 4)
    slot = slot_of(nn.Conv2d(64, 64, 3, padding=1), ChannelSVD(), inputs)
    prepared = PreparedLayers([slot])
    sizes = {}
    for rank in (1, 16, 17, 48, 49, 64):
        prepared.forward(slot, rank)
        sizes[rank] = prepared._kept[slot, rank][1] // 4
    cascades = {rank: rank * 64 * 9 + rank * 64 for rank in (1, 16, 17, 48)}
    assert sizes == {**cascades, 49: 64 * 64 * 9, 64: 64 * 64 * 9}


def test_the_weights_kept_stay_within_the_limit() -> None:
    inputs = torch.randn(2, 8, 4, 4)
    slot = slot_of(nn.Conv2d(8, 8, 3), ChannelSVD(), inputs)
    one = 8 * 8 * 9 * 4
    prepared = PreparedLayers([slot], limit_bytes=3 * one)
    made = [prepared.forward(slot, rank) for rank in range(1, 9)]
    assert len(prepared._kept) == 3
    assert prepared._held == sum(size for _, size in prepared._kept.values()) <= 3 * one
    assert prepared.forward(slot, 8) is made[-1]  # kept
    torch.testing.assert_close(prepared.forward(slot, 1)(inputs), made[0](inputs))  # prepared again


def test_weights_larger_than_the_limit_run_on_views() -> None:
    inputs = torch.randn(2, 8, 4, 4)
    slot = slot_of(nn.Conv2d(8, 8, 3), ChannelSVD(), inputs)
    prepared = PreparedLayers([slot], limit_bytes=100)
    assert prepared.on_views
    assert not prepared.fold(slot, norm_of(8, torch.float32))
    for rank in (None, 3):
        slot.rank = rank
        expected = slot(inputs)
        slot.rank = 1
        torch.testing.assert_close(prepared.forward(slot, rank)(inputs), expected)
    assert not prepared._kept


def test_neither_weights_nor_factors_are_written_to() -> None:
    inputs = torch.randn(2, 8, 4, 4)
    slot = slot_of(nn.Conv2d(8, 8, 3), SpatialSVD(), inputs)
    before = [slot.module.weight.clone(), *(one.clone() for one in slot.factors.tensors().values())]
    prepared = PreparedLayers([slot])
    prepared.fold(slot, norm_of(8, torch.float32))
    for rank in (None, 1, 8):
        prepared.forward(slot, rank)(inputs)
    after = [slot.module.weight, *slot.factors.tensors().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
