"""`torch`: the network as torch runs it by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from search_spaces.errors import MeasurementError
from workers.causes import cause
from workers.timing.backends.needs import DTYPES, check_accelerator, check_options
from workers.timing.backends.timers import event_timer, wall_timer
from workers.timing.contract import Device, Program, Run

__all__ = ["TorchEager", "in_torch", "placed", "torch_timer", "torch_versions"]


class TorchEager:
    """Eager torch on the CPU or a CUDA card.

    Options: `channels_last: true` lays activations and weights out as N, H, W, C; `tf32: true` lets a CUDA card round
    float32 to TensorFloat-32, which torch does in convolutions unless told otherwise.
    """

    name = "torch"

    def versions(self) -> Mapping[str, str]:
        """Of torch, oneDNN's being torch's, and of CUDA and cuDNN where it has them."""
        return torch_versions()

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        """Puts a copy of the program on the device."""
        check_options(device, ("channels_last", "tf32"))
        module, inputs = placed(program, device)
        return in_torch(module, inputs, device)

    def timer(self, device: Device) -> Callable[[Run, int], float]:
        """CUDA events on a card, the wall clock otherwise."""
        return torch_timer(device)


def torch_versions() -> Mapping[str, str]:
    """Versions of torch and of what it runs on."""
    found = {"torch": str(torch.__version__)}
    if torch.version.cuda is not None:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def placed(program: Program, device: Device) -> tuple[nn.Module, torch.Tensor]:
    """A copy of module and inputs, in the device's precision and layout.

    Raises:
        MeasurementError: there is no such device here.
    """
    check_accelerator(device, "cpu", "cuda")
    if device.accelerator != "cpu":
        rounded = bool(device.options.get("tf32", False))
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounded
    dtype = DTYPES[device.precision]
    module = copy.deepcopy(program.module).to(device.accelerator, dtype)
    inputs = program.inputs.to(device.accelerator, dtype)
    if device.options.get("channels_last") and inputs.dim() == 4:
        module = module.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return module, inputs


def in_torch(
    module: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, device: Device
) -> tuple[Run, Callable[[], torch.Tensor]]:
    """The call and the outputs' function of something that torch runs; it is run once.

    Raises:
        MeasurementError: torch refuses it.
    """

    def run() -> None:
        module(inputs)

    def outputs() -> torch.Tensor:
        with torch.no_grad():
            return module(inputs).float().cpu()

    try:
        outputs()
    except Exception as error:
        raise MeasurementError(device.name, f"{device.backend} in {device.precision}: {cause(error)}") from error
    return run, outputs


def torch_timer(device: Device) -> Callable[[Run, int], float]:
    """Times calls without gradients."""
    timer = wall_timer if device.accelerator == "cpu" else event_timer(device.accelerator)

    def without_gradients(run: Run, calls: int) -> float:
        with torch.no_grad():
            return timer(run, calls)

    return without_gradients
