"""`torch_compile`: the network as torch's compiler (inductor) makes it, weights frozen into it."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from search_spaces.errors import MeasurementError
from workers.causes import cause
from workers.timing.backends.needs import check_options
from workers.timing.backends.torch_eager import in_torch, placed, torch_timer, torch_versions
from workers.timing.contract import Device, Program, Run

__all__ = ["TorchCompiled"]

# Without freezing, a convolution of batch 1 lays its weights out anew at every call, three times as slow as eager.
# The environment decides when inductor is imported, which is later than this line or was somebody else's doing.
os.environ.setdefault("TORCHINDUCTOR_FREEZING", "1")


class TorchCompiled:
    """`torch.compile` with frozen weights, for one batch size, on the CPU or a CUDA card.

    Options: those of `torch`, and `mode` of `torch.compile` (`max-autotune`, `reduce-overhead`).
    """

    name = "torch_compile"

    def versions(self) -> Mapping[str, str]:
        """Of torch; the compiler is part of it."""
        return torch_versions()

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        """Compiles the program; seconds, not milliseconds.

        Raises:
            MeasurementError: it does not compile as one graph, or weights would not be frozen.
        """
        check_options(device, ("channels_last", "tf32", "mode"))
        module, inputs = placed(program, device)
        try:
            compiled = _compiled(module, device.options.get("mode"))
        except Exception as error:
            raise MeasurementError(device.name, f"torch.compile: {cause(error)}") from error
        _need_freezing(device)
        return in_torch(compiled, inputs, device)

    def timer(self, device: Device) -> Callable[[Run, int], float]:
        """CUDA events on a card, the wall clock otherwise."""
        return torch_timer(device)


def _compiled(module: nn.Module, mode: str | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module, compiled under a code object of its own.

    Compiled code is kept by code object, and after eight of one (`Sequential.forward`) torch goes back to eager without
    a word: the ninth layer would be timed as something else.
    """

    def call(inputs: torch.Tensor) -> Any:
        return module(inputs)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False, mode=mode)


def _need_freezing(device: Device) -> None:
    """Freezing is on; torch's own flag says so.

    Raises:
        MeasurementError: inductor was imported without it.
    """
    import torch._inductor.config as settings

    if not settings.freezing:
        raise MeasurementError(
            device.name, "torch.compile would not freeze weights; set TORCHINDUCTOR_FREEZING=1 before torch is imported"
        )
