"""What an export format is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from workers.batch import Inputs

__all__ = ["Format"]


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
        """Loads the file at `path` and runs it; its tensors, in the order of `workers.capture.tensors_of`.

        Args:
            network: what was written; a format that holds weights alone is loaded into a copy of it.
        """
