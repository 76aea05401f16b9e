"""Tensors in the object store: kept as numpy arrays, read as views without a copy, guarded by checksums.

Arrays in the store are shared by every actor on a node, and torch writes into them without a word, so whoever views
them must never write, and `checksums` finds out when somebody did.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

__all__ = ["Stored", "adopt", "changed", "checksums", "pack", "skeleton", "unpack", "weight_of", "weights_of"]


@dataclass(frozen=True)
class Stored:
    """One tensor as the object store holds it.

    Attributes:
        array: its values; bytes for a dtype that numpy does not know (bfloat16).
        dtype: name of torch's dtype.
        shape: the tensor's shape.
    """

    array: np.ndarray
    dtype: str
    shape: tuple[int, ...]


def pack(tensors: Mapping[str, torch.Tensor]) -> dict[str, Stored]:
    """Tensors as numpy arrays: contiguous, on the CPU, sharing memory with their source where that is possible."""
    packed = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        dtype = str(tensor.dtype).removeprefix("torch.")
        array = flat.view(torch.uint8).numpy() if tensor.dtype is torch.bfloat16 else flat.numpy()
        packed[name] = Stored(array, dtype, tuple(tensor.shape))
    return packed


def unpack(packed: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Views of stored tensors. Reading only: a write would change them for every actor on the node."""
    tensors = {}
    for name, stored in packed.items():
        with warnings.catch_warnings():
            # torch warns that the array is read-only and that it may write all the same: checksums are for that.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(stored.array)
        tensors[name] = flat.view(getattr(torch, stored.dtype)).view(stored.shape)
    return tensors


def checksums(packed: Mapping[str, Stored]) -> dict[str, int]:
    """CRC-32 of every array's bytes: meant for accidents, not for attackers."""
    return {name: zlib.crc32(np.ascontiguousarray(stored.array).view(np.uint8).data) for name, stored in packed.items()}


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter once, by its first name."""
    return dict(model.named_parameters())


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` without its parameters' values (they are on the meta device); buffers are real copies.

    Tied parameters stay tied. Small enough to be sent to every actor.
    """
    meta: dict[int, nn.Parameter] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, dict(meta))


def adopt(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """Gives a skeleton the weights, as they are (no copy), in eval mode and without gradients; returns it.

    Args:
        weights: by the parameters' first names, as `weights_of` gives them.
    """
    adopted = {
        id(parameter): nn.Parameter(weights[name], requires_grad=False) for name, parameter in model.named_parameters()
    }
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in adopted:
                module._parameters[name] = adopted[id(parameter)]
    return model.eval()


def changed(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Names of the arrays whose checksum is not what it was."""
    return sorted(name for name in before if after.get(name) != before[name])


def weight_of(layer: str, weights: Mapping[str, Stored]) -> torch.Tensor:
    """A view of one layer's weight among a model's stored weights."""
    name = f"{layer}.weight" if layer else "weight"
    return unpack({name: weights[name]})[name]
