"""Specifies the forward pass as a list of steps: what is traced, what is refused, and what every value is."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.survey import survey
from tests.workers.random_networks import TRACEABLE, Case, Network, TorchEncoder, make_case
from workers.batch import run_model
from workers.forward_graph import CannotBeCut, ForwardGraph, trace_forward
from workers.slot import open_slots


def traced(case: Case) -> tuple[ForwardGraph, nn.Module]:
    model, layers, schemes, factors, batch = case.arguments
    open_slots(model, layers, schemes, factors)
    return trace_forward(model, batch.inputs), model


class Written(nn.Module):
    """Two layers, and what a test writes in between: a function of the input and both layers."""

    def __init__(self, write: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.write = nn.Linear(4, 4), nn.Linear(4, 3), write
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Any:
        return self.write(self, x)


def written(write: Callable[[Any, Tensor], Any]) -> tuple[nn.Module, Tensor]:
    """A network of slots whose forward is `write`, and an input."""
    torch.manual_seed(0)
    model, inputs = Written(write).eval(), torch.randn(5, 4)
    layers = list(survey(model, lambda one: one(inputs[:1].clone())).layers)
    scheme = ChannelSVD()
    factors = {one.name: scheme.factorise(one, model.get_submodule(one.name).weight.detach()) for one in layers}
    open_slots(model, layers, [scheme] * len(layers), factors)
    return model, inputs


@pytest.mark.parametrize("block", TRACEABLE)
def test_the_steps_compute_what_the_forward_computes(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    case = make_case(Network([block], random.Random(1)))
    graph, model = traced(case)
    with torch.inference_mode():
        env = graph.begin(case.batch.inputs)
        graph.run(env, 0, len(graph.steps))
        torch.testing.assert_close(env[-1], run_model(model, case.batch.inputs))
    assert sorted(graph.first_call.values()) == [
        index for index, step in enumerate(graph.steps) if step.slot and graph.first_call[step.slot] == index
    ]


@pytest.mark.parametrize(
    "write",
    [
        lambda m, x: m.second(m.relu(m.first(x))),
        lambda m, x: m.second(F.relu_(m.first(x)) if x is None else F.relu(m.first(x), inplace=True)),
        lambda m, x: m.second(F.leaky_relu(m.first(x), 0.3, True)),
        lambda m, x: m.second(m.drop(m.first(x).relu())),
        lambda m, x: m.second(m.first(x).mul_(0.5).add_(1.0)),
        lambda m, x: m.second(m.first(x).view(x.size(0), -1)),
        lambda m, x: m.second(torch.cat([m.first(x), m.first(x)], 0)[: x.shape[0]]),
        lambda m, x: {"logits": m.second(m.first(x)), "hidden": [x, (m.first(x), 3)]},
    ],
    ids=["module", "function", "positional", "dropout", "methods", "view", "twice", "nested"],
)
def test_in_place_operations_on_new_tensors_are_traced(write: Callable[[Any, Tensor], Any]) -> None:
    model, inputs = written(write)
    expected = model(inputs.clone())
    graph = trace_forward(model, inputs)
    env = graph.begin(inputs)
    before = inputs.clone()
    for index, step in enumerate(graph.steps):
        held = [(value, value._version) for value in env if isinstance(value, Tensor)]
        env[index] = step.run(env)
        assert all(value._version == version for value, version in held), step.name
    torch.testing.assert_close(env[-1], expected)
    assert torch.equal(inputs, before)


def alias_sees_write(m: Any, x: Tensor) -> Tensor:
    y = alias = m.first(x)
    y += 1.0
    return m.second(alias)


def statement(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    y.mul_(2.0)
    y.add_(x)
    return m.second(y)


def shared_module(m: Any, x: Tensor) -> Tensor:
    y, z = m.first(x), m.first(x * 2)
    m.relu(y)
    m.relu(z)
    return m.second(y - z)


@pytest.mark.parametrize("write", [alias_sees_write, statement, shared_module])
def test_later_readers_of_a_written_tensor_read_what_was_written(write: Callable[[Any, Tensor], Any]) -> None:
    model, inputs = written(write)
    expected = model(inputs.clone())
    graph = trace_forward(model, inputs)
    env = graph.begin(inputs)
    graph.run(env, 0, len(graph.steps))
    torch.testing.assert_close(env[-1], expected)


def earlier_reader(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    z = m.second(y)
    y.relu_()
    return z + y[:, :3]


def earlier_view(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    view = y[:, 1:]
    y.relu_()
    return m.second(y) + view


def through_view(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    y[:, 1:].relu_()
    return m.second(y)


def item(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    y[:, 0] = 0.0
    return m.second(y)


def power(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    y **= 2
    return m.second(y)


def inputs_written(m: Any, x: Tensor) -> Tensor:
    x += 1.0
    return m.second(m.first(x))


def out_argument(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    return m.second(torch.add(y, 1.0, out=y))


def data_set(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    y.data = y * 2
    return m.second(y)


def values_decide(m: Any, x: Tensor) -> Tensor:
    return m.second(m.first(x) if x.sum() > 0 else x)


@pytest.mark.parametrize(
    ("write", "clause"),
    [
        (earlier_reader, "relu_ writes in place to a value that was read before"),
        (earlier_view, "relu_ writes in place to a value that was read before"),
        (through_view, "writes in place to what may be a view of another value"),
        (item, "it writes into a part of a tensor"),
        (power, "it has an in-place operator other than"),
        (inputs_written, "iadd writes in place to what may be a view of another value"),
        (out_argument, "it calls add in place"),
        (data_set, "it sets the attribute data of a tensor"),
        (values_decide, "torch.fx cannot trace its forward"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_clause(write: Callable[[Any, Tensor], Any], clause: str) -> None:
    model, inputs = written(write)
    with pytest.raises(CannotBeCut) as caught:
        trace_forward(model, inputs)
    assert clause in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_inside_torch_s_own_modules_are_out_of_sight() -> None:
    torch.manual_seed(0)
    case = make_case(Network([TorchEncoder], random.Random(0)))
    with pytest.raises(CannotBeCut, match="does not look into torch's TransformerEncoderLayer"):
        traced(case)


def test_values_are_forgotten_after_their_last_reader() -> None:
    model, inputs = written(lambda m, x: m.second(m.first(x)) + m.first(x)[:, :3].exp())
    graph = trace_forward(model, inputs)
    env = graph.begin(inputs)
    graph.run(env, 0, len(graph.steps))
    assert [index for index, value in enumerate(env) if value is not None] == [len(env) - 1]


def test_a_copy_of_the_environment_goes_its_own_way() -> None:
    model, inputs = written(lambda m, x: m.second(m.first(x)))
    graph = trace_forward(model, inputs)
    cut = max(graph.first_call.values())
    env = graph.begin(inputs)
    graph.run(env, 0, cut)
    own = env.copy()
    graph.run(own, cut, len(graph.steps))
    again = env.copy()
    graph.run(again, cut, len(graph.steps))
    assert torch.equal(own[-1], again[-1])


class Defaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, shift: float = 2.0, mask: Tensor | None = None, both: bool = True) -> Any:
        outputs = self.layer(x) + shift if mask is None else self.layer(x * mask)
        return (outputs, x) if both else outputs


@pytest.mark.parametrize("names", [("x",), ("x", "mask")])
def test_arguments_that_are_not_given_have_their_defaults(names: tuple[str, ...]) -> None:
    inputs = {name: torch.randn(5, 4) for name in names}
    model = Defaults()
    layers = list(survey(model, lambda one: one(**inputs)).layers)
    scheme = ChannelSVD()
    open_slots(model, layers, [scheme], {"layer": scheme.factorise(layers[0], model.layer.weight.detach())})
    graph = trace_forward(model, inputs)
    env = graph.begin(inputs)
    graph.run(env, 0, len(graph.steps))
    torch.testing.assert_close(env[-1][0], model(**inputs)[0])
