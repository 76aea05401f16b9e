"""What an export format is, and how a network is called on a batch of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from workers.batch import Inputs, run_model

__all__ = ["Format", "call_arguments", "tensors_of"]


class Format(Protocol):
    """One kind of file that holds a network.

    Attributes:
        name: as the command line has it.
        suffix: of its files, with the dot.
    """

    name: str
    suffix: str

    def write(self, network: nn.Module, example: Inputs, metadata: Mapping[str, str], path: Path) -> None:
        """Writes `network` to `path`, for batches of any size.

        Args:
            network: in eval mode, on the CPU.
            example: a batch of at least two samples.
            metadata: texts by name, kept in the file.

        Raises:
            ConfigError: something that the format needs is not installed.
            Exception: whatever the library at hand says against this network.
        """

    def run(self, path: Path, network: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
        """Loads the file at `path` and runs it; the tensors that come out, in the order of `tensors_of`.

        Args:
            network: what was written; a format that holds weights alone is loaded into a copy of it.
        """


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
