"""An estimator by formula, offered as another package would: latency by the real road, alike on every machine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from search_spaces.errors import MeasurementError
from workers.timing.contract import Device, Program, Spread

SILENT = "RANKRAY_TEST_SILENT_ESTIMATOR"
"""Environment variable that makes the estimator refuse everything."""


def register(folder: Path) -> None:
    """Makes `folder` hold an installed package that offers the estimator; it has to be on the path."""
    info = folder / "padding_estimator-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: padding-estimator\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rankray.estimators]\npadding = tests.orchestrator.hardware.padding_estimator:padding\n"
    )


class PaddingEstimator:
    """Pads channels to multiples of 8; a program has an overhead."""

    name = "padding"

    def device_model(self, device: Device) -> str:
        return "made-up array"

    def versions(self, device: Device) -> Mapping[str, str]:
        return {"padding": "1.0"}

    def estimate(self, program: Program, device: Device) -> Spread:
        if SILENT in os.environ:
            raise MeasurementError(device.name, "is silent")
        found: list[float] = []

        def record(module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            weight = module.get_parameter("weight")
            positions = output.numel() // weight.shape[0]
            padded = 8 * math.ceil(weight.shape[0] / 8)
            found.append(0.002 + 1e-6 * positions * padded * math.prod(weight.shape[1:]))

        for module in program.module.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(record)
        with torch.no_grad():
            program.module(program.inputs)
        ms = 0.01 + sum(found)
        return Spread(ms, ms, ms, ms, ms, ms, blocks=1, rejected=0, calls=1)


padding = PaddingEstimator()
