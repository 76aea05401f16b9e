"""A model's forward as a straight list of steps, so that it can be resumed in the middle.

The model is traced by torch.fx with its slots as leaves. In-place operations become out-of-place ones where that
provably changes nothing (nobody else reads what they overwrite), because values before the cut are shared by children.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from search_spaces.survey import without_fused_attention
from workers.causes import cause
from workers.slot import Slot

__all__ = ["CannotBeCut", "ForwardGraph", "Step", "trace_forward"]

Env = list[Any]


class CannotBeCut(Exception):
    """Why a model's forward cannot be resumed in the middle, in one clause."""


@dataclass
class Step:
    """One operation.

    Attributes:
        run: computes its value from the environment, a list of the values of earlier steps.
        slot: the slot that it calls, if it does.
        source: index of its input, where it is a slot or a module of one input.
        module: the module that it calls, if it does.
        free: steps whose values nobody needs after this one.
        users: how many steps read its value.
    """

    run: Callable[[Env], Any]
    name: str
    slot: Slot | None = None
    source: int = -1
    module: nn.Module | None = None
    free: list[int] = field(default_factory=list)
    users: int = 0


@dataclass(frozen=True)
class ForwardGraph:
    """A forward pass as steps.

    Attributes:
        steps: in the order of execution; the last one's value is the output.
        inputs: index of each input's step, by name; the name is empty for a model of one tensor.
        first_call: by slot, the index of the first step that calls it.
    """

    steps: tuple[Step, ...]
    inputs: Mapping[str, int]
    first_call: Mapping[Slot, int]

    def run(self, env: Env, start: int, stop: int) -> None:
        """Runs the steps from `start` up to, not including, `stop`; forgets values that nobody needs any more."""
        for index in range(start, stop):
            step = self.steps[index]
            env[index] = step.run(env)
            for dead in step.free:
                env[dead] = None

    def begin(self, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> Env:
        """An environment that holds the inputs."""
        env: Env = [None] * len(self.steps)
        given = inputs if isinstance(inputs, Mapping) else {"": inputs}
        for name, index in self.inputs.items():
            env[index] = given[name]
        return env


class _Tracer(fx.Tracer):
    """Slots are leaves, like torch's own layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Slot) or super().is_leaf_module(m, module_qualified_name)


def trace_forward(model: nn.Module, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> ForwardGraph:
    """Traces a model whose layers are slots.

    Args:
        inputs: as the model is called with; only the names matter.

    Raises:
        CannotBeCut: control flow on values, an in-place operation whose effect is seen elsewhere, and the like.
    """
    names, fixed = _arguments(model, inputs)
    try:
        with without_fused_attention():
            graph = _Tracer().trace(model, concrete_args=fixed or None)
    except Exception as error:  # whatever the user's forward does to proxies
        raise CannotBeCut(f"torch.fx cannot trace its forward ({cause(error)})") from None
    graph.owning_module = model  # type: ignore[assignment]  # only looked up in, to tell what has side effects
    graph.eliminate_dead_code()
    modules = dict(model.named_modules(remove_duplicate=False))
    nodes = [node for node in graph.nodes if node.op != "output"]
    output = next(node for node in graph.nodes if node.op == "output")
    return _assemble_steps(model, modules, nodes, output, names)


def _arguments(
    model: nn.Module, inputs: torch.Tensor | Mapping[str, torch.Tensor]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Input names by parameter name, and the defaults of the parameters that are not given."""
    parameters = inspect.signature(model.forward).parameters
    if any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters.values()):
        raise CannotBeCut("its forward takes *args or **kwargs")
    if isinstance(inputs, Mapping):
        if not set(inputs) <= set(parameters):
            raise CannotBeCut("its forward takes its inputs as one dict")
        given = {name: name for name in inputs}
    else:
        given = {next(iter(parameters)): ""}
    return given, {name: one.default for name, one in parameters.items() if name not in given}


def _assemble_steps(
    model: nn.Module, modules: dict[str, nn.Module], nodes: list[fx.Node], output: fx.Node, names: dict[str, str]
) -> ForwardGraph:
    index = {node: position for position, node in enumerate(nodes)}
    steps: list[Step] = []
    inputs: dict[str, int] = {}
    first_call: dict[Slot, int] = {}
    for position, node in enumerate(nodes):
        if node.op == "placeholder":
            inputs[names.get(str(node.target), str(node.target))] = position
        step = _step(model, modules, node, index)
        step.users = len(node.users)
        steps.append(step)
        if step.slot is not None:
            first_call.setdefault(step.slot, position)
    if not set(names.values()) <= set(inputs):
        raise CannotBeCut("its forward does not use all inputs")
    result = _evaluator(output.args[0], index)
    steps.append(Step(result, "output"))
    _plan_forgetting(steps, nodes, index, output)
    return ForwardGraph(tuple(steps), inputs, first_call)


