"""Specifies slots: layers that take any rank at once, and compute what the assembled cascade computes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.assembly import assemble
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.survey import survey
from tests.workers.random_networks import Network, Padded, Shared, TorchEncoder, cases, families, make_case
from workers.batch import logits, run_model
from workers.slot import Slot, open_slots


@settings(max_examples=25)
@given(data=st.data())
def test_a_network_of_slots_computes_what_the_assembled_one_does(data: st.DataObject) -> None:
    case = data.draw(cases())
    model, layers, schemes, factors, batch = case.arguments
    slots = open_slots(model, layers, schemes, factors)
    parent, _ = data.draw(families(case))
    for slot, rank in zip(slots, parent, strict=True):
        slot.rank = rank
    with torch.inference_mode():
        found = logits(run_model(model, batch.inputs))
        expected = logits(run_model(assemble(case.model, layers, schemes, parent, factors), batch.inputs))
    tolerance = 1e-5 if found.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_slots_are_in_the_layers_order_and_start_dense() -> None:
    case = make_case(Network([Shared, Padded], random.Random(0)))
    model, layers, schemes, factors, batch = case.arguments
    slots = open_slots(model, layers, schemes, factors)
    assert [slot.layer.name for slot in slots] == [layer.name for layer in layers]
    assert all(slot.rank is None for slot in slots)
    torch.testing.assert_close(run_model(model, batch.inputs), case.outputs((None,) * len(slots)))


def test_a_layer_under_two_names_is_one_slot() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.one(x))

    case = make_case(Twice(), inputs=torch.randn(7, 3))
    model, layers, schemes, factors, batch = case.arguments
    (slot,) = open_slots(model, layers, schemes, factors)
    assert model.one is model.other is slot
    slot.rank = 1
    torch.testing.assert_close(run_model(model, batch.inputs), case.outputs((1,)))


def test_ranks_change_at_once_and_weights_are_views() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 4)).requires_grad_(False)
    inputs = torch.randn(2, 5)
    layers = list(survey(model, lambda one: one(inputs[:1])).layers)
    scheme = ChannelSVD()
    factors = scheme.factorise(layers[0], model[0].weight)
    (slot,) = open_slots(model, layers, [scheme], {"0": factors})
    slot.rank = 2
    before = slot(inputs)
    factors.encoder[:2] *= 2  # seen at once: nothing was copied
    torch.testing.assert_close(slot(inputs) - slot.module.bias, 2 * (before - slot.module.bias))
    slot.rank = None
    torch.testing.assert_close(slot(inputs), slot.module(inputs))


def test_the_input_may_be_named_as_torch_names_it() -> None:
    case = make_case(Network([Padded], random.Random(0)))
    model, layers, schemes, factors, batch = case.arguments
    slot = open_slots(model, layers, schemes, factors)[0]
    assert isinstance(batch.inputs, Tensor)
    torch.testing.assert_close(slot(input=batch.inputs), slot(batch.inputs))


def test_a_slot_adds_nothing_to_what_the_model_saves() -> None:
    case = make_case(Network([Shared], random.Random(0)))
    model, layers, schemes, factors, _ = case.arguments
    count = sum(parameter.numel() for parameter in model.parameters())
    open_slots(model, layers, schemes, factors)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert not any("stages" in name for name, _ in model.named_modules())


def test_torch_s_fused_transformer_layer_calls_its_slots() -> None:
    case = make_case(Network([TorchEncoder], random.Random(0)))
    model, layers, schemes, factors, batch = case.arguments
    called: list[str] = []
    for slot in open_slots(model, layers, schemes, factors):
        slot.register_forward_hook(lambda module, inputs, output: called.append(module.layer.name))
    with torch.inference_mode():
        run_model(model, batch.inputs)
    assert {"blocks.0.encoder.linear1", "blocks.0.encoder.linear2"} <= set(called)


@pytest.mark.parametrize("rank", [0, 99])
def test_a_rank_that_the_layer_does_not_have_raises(rank: int) -> None:
    case = make_case(Network([Shared], random.Random(0)))
    model, layers, schemes, factors, batch = case.arguments
    slot: Slot = open_slots(model, layers, schemes, factors)[0]
    slot.rank = rank
    with pytest.raises(RuntimeError):
        run_model(model, batch.inputs)
