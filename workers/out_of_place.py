"""Makes a traced graph free of in-place operations, where that provably changes nothing.

Values before a cut are shared by all children of a parent: whoever wrote to one would change it for the others.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from workers.slot import Slot

__all__ = ["CannotBeCut", "is_fresh", "make_out_of_place"]


class CannotBeCut(Exception):
    """Why a model's forward cannot be resumed in the middle, in one clause."""


# Whose value is always a new tensor. Not Dropout or Identity: they may return their input.
_FRESH_MODULES = (
    *(nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU),
)
_FRESH_FUNCTIONS = {
    *(operator.add, operator.mul, operator.sub, operator.truediv, torch.add, torch.mul, torch.sub, torch.cat),
    *(torch.relu, functional.relu, functional.gelu, functional.silu, torch.sigmoid, torch.tanh, torch.matmul),
    *(functional.batch_norm, functional.layer_norm, functional.linear),
}
_FRESH_METHODS = {"add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "matmul"}

_IN_PLACE_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def make_out_of_place(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Changes the graph, and the `inplace` of modules that it calls, so that nothing in it writes to a value.

    Args:
        modules: that it calls, by name.

    Raises:
        CannotBeCut: where that would change what it computes, or cannot be told.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    called = {node: modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    writers = {node for node, module in called.items() if getattr(module, "inplace", False)}
    for node in writers:
        setattr(called[node], "inplace", False)  # noqa: B010  # torch's types know no such attribute of a module
    for node in graph.nodes:
        if node.op == "call_method":
            writes = _replace_method(node)
        elif node.op == "call_function":
            writes = _replace_function(node)
        else:
            writes = node in writers
        if writes:
            _redirect_readers(node, modules, order)


def is_fresh(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node's value is a new tensor that shares memory with no other."""
    if node.op == "call_function":
        return node.target in _FRESH_FUNCTIONS
    if node.op == "call_method":
        return node.target in _FRESH_METHODS
    if node.op != "call_module":
        return False
    module = modules[str(node.target)]
    return isinstance(module, Slot) or (type(module) in _FRESH_MODULES and not module._forward_hooks)


def _redirect_readers(node: fx.Node, modules: Mapping[str, nn.Module], order: Mapping[fx.Node, int]) -> None:
    """Whoever read what an in-place operation wrote to reads the operation's value instead.

    That is right where the written value was a new tensor, and the operation the first to see it: then nobody has
    read the old value, or holds a view of it.
    """
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not is_fresh(source, modules):
        raise CannotBeCut(f"{node.name} writes in place to what may be a view of another value")
    if any(order[user] < order[node] for user in source.users):
        raise CannotBeCut(f"{node.name} writes in place to a value that was read before")
    source.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)


def _replace_method(node: fx.Node) -> bool:
    """Replaces an in-place method of tensors; whether it was one."""
    name = str(node.target)
    if name == "view" and all(isinstance(arg, int | tuple | list | fx.Node) for arg in node.args):
        node.target = "reshape"  # the same values in any memory layout; nothing writes to them any more
    if not name.endswith("_") or name.endswith("__"):
        return False
    if not hasattr(torch.Tensor, name[:-1]):
        raise CannotBeCut(f"it calls {name} on a tensor")
    node.target = name[:-1]
    return True


def _replace_function(node: fx.Node) -> bool:
    """Replaces an in-place function; whether it was one."""
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    name = getattr(function, "__name__", str(function))
    if function in _IN_PLACE_OPERATORS:
        node.target = _IN_PLACE_OPERATORS[function]
        return True
    if name.endswith("_") or "out" in node.kwargs:
        raise CannotBeCut(f"it calls {name} in place")
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C: none of those has an argument `inplace`
        return False
    if "inplace" not in parameters:
        return False
    place = parameters.index("inplace")
    writes = bool(node.kwargs.get("inplace")) or any(node.args[place : place + 1])
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    node.args = (*node.args[:place], *(False for _ in node.args[place : place + 1]), *node.args[place + 1 :])
    return writes
