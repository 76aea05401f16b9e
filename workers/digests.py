"""One SHA-256 for several named tensors: equal digests mean equal names, types, shapes and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

__all__ = ["digest"]


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256, in hexadecimal, over every tensor's name, dtype, shape and bytes, in the order given.

    It does not depend on the tensors' device or memory layout.
    """
    sha = hashlib.sha256()
    for name, tensor in tensors:
        # repr quotes the name, so no name can imitate the end of its own header.
        sha.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()
