"""Repeatability and prediction on a CUDA card, by its own events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import _hardware_prediction
import _hardware_repeatability
import torch
from _hardware_prediction import PredictionSize
from _hardware_repeatability import RepeatabilitySize

from workers.timing.contract import Device

__all__ = ["QUICK", "GpuSize", "measure", "show_found"]


@dataclass(frozen=True)
class GpuSize:
    """How much is measured.

    Attributes:
        repeatability, prediction: as on the processor.
    """

    repeatability: RepeatabilitySize = field(default_factory=lambda: RepeatabilitySize(gap_minutes=5.0))
    prediction: PredictionSize = field(default_factory=lambda: PredictionSize(cases=("resnet20-8", "resnet18-1")))


QUICK = GpuSize(_hardware_repeatability.QUICK, _hardware_prediction.QUICK)


def measure(size: GpuSize, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """On the first card, by eager torch; where there is none, says so."""
    if not torch.cuda.is_available():
        return {"measured": False}
    device = Device("card", "torch", accelerator="cuda:0")
    found: dict[str, Any] = {
        "measured": True,
        "card": torch.cuda.get_device_name(0),
        "date": date.today().isoformat(),
        "repeatability": dict(former.get("repeatability", {})),
    }

    def kept(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda part: keep({**found, name: part})

    found["repeatability"] = _hardware_repeatability.measure(
        size.repeatability, kept("repeatability"), found["repeatability"], device
    )
    found["prediction"] = _hardware_prediction.measure(size.prediction, kept("prediction"), {}, device)
    return found


def show_found(found: Mapping[str, Any]) -> None:
    """Prints both, or that there was no card."""
    if not found["measured"]:
        print("gpu: not measured, because torch finds no CUDA card here")
        return
    print(f"{found['card']}, {found['date']}, by CUDA events")
    _hardware_repeatability.show_found(found["repeatability"])
    _hardware_prediction.show_found(found["prediction"])