def _plan_forgetting(steps: list[Step], nodes: list[fx.Node], index: dict[fx.Node, int], output: fx.Node) -> None:
    """Values are forgotten after their last reader, inputs and constants included."""
    for node in nodes:
        readers = [len(steps) - 1 if user is output else index[user] for user in node.users]
        if readers and node.op != "get_attr":
            steps[max(readers)].free.append(index[node])


def _step(model: nn.Module, modules: dict[str, nn.Module], node: fx.Node, index: dict[fx.Node, int]) -> Step:
    position = index[node]
    if node.op == "placeholder":
        return Step(lambda env: env[position], node.name)
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(model)
        return Step(lambda _env: value, node.name)
    source = index[node.args[0]] if node.args and isinstance(node.args[0], fx.Node) else -1
    target = _out_of_place(node, modules)
    arguments = _call(target, node.args, node.kwargs, index)
    module = modules[str(node.target)] if node.op == "call_module" else None
    return Step(arguments, node.name, module if isinstance(module, Slot) else None, source, module)


def _out_of_place(node: fx.Node, modules: dict[str, nn.Module]) -> Callable[..., Any]:
    """What a node calls, without writing to its input.

    Raises:
        CannotBeCut: it writes to a value that others read as well, or that may share memory with another.
    """
    if node.op == "call_module":
        module = modules[str(node.target)]
        if getattr(module, "inplace", False):
            _check_private(node, modules)
            setattr(module, "inplace", False)  # noqa: B010  # torch's types know no such attribute of a module
        return module
    if node.op == "call_method":
        name = str(node.target)
        if name.endswith("_") and not name.endswith("__"):
            _check_private(node, modules)
            name = name[:-1]
            if not hasattr(torch.Tensor, name):
                raise CannotBeCut(f"it calls {node.target} on a tensor in place")
        return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    if function in _IN_PLACE_OPERATORS:
        _check_private(node, modules)
        return _IN_PLACE_OPERATORS[function]
    if function in (setattr, operator.setitem):
        raise CannotBeCut("it writes into a tensor in place")
    if node.kwargs.get("inplace"):
        _check_private(node, modules)
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    if getattr(function, "__name__", "").endswith("_") or "out" in node.kwargs:
        raise CannotBeCut(f"it calls {getattr(function, '__name__', function)} in place")
    return function


_IN_PLACE_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

_FRESH_MODULES = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d)
_FRESH_FUNCTIONS = {operator.add, operator.iadd, operator.mul, operator.sub, torch.add, torch.cat, torch.mul}


def _check_private(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """An in-place operation may be replaced if its input is a new tensor that only it reads.

    A view of another tensor is no new tensor: writing to it would change the other one.
    """
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        raise CannotBeCut(f"{node.name} writes in place to a value that is read elsewhere")
    module = modules.get(str(source.target)) if source.op == "call_module" else None
    is_fresh_function = source.op == "call_function" and source.target in _FRESH_FUNCTIONS
    if isinstance(module, (Slot, *_FRESH_MODULES)) or is_fresh_function:
        return
    raise CannotBeCut(f"{node.name} writes in place to what may be a view of another value")


def _call(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], index: dict[fx.Node, int]
) -> Callable[[Env], Any]:
    """A function of the environment; the frequent shapes of calls are spelled out: this runs millions of times."""
    if not kwargs and len(args) == 1 and isinstance(args[0], fx.Node):
        one = index[args[0]]
        return lambda env: target(env[one])
    if not kwargs and len(args) == 2 and all(isinstance(arg, fx.Node) for arg in args):
        first, second = index[args[0]], index[args[1]]
        return lambda env: target(env[first], env[second])
    positional = _evaluator(list(args), index)
    named = _evaluator(dict(kwargs), index)
    return lambda env: target(*positional(env), **named(env))


def _evaluator(value: Any, index: dict[fx.Node, int]) -> Callable[[Env], Any]:
    """A function that puts values in the places of nodes, however nested."""
    if isinstance(value, fx.Node):
        position = index[value]
        return lambda env: env[position]
    return lambda env: fx.node.map_arg(value, lambda node: env[index[node]])
