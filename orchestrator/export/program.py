"""`torch-export`: the network as a program that torch runs without the Python code it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from workers.batch import Inputs
from workers.capture import call_arguments, capture, tensors_of

__all__ = ["Program"]


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
