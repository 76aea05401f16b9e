"""Sweeps on digits that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.orchestrator.digits_run import digits_config

QUICK: dict[str, Any] = {"batch_size": 128, "crop_padding": 1, "flip": False, "precision": "float32"}
"""Digits are 8 x 8 and not symmetric; bfloat16 depends on the machine."""


def sweep_config(checkpoint: Path, **sweep: Any) -> dict[str, Any]:
    """Ranks by the uniform rule, which takes no search to speak of, fine-tuned for two epochs."""
    raw = digits_config(checkpoint)
    raw["search"] = {"method": "uniform", "budget": {"parameters": 0.5}}
    raw["cluster"] = {"evaluators": 1}
    return {**raw, "sweep": {"methods": {"fine_tuning": {"epochs": 2, **QUICK}}, "budgets": [0.5], **sweep}}


def timed_config(checkpoint: Path, **sweep: Any) -> dict[str, Any]:
    """The same with two devices, one of which is limited; batches of four."""
    raw = sweep_config(checkpoint, **sweep)
    raw["search"]["budget"] = {"latency": {"near": 0.25}}
    raw["devices"] = {"near": {"backend": "torch"}, "far": {"backend": "torch", "threads": 2}}
    raw["timing"] = {"batch_size": 4, "calibration": 6}
    return raw
