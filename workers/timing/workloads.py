"""The two things that are timed: one layer, dense or as a cascade, and a whole network."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from search_spaces.assembly import cascade, replace_layers
from search_spaces.errors import MeasurementError
from search_spaces.layers import Call, Layer, Stage
from search_spaces.rank_space import Rank, RankVector
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.registry import schemes
from workers.causes import cause
from workers.timing.contract import Program

__all__ = ["LayerWorkload", "NetworkWorkload", "layer_workloads", "network_workload"]

SEED = 0
"""Of every workload's weights and inputs."""


class _ByWork:
    """Equality by what runs, for workloads."""

    subject: str
    batch_size: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ByWork):
            return NotImplemented
        return (self.subject, self.batch_size) == (other.subject, other.batch_size)

    def __hash__(self) -> int:
        return hash((self.subject, self.batch_size))


@dataclass(frozen=True, eq=False)
class LayerWorkload(_ByWork):
    """One call of a layer: numbers only.

    Attributes:
        dense: the layer as a stage.
        bias: whether it has one.
        height, width: of its input; a linear layer over P positions is `(1, P)`, and its input then `(N, P, in)`.
        scheme: the name of the scheme that factorises it; None if it is dense.
        rank: None if it is dense.
        batch_size: inputs per call.
    """

    dense: Stage
    bias: bool
    height: int
    width: int
    scheme: str | None = None
    rank: Rank | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.rank is None:
            object.__setattr__(self, "scheme", None)
        elif self.scheme is None:
            raise ValueError(f"rank {self.rank} belongs to a scheme; name it")
        if min(self.batch_size, self.height, self.width) < 1:
            size = f"{self.height} x {self.width}"
            raise ValueError(f"batch size and input size must be positive, got {self.batch_size} of {size}")

    @property
    def kind(self) -> Literal["layer", "network"]:
        """It is a `layer`."""
        return "layer"

    @cached_property
    def subject(self) -> str:  # type: ignore[override]
        """The stages that run, in order, and the input's size."""
        stages = "; ".join(_stage_text(stage) for stage in self.stages)
        return f"{self.height}x{self.width}: {stages}{'; bias' if self.bias else ''}"

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What runs: the cascade's stages, or the dense one.

        Raises:
            ConfigError: there is no such scheme.
        """
        if self.rank is None or self.scheme is None:
            return (self.dense,)
        return schemes().get(self.scheme, "search.scheme").stages(self._layer, self.rank)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one input."""
        return self._layer.macs(self.stages)

    def program(self) -> Program:
        """The cascade with random weights; the reference is the dense layer with those weights multiplied out."""
        generator = torch.Generator().manual_seed(SEED)
        like = nn.Conv2d(1, 1, 1).eval()
        module = cascade(self._layer, self.stages, like)
        _initialise(module, generator)
        dense = cascade(self._layer, (self.dense,), like)
        with torch.no_grad():
            dense[0].get_parameter("weight").copy_(_multiplied_out(module, self.dense))
            if self.bias:
                dense[0].get_parameter("bias").copy_(module[-1].get_parameter("bias"))
            inputs = torch.randn(self._input_shape, generator=generator)
            reference = dense(inputs)
        return Program(module, inputs, reference)

    @property
    def _layer(self) -> Layer:
        return Layer("", self.dense, self.bias, (Call(self.height, self.width),))

    @property
    def _input_shape(self) -> tuple[int, ...]:
        channels = self.dense.in_channels
        if not self.dense.linear:
            return self.batch_size, channels, self.height, self.width
        positions = self.height * self.width
        return (self.batch_size, channels) if positions == 1 else (self.batch_size, positions, channels)

    def __getstate__(self) -> dict[str, object]:
        """Without what was derived."""
        return {name: value for name, value in self.__dict__.items() if name not in ("subject", "stages")}


def layer_workloads(layer: Layer, scheme: str, rank: Rank | None, batch_size: int = 1) -> tuple[LayerWorkload, ...]:
    """One workload per call of the layer, so that its latency is their sum; equal calls are equal workloads.

    Args:
        scheme: by name.
        rank: None is dense.
        batch_size: samples; a call that one sample causes several times (windows folded into the batch) has that many
            more inputs.
    """
    return tuple(
        LayerWorkload(layer.dense, layer.bias, call.height, call.width, scheme, rank, batch_size * call.count)
        for call in layer.calls
    )


