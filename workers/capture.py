"""A network's computation as a program that needs none of the Python code it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from search_spaces.survey import without_fused_attention
from workers.batch import Inputs, run_model
from workers.quiet_log import quiet_log

__all__ = ["call_arguments", "capture", "tensors_of"]


_LOG = "torch.fx.experimental.symbolic_shapes"
"""Says the graph of a network that torch cannot capture; the error says why in one line."""


class _Arguments:
    """Stands where a network is called and gives back what it was called with."""

    def __init__(self, network: nn.Module) -> None:
        self.forward = network.forward

    def __call__(self, *arguments: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments, named


def call_arguments(network: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments with which `run_model` calls `network` on `inputs`."""
    called: Any = run_model(_Arguments(network), inputs)  # type: ignore[arg-type]
    arguments, named = called
    return arguments, named


def tensors_of(outputs: object) -> list[torch.Tensor]:
    """Every tensor of a network's outputs: a tensor, or mappings, lists and tuples of them."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    return [tensor for part in parts for tensor in tensors_of(part)] if isinstance(parts, list | tuple) else []


def capture(network: nn.Module, example: Inputs, *, any_batch: bool = True) -> torch.export.ExportedProgram:
    """The network's computation.

    Args:
        example: at least two samples where the program is for any number of them: torch takes sizes of 0 and 1 for
            constants.
        any_batch: whether it is for batches of any size, or for the example's alone.
    """
    arguments, named = call_arguments(network, example)
    shapes = torch.export.ShapesCollection()
    if any_batch:
        batch = torch.export.Dim("batch", min=1)
        for tensor in tensors_of(example):
            shapes[tensor] = {0: batch}
    # The fused path of torch's encoder is one opaque operator, which other runtimes do not know.
    with without_fused_attention(), quiet_log(_LOG), torch.no_grad():
        return torch.export.export(network, arguments, named, dynamic_shapes=shapes if any_batch else None)
