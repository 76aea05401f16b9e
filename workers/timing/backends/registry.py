"""The timing backends by name: the built-in ones and those that other packages register."""

from __future__ import annotations

from functools import cache

from search_spaces.registry import Registry
from workers.timing.backends.onnx_runtime import OnnxRuntime
from workers.timing.backends.openvino_runtime import OpenVino
from workers.timing.backends.torch_compiled import TorchCompiled
from workers.timing.backends.torch_eager import TorchEager
from workers.timing.contract import Backend

__all__ = ["backends"]


@cache
def backends() -> Registry[Backend]:
    """Backend instances by name; other packages add theirs through the entry point group `rankray.backends`."""
    built_in: tuple[Backend, ...] = (TorchEager(), TorchCompiled(), OnnxRuntime(), OpenVino())
    return Registry("rankray.backends", "timing backend", {one.name: one for one in built_in})
