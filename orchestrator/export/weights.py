"""`safetensors`: the weights alone, with the ranks and schemes that they belong to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from workers.batch import Inputs, run_model
from workers.capture import tensors_of

__all__ = ["Weights"]


class Weights:
    """A state dict. It needs the code that builds the network: `load_compressed`, or the user's own.

    What runs where neither is at hand is `torch-export` and `onnx`.
    """

    name = "safetensors"
    suffix = ".safetensors"

    def write(self, network: nn.Module, example: Inputs, metadata: Mapping[str, str], path: Path) -> None:
        """Writes the state dict, a tied tensor under each of its names."""
        # Clones, because the format refuses tensors that share memory.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
        # save_file would make a file that only its owner reads, whatever the umask says.
        path.write_bytes(safetensors.torch.save(tensors, dict(metadata)))

    def run(self, path: Path, network: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
        """Runs a copy of `network` all of whose stored tensors come from the file."""
        loaded = copy.deepcopy(network)
        for tensor in loaded.state_dict().values():
            tensor.zero_()
        loaded.load_state_dict(safetensors.torch.load_file(path))
        return tensors_of(run_model(loaded, inputs))
