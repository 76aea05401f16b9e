"""`onnx`: the network for ONNX Runtime, TensorRT and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from workers.batch import Inputs
from workers.capture import tensors_of
from workers.onnx_program import onnx_program

__all__ = ["OnnxGraph"]


class OnnxGraph:
    """An `.onnx` file with its weights inside (up to ONNX's 2 GB) and a free batch size; runs without torch."""

    name = "onnx"
    suffix = ".onnx"

    def write(self, network: nn.Module, example: Inputs, metadata: Mapping[str, str], path: Path) -> None:
        """Translates the captured program."""
        program = onnx_program(network, example)
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)

    def run(self, path: Path, network: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
        """Runs the file with ONNX Runtime on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        # By name where the names are the forward's; a lone tensor or a nested dict goes by position.
        given = dict(inputs) if isinstance(inputs, dict) and set(names) <= set(inputs) else None
        if given is None:
            given = dict(zip(names, tensors_of(inputs), strict=True))
        outputs = session.run(None, {name: given[name].numpy() for name in names})
        return [torch.from_numpy(output) for output in outputs]
