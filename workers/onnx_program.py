"""A network as an ONNX program."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from search_spaces.errors import ConfigError
from workers.batch import Inputs
from workers.capture import capture

__all__ = ["OPSET", "onnx_bytes", "onnx_program"]

OPSET = 20
"""ONNX operator set of every program, so that a newer torch does not write what an older runtime cannot read."""

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def onnx_program(network: nn.Module, example: Inputs, *, any_batch: bool = True, key: str = "format") -> Any:
    """The network, translated: a `torch.onnx.ONNXProgram`.

    Args:
        example, any_batch: as `capture` takes them.
        key: what asked, for the message.

    Raises:
        ConfigError: a package is not installed.
        Exception: whatever torch says against this network.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(key, f'onnx needs {", ".join(missing)}, not installed here; pip install "rankray[onnx]"')
    captured = capture(network, example, any_batch=any_batch)
    program = torch.onnx.export(captured, dynamo=True, opset_version=OPSET, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program


def onnx_bytes(network: nn.Module, example: Inputs, *, key: str = "format") -> bytes:
    """The network for the example's batch size, as the bytes of an `.onnx` file with its weights inside (up to 2 GB).

    Raises:
        ConfigError, Exception: as `onnx_program`.
    """
    serialized: bytes = onnx_program(network, example, any_batch=False, key=key).model_proto.SerializeToString()
    return serialized
