"""A model's forward as a straight list of steps, so that it can be resumed in the middle.

The model is traced by torch.fx with its slots as leaves. In-place operations become out-of-place ones where that
provably changes nothing (nobody else reads what they overwrite), because values before the cut are shared by children.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from search_spaces.survey import without_fused_attention
from workers.causes import cause
from workers.out_of_place import CannotBeCut, is_fresh, make_out_of_place
from workers.slot import Slot

__all__ = ["CannotBeCut", "ForwardGraph", "Step", "trace_forward"]

Env = list[Any]


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
        is_given: its value is an input or a constant, not computed.
        fresh: its value is a new tensor, that shares memory with no other.
        operation: `relu` or `add`, where it is that of `operands` and of nothing else.
        operands: steps that it reads, where that is all it reads.
        constant: its value, where that is a tensor of the model's own.
    """

    run: Callable[[Env], Any]
    name: str
    slot: Slot | None = None
    source: int = -1
    module: nn.Module | None = None
    free: list[int] = field(default_factory=list)
    users: int = 0
    is_given: bool = False
    fresh: bool = False
    operation: Literal["", "relu", "add"] = ""
    operands: tuple[int, ...] = ()
    constant: torch.Tensor | None = None


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

    def cast(self, dtype: torch.dtype) -> None:
        """Casts what the steps hold beside the slots, parameters and buffers of modules and constants, to a type."""
        for step in self.steps:
            if step.module is not None and step.slot is None:
                step.module.to(dtype)
            elif step.constant is not None and step.constant.is_floating_point():
                step.run = _always(step.constant.to(dtype))

    def begin(self, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> Env:
        """An environment that holds the inputs."""
        env: Env = [None] * len(self.steps)
        given = inputs if isinstance(inputs, Mapping) else {"": inputs}
        for name, index in self.inputs.items():
            env[index] = given[name]
        return env


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is: torch.fx would make it `x = x + y`, which other names of x do not see."""

    def __iadd__(self, other: object) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: object) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: object) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: object) -> Any:
        return self._in_place(operator.itruediv, other)

    def _refuse(self, _other: object) -> Any:
        raise CannotBeCut("it has an in-place operator other than +=, -=, *= and /=")

    __ifloordiv__ = __imod__ = __ipow__ = __imatmul__ = __iand__ = __ior__ = __ixor__ = _refuse
    __ilshift__ = __irshift__ = _refuse

    def __setitem__(self, _place: object, _value: object) -> None:
        raise CannotBeCut("it writes into a part of a tensor")

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("tracer", "node") and not name.startswith("_"):
            raise CannotBeCut(f"it sets the attribute {name} of a tensor")
        super().__setattr__(name, value)

    def _in_place(self, function: Callable[..., Any], other: object) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    """Slots are leaves, like torch's own layers."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Slot) or super().is_leaf_module(m, module_qualified_name)


def trace_forward(model: nn.Module, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> ForwardGraph:
    """Traces a model whose layers are slots; its modules do not work in place any more.

    Args:
        inputs: as the model is called with; only the names matter.

    Raises:
        CannotBeCut: control flow on values, an in-place operation whose effect is seen elsewhere, and the like.
    """
    names, fixed = _arguments(model, inputs)
    try:
        with without_fused_attention():
            graph = _Tracer().trace(model, concrete_args=fixed or None)
    except CannotBeCut:
        raise
    except Exception as error:  # whatever the user's forward does to proxies
        raise CannotBeCut(f"torch.fx cannot trace its forward ({cause(error)})") from None
    graph.owning_module = model  # type: ignore[assignment]  # only looked up in, to tell what has side effects
    modules = dict(model.named_modules(remove_duplicate=False))
    _check_leaves(graph, modules)
    make_out_of_place(graph, modules)
    graph.eliminate_dead_code()
    nodes = [node for node in graph.nodes if node.op != "output"]
    output = next(node for node in graph.nodes if node.op == "output")
    return _assemble_steps(model, modules, nodes, output, names)


def _check_leaves(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Torch's own modules are single steps; a layer within one could not be the place of a cut."""
    for node in graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if (
            module is not None
            and not isinstance(module, Slot)
            and any(isinstance(one, Slot) for one in module.modules())
        ):
            raise CannotBeCut(f"torch.fx does not look into torch's {type(module).__name__}, which calls layers")


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
        if node.op == "placeholder" and str(node.target) in names:
            inputs[names[str(node.target)]] = position
        step = _input_step(node, position) if node.op == "placeholder" else _step(model, modules, node, index)
        step.users = len(node.users)
        steps.append(step)
        if step.slot is not None:
            first_call.setdefault(step.slot, position)
    result = _evaluator(output.args[0], index)
    steps.append(Step(result, "output"))
    _plan_forgetting(steps, nodes, index, output)
    return ForwardGraph(tuple(steps), inputs, first_call)


def _plan_forgetting(steps: list[Step], nodes: list[fx.Node], index: dict[fx.Node, int], output: fx.Node) -> None:
    """Values are forgotten after their last reader, inputs and constants included."""
    for node in nodes:
        readers = [len(steps) - 1 if user is output else index[user] for user in node.users]
        if node.op != "get_attr":
            steps[max(readers, default=index[node])].free.append(index[node])


def _input_step(node: fx.Node, position: int) -> Step:
    """An input stays what it is; an argument that is not given has its default."""
    default = node.args[0] if node.args else None
    return Step(lambda env: default if env[position] is None else env[position], node.name, is_given=True)


def _step(model: nn.Module, modules: dict[str, nn.Module], node: fx.Node, index: dict[fx.Node, int]) -> Step:
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(model)
        constant = value if isinstance(value, torch.Tensor) else None
        return Step(_always(value), node.name, is_given=True, constant=constant)
    given = node.args[0] if node.args else node.kwargs.get("input")
    source = index[given] if isinstance(given, fx.Node) else -1
    module = modules[str(node.target)] if node.op == "call_module" else None
    step = Step(_call(_target(node, module), node.args, node.kwargs, index), node.name, source=source, module=module)
    step.slot = module if isinstance(module, Slot) else None
    step.fresh = is_fresh(node, modules)
    if not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args):
        step.operation = _operation(node, module)
        step.operands = tuple(index[arg] for arg in node.all_input_nodes)
    return step


def _always(value: object) -> Callable[[Env], Any]:
    return lambda _env: value


def _target(node: fx.Node, module: nn.Module | None) -> Callable[..., Any]:
    """What a node calls."""
    if module is not None:
        return module
    if node.op == "call_method":
        name = str(node.target)
        return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    return function


def _operation(node: fx.Node, module: nn.Module | None) -> Literal["", "relu", "add"]:
    """Which of the operations that may reuse memory a node is."""
    if node.target in (operator.add, torch.add, "add") and len(node.args) == 2:
        return "add"
    is_module = type(module) is nn.ReLU and not module._forward_hooks and not module._forward_pre_hooks
    is_relu = is_module or node.target in (torch.relu, functional.relu, "relu")
    return "relu" if is_relu and len(node.args) == 1 else ""


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
