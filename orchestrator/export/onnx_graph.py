"""`onnx`: the network for ONNX Runtime, TensorRT and others."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from orchestrator.export.contract import tensors_of
from orchestrator.export.program import capture
from search_spaces.errors import ConfigError
from workers.batch import Inputs

__all__ = ["OPSET", "OnnxGraph"]

OPSET = 20
"""ONNX operator set of every file, so that a newer torch does not write what an older runtime cannot read."""

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


class OnnxGraph:
    """An `.onnx` file with its weights inside (up to ONNX's 2 GB) and a free batch size; runs without torch."""

    name = "onnx"
    suffix = ".onnx"

    def write(self, network: nn.Module, example: Inputs, metadata: Mapping[str, str], path: Path) -> None:
        """Translates the captured program."""
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                "format", f'onnx needs {", ".join(missing)}, not installed here; pip install "rankray[onnx]"'
            )
        program = torch.onnx.export(capture(network, example), dynamo=True, opset_version=OPSET, verbose=False)
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
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