@dataclass(frozen=True, eq=False)
class NetworkWorkload(_ByWork):
    """A whole network.

    Attributes:
        module: on the CPU; its weights are finite, and otherwise do not matter.
        input_shape: of one sample, without the batch dimension; inputs are drawn from a normal distribution.
        batch_size: samples per call.
        macs: multiply-accumulates of one sample, where known.
    """

    module: nn.Module = field(repr=False)
    input_shape: tuple[int, ...]
    batch_size: int = 1
    macs: int = 0

    @property
    def kind(self) -> Literal["layer", "network"]:
        """It is a `network`."""
        return "network"

    @cached_property
    def subject(self) -> str:  # type: ignore[override]
        """A digest of the architecture, with the input's size."""
        return f"{'x'.join(map(str, self.input_shape))}: {_architecture(self.module)}"

    def program(self) -> Program:
        """The network as it is; the reference is what torch gives in float32.

        Raises:
            MeasurementError: it does not take such inputs, or does not return one tensor.
        """
        module = copy.deepcopy(self.module).cpu().float().eval().requires_grad_(False)
        inputs = torch.randn(self.batch_size, *self.input_shape, generator=torch.Generator().manual_seed(SEED))
        try:
            with torch.no_grad():
                reference = module(inputs)
        except Exception as error:
            given = tuple(inputs.shape)
            raise MeasurementError("network", f"does not take inputs of {given}: {cause(error)}") from error
        if not isinstance(reference, torch.Tensor):
            found = type(reference).__name__
            raise MeasurementError("network", f"returns {found}; only networks that return one tensor are timed")
        return Program(module, inputs, reference)


def network_workload(
    model: nn.Module,
    layers: Sequence[Layer],
    chosen: Sequence[Scheme],
    ranks: RankVector,
    input_shape: Sequence[int],
    batch_size: int = 1,
) -> NetworkWorkload:
    """The network at a rank vector, as a workload; its cascades have random weights, for time is the same with any.

    Args:
        model: dense; left as it is.
        layers, chosen, ranks: aligned: layers of the space, their schemes and ranks; None is dense.
        input_shape: of one sample.
        batch_size: samples per call.
    """
    network = replace_layers(copy.deepcopy(model).cpu(), layers, chosen, ranks).eval()
    generator = torch.Generator().manual_seed(SEED)
    macs = 0
    for layer, scheme, rank in zip(layers, chosen, ranks, strict=True):
        macs += layer.macs((layer.dense,) if rank is None else scheme.stages(layer, rank))
        if rank is not None:
            _initialise(network.get_submodule(layer.name), generator)
    return NetworkWorkload(network, tuple(input_shape), batch_size, macs)


def _initialise(stages: nn.Module, generator: torch.Generator) -> None:
    """Draws weights that keep the size of activations: denormal or infinite numbers would take other times."""
    with torch.no_grad():
        for name, parameter in stages.named_parameters():
            fan_in = math.prod(parameter.shape[1:]) if name.endswith("weight") else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    stages.requires_grad_(False)


def _multiplied_out(module: nn.Module, dense: Stage) -> torch.Tensor:
    """The dense weight that a cascade computes: every stage's transpose in turn, from the outputs back to the inputs.

    It holds for every scheme, and knows none of them. Strides and dilations do not enter: along each axis, one stage
    alone has a kernel wider than 1. In float64, so that the reference's error is the backend's.
    """
    stages = [stage.get_parameter("weight").double() for stage in module.children()]
    out = dense.out_channels
    if dense.linear:
        return functools.reduce(torch.matmul, reversed(stages))
    kernels = torch.eye(out, dtype=torch.float64).view(out, out, 1, 1)
    for stage, weight in zip(reversed(list(module.children())), reversed(stages), strict=True):
        kernels = functional.conv_transpose2d(kernels, weight, groups=stage.groups)  # type: ignore[arg-type]
    return kernels


def _stage_text(stage: Stage) -> str:
    """Everything that sets a stage's work, what is usual left out."""
    size = f"{stage.in_channels}>{stage.out_channels}"
    if stage.linear:
        return f"linear {size}"
    padding = stage.padding if isinstance(stage.padding, str) else _pair(stage.padding)
    extras = [
        f"stride {_pair(stage.stride)}" if stage.stride != (1, 1) else "",
        f"padding {padding}" if stage.padding != (0, 0) else "",
        f"dilation {_pair(stage.dilation)}" if stage.dilation != (1, 1) else "",
        f"groups {stage.groups}" if stage.groups != 1 else "",
        stage.padding_mode if stage.padding_mode != "zeros" else "",
    ]
    return " ".join(["conv", size, _pair(stage.kernel), *filter(None, extras)])


def _pair(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}x{numbers[1]}"


def _architecture(network: nn.Module) -> str:
    """SHA-256 over every module's name, class and settings, the source of classes that are not torch's, and shapes."""
    sha = hashlib.sha256()
    for name, module in network.named_modules(remove_duplicate=False):
        kind = type(module)
        sha.update(f"{name!r} {kind.__module__}.{kind.__qualname__} {module.extra_repr()}\n".encode())
        if not kind.__module__.startswith("torch."):
            sha.update(_source(kind).encode())
    for name, tensor in network.state_dict(keep_vars=True).items():
        sha.update(f"{name!r} {tuple(tensor.shape)}\n".encode())
    return sha.hexdigest()


def _source(kind: type) -> str:
    """A class's text, where there is a file to read it from."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
