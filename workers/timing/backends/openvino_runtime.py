"""`openvino`: OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import torch

from search_spaces.errors import ConfigError, MeasurementError
from workers.capture import capture
from workers.causes import cause
from workers.timing.backends.needs import check_accelerator, check_options, need, version_of
from workers.timing.backends.timers import wall_timer
from workers.timing.contract import Device, Program, Run

__all__ = ["OpenVino"]

_PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class OpenVino:
    """A compiled model and one infer request per program; the model is made by OpenVINO's own converter from torch.

    The precision is set outright: on processors with AMX, OpenVINO would otherwise compute float32 models in bfloat16.
    """

    name = "openvino"

    def versions(self) -> Mapping[str, str]:
        """Of OpenVINO, and of torch, whose program it converts.

        Raises:
            ConfigError: it is not installed.
        """
        _runtime()
        return {"openvino": version_of("openvino"), "torch": torch.__version__}

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        """Converts and compiles the program for its batch size.

        Raises:
            MeasurementError: OpenVINO refuses the program, or the processor the precision.
        """
        check_options(device, ())
        check_accelerator(device, "cpu")
        runtime = _runtime()
        try:
            model = runtime.convert_model(capture(program.module, program.inputs, any_batch=False))
            settings = {
                "INFERENCE_NUM_THREADS": device.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": _PRECISIONS[device.precision],
            }
            compiled = runtime.Core().compile_model(model, "CPU", settings)
            request = compiled.create_infer_request()
            request.set_input_tensor(runtime.Tensor(program.inputs.contiguous().numpy()))
            request.infer()
        except ConfigError:
            raise
        except Exception as error:
            raise MeasurementError(device.name, f"openvino in {device.precision}: {cause(error)}") from error

        def outputs() -> torch.Tensor:
            request.infer()
            return torch.from_numpy(request.get_output_tensor().data.copy()).float()

        def run() -> None:
            request.infer()

        return run, outputs

    def timer(self, device: Device) -> Callable[[Run, int], float]:
        """The wall clock."""
        return wall_timer


def _runtime() -> ModuleType:
    return need("openvino", OpenVino.name, '"rankray[openvino]"')
