"""`onnxruntime`: ONNX Runtime on the CPU, and with its CUDA and TensorRT providers where it has them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.registry import nearest
from workers.causes import cause
from workers.onnx_program import onnx_bytes
from workers.timing.backends.needs import DTYPES, check_accelerator, check_options, need, version_of
from workers.timing.backends.timers import wall_timer
from workers.timing.contract import Device, Program, Run

__all__ = ["OnnxRuntime"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_INSTALL = {"cpu": '"rankray[onnx]"', "cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu and TensorRT"}


class OnnxRuntime:
    """A session per program, its inputs and outputs bound to memory on the device.

    Options: `provider`: `cpu`, `cuda` or `tensorrt`; by default what the accelerator is. `tf32: true` lets the CUDA
    provider round float32 to TensorFloat-32.
    """

    name = "onnxruntime"

    def versions(self) -> Mapping[str, str]:
        """Of ONNX Runtime, and of the exporter, which decides on the graph: torch and onnxscript.

        Raises:
            ConfigError: one of them is not installed.
        """
        runtime = _runtime()
        need("onnxscript", self.name, _INSTALL["cpu"])
        return {
            "onnxruntime": runtime.__version__,
            "torch": torch.__version__,
            "onnxscript": version_of("onnxscript"),
        }

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        """Exports the program for its batch size and opens a session on it.

        Raises:
            ConfigError: no such provider, or something is not installed.
            MeasurementError: ONNX Runtime refuses the program, or its provider is there but does not run.
        """
        check_options(device, ("provider", "tf32"))
        runtime = _runtime()
        kind = _provider(device, runtime)
        dtype = DTYPES[device.precision]
        try:
            model = onnx_bytes(
                copy.deepcopy(program.module).to(dtype), program.inputs.to(dtype), key="backend onnxruntime"
            )
            session = _session(runtime, model, kind, device)
            binding = _binding(runtime, session, program.inputs.to(dtype), kind, device)
            session.run_with_iobinding(binding)  # a provider can be listed and yet not run
        except ConfigError:
            raise
        except Exception as error:
            raise MeasurementError(device.name, f"onnxruntime in {device.precision}: {cause(error)}") from error

        def run() -> None:
            session.run_with_iobinding(binding)

        def outputs() -> torch.Tensor:
            session.run_with_iobinding(binding)
            return torch.from_numpy(binding.copy_outputs_to_cpu()[0]).float()

        return run, outputs

    def timer(self, device: Device) -> Callable[[Run, int], float]:
        """The wall clock: a session returns when its device is done."""
        return wall_timer


def _runtime() -> ModuleType:
    return need("onnxruntime", OnnxRuntime.name, _INSTALL["cpu"])


def _provider(device: Device, runtime: ModuleType) -> str:
    """The short name of the provider that is wanted, which this build of ONNX Runtime has."""
    kind = str(device.options.get("provider", device.accelerator.partition(":")[0]))
    if kind not in PROVIDERS:
        raise ConfigError(
            f"devices.{device.name}.options.provider", f"unknown provider {kind!r}{nearest(kind, list(PROVIDERS))}"
        )
    if PROVIDERS[kind] not in runtime.get_available_providers():
        raise ConfigError(
            f"devices.{device.name}.options.provider",
            f"this onnxruntime has no {PROVIDERS[kind]}; pip install {_INSTALL[kind]}",
        )
    check_accelerator(device, "cpu" if kind == "cpu" else "cuda")
    return kind


def _session(runtime: ModuleType, model: bytes, kind: str, device: Device) -> Any:
    """A session that runs on the wanted provider, or says that it does not."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    given = {} if kind == "cpu" else {"device_id": str(torch.device(device.accelerator).index or 0)}
    if kind == "cuda":
        given["use_tf32"] = str(int(bool(device.options.get("tf32", False))))
    session = runtime.InferenceSession(model, options, providers=[(PROVIDERS[kind], given)])
    if session.get_providers()[0] != PROVIDERS[kind]:
        raise MeasurementError(device.name, f"{PROVIDERS[kind]} is listed but does not start; see its libraries")
    return session


def _binding(runtime: ModuleType, session: Any, inputs: torch.Tensor, kind: str, device: Device) -> Any:
    """Inputs and outputs on the device, so that no copy is timed."""
    where = "cpu" if kind == "cpu" else "cuda"
    index = torch.device(device.accelerator).index or 0
    binding = session.io_binding()
    value = runtime.OrtValue.ortvalue_from_numpy(inputs.numpy(), where, index)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, value)
    binding.bind_output(session.get_outputs()[0].name, where, index)
    return binding
