"""A real trained network and a config around it, for tests that search for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch

from orchestrator.demo import train_digits


def save_digits_network(folder: Path) -> Path:
    """Trains the demo's network for a few epochs and saves it; seconds."""
    path = folder / "digits.safetensors"
    safetensors.torch.save_file(train_digits(seed=0, epochs=4).state_dict(), path)
    return path


def digits_config(checkpoint: Path, **search: Any) -> dict[str, Any]:
    """A search that scores a few hundred candidates in seconds; all to their end, so that counts repeat."""
    return {
        "model": {"build": "workers.models:digits_cnn", "checkpoint": str(checkpoint)},
        "data": {
            "train": {"dataset": "workers.digits:digits", "arguments": {"split": "train"}},
            "test": {"dataset": "workers.digits:digits", "arguments": {"split": "test"}},
            "validation_size": 64,
        },
        "search": {
            "method": "mbs",
            "budget": {"parameters": 0.5},
            "objective": "cross_entropy",
            "tolerance": 0.01,
            "settings": [{"step": 8, "beam_size": 3}],
            "early_stop": False,
            **search,
        },
        "cluster": {"evaluators": 2},
    }
