"""A program as a board gets it: a cascade in numbers, or a file that the board's own runtime reads."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import nn

from workers.timing.contract import Program

__all__ = ["READS_ONNX", "packed"]

READS_ONNX = ("onnxruntime", "tensorrt")
"""Backends of the agent whose programs this machine exports."""

_OPSET = 13  # what TensorRT 8.2 reads, the last one for JetPack 4


def packed(program: Program, backend: str) -> tuple[dict[str, Any], list[bytes]]:
    """What the agent's `build` takes.

    Cascades of `Conv2d` and `Linear` go as numbers, since no file of today's torch needs to be read by the board's
    then. Other networks go as TorchScript, or as ONNX where the backend reads that.

    Args:
        backend: its name among the agent's.

    Returns:
        A description, and raw parts: the inputs, then weight and bias of every stage, or one file.
    """
    spec: dict[str, Any] = {"shape": list(program.inputs.shape)}
    inputs = _raw(program.inputs)
    if backend in READS_ONNX:
        spec.update(format="onnx", input="inputs", output_shape=list(program.reference.shape))
        return spec, [inputs, _onnx(program)]
    layers = _cascade(program.module)
    if layers is None:
        return {**spec, "format": "torchscript"}, [inputs, _torchscript(program)]
    stages = [_stage(layer) for layer in layers]
    weights = [_raw(tensor) for layer in layers for tensor in (layer.weight, layer.bias)]
    return {**spec, "format": "cascade", "stages": stages}, [inputs, *weights]


def _cascade(module: nn.Module) -> list[nn.Conv2d | nn.Linear] | None:
    """The layers of a cascade in their order; None where there is anything else."""
    if type(module) in (nn.Conv2d, nn.Linear):
        return [module]  # type: ignore[list-item]  # the exact types, as a subclass may do more
    if type(module) is not nn.Sequential:
        return None
    parts = [_cascade(part) for part in module]
    return None if None in parts else [layer for part in parts for layer in part or ()]


def _stage(layer: nn.Conv2d | nn.Linear) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        return {"linear": True, "in_channels": layer.in_features, "out_channels": layer.out_features}
    names = ("in_channels", "out_channels", "groups", "padding_mode")
    pairs: dict[str, Any] = {name: getattr(layer, name) for name in names}
    pairs.update(kernel=layer.kernel_size, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
    return {"linear": False, **pairs}


def _raw(tensor: torch.Tensor | None) -> bytes:
    """Little-endian float32, in torch's order; nothing for a bias that there is not."""
    if tensor is None:
        return b""
    return tensor.detach().float().contiguous().numpy().astype("<f4").tobytes()


def _torchscript(program: Program) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Deprecated for today's torch, and all that a board's torch of some years ago reads.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(program.module, program.inputs), file)
    return file.getvalue()


def _onnx(program: Program) -> bytes:
    file: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The other exporter writes newer operators only, which need a converter that may or may not succeed.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program.module, (program.inputs,), file, input_names=["inputs"], opset_version=_OPSET, dynamo=False
        )
    return bytes(file.getvalue())
