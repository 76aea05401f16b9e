"""`torch-export`: the network as a program that torch runs without the Python code it was written in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from orchestrator.export.contract import call_arguments, tensors_of
from search_spaces.survey import without_fused_attention
from workers.batch import Inputs

__all__ = ["Program", "capture"]


def capture(network: nn.Module, example: Inputs) -> torch.export.ExportedProgram:
    """The network's computation for any number of samples.

    Args:
        example: at least two samples: torch takes sizes of 0 and 1 for constants.
    """
    arguments, named = call_arguments(network, example)
    batch = torch.export.Dim("batch", min=1)
    shapes = torch.export.ShapesCollection()
    for tensor in tensors_of(example):
        shapes[tensor] = {0: batch}
    # The fused path of torch's encoder is one opaque operator, which other runtimes do not know.
    with without_fused_attention(), _quiet(), torch.no_grad():
        return torch.export.export(network, arguments, named, dynamic_shapes=shapes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from logging the graph of a network that it cannot capture: the error says it in one line."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class Program:
    """A `.pt2` file; `torch.export.load(path).module()` runs it, with torch and without RankRay."""

    name = "torch-export"
    suffix = ".pt2"

    def write(self, network: nn.Module, example: Inputs, metadata: Mapping[str, str], path: Path) -> None:
        """Writes the captured program; the metadata are extra files in the archive."""
        torch.export.save(capture(network, example), path, extra_files=dict(metadata))

    def run(self, path: Path, network: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
        """Runs the file, which this process has just written."""
        arguments, named = call_arguments(network, inputs)
        return tensors_of(torch.export.load(path).module()(*arguments, **named))
