"""What the benchmarks of trials train: networks, and every method's settings for a number of epochs in all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from orchestrator.demo import demo_config, train_digits

__all__ = ["METHODS", "cifar_config", "digits_config", "method"]

DIGITS = {"batch_size": 128, "crop_padding": 1, "flip": False}
"""Digits are 8 x 8 and not symmetric."""


def cifar_config() -> dict[str, Any]:
    """ResNet-20 on CIFAR-10; 2,000 of the training images are held out, the test images only reported on."""
    return {
        "model": {"build": "workers.models:cifar_resnet20", "checkpoint": "${RANKRAY_DATA}/cifar10/resnet20.pt"},
        "data": {
            "train": {"parquet": "${RANKRAY_DATA}/cifar10/train-*.parquet"},
            "test": {"parquet": "${RANKRAY_DATA}/cifar10/test-*.parquet"},
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
            "validation_size": 2000,
        },
        "search": {"method": "alds", "scheme": "channel_svd", "budget": {"macs": 0.5}, "objective": "accuracy"},
        "cluster": {"evaluators": 1},
    }


def digits_config(folder: Path) -> dict[str, Any]:
    """The demo's network, trained on the spot."""
    checkpoint = folder / "digits.safetensors"
    if not checkpoint.exists():
        safetensors.torch.save_file(train_digits(seed=0).state_dict(), checkpoint)
    search = {"method": "alds", "scheme": "channel_svd", "budget": {"macs": 0.5}, "objective": "accuracy"}
    return {**demo_config(checkpoint), "search": search, "cluster": {"evaluators": 1}}


METHODS: Mapping[str, Any] = {
    "uniform": lambda epochs, sgd: {"method": "fine_tuning", "ranks_from": "uniform", "epochs": epochs, **sgd},
    "alds": lambda epochs, sgd: {"method": "fine_tuning", "epochs": epochs, **sgd},
    "bsr": lambda epochs, sgd: {"training": {"epochs": 1, "strength": 0.3, **sgd}, **_rest(epochs - 1, sgd)},
    "haloc": lambda epochs, sgd: {"scheme": "tucker2", "step": 4, **_selecting(epochs, sgd)},
    "less": lambda epochs, sgd: _selecting(epochs, sgd),
    "lc": lambda epochs, sgd: {"training": {"steps": epochs - 1, **sgd}, **_rest(1, sgd)},
    "ca": lambda epochs, sgd: {"training": {"epochs": 1, **sgd}, **_rest(epochs - 1, sgd)},
    "transfer_masks": lambda epochs, sgd: _selecting(epochs, sgd),
}
"""By name, its block of `sweep.methods` from the number of epochs in all, selection included, and the settings of SGD.

`uniform` is the yardstick: every layer at the same ratio, fine-tuned for all of the epochs. `bsr` has its ranks from
the same search as `alds`, so that the two differ by the penalty alone; a short schedule needs a strong one."""


def method(name: str, epochs: int, sgd: Mapping[str, Any]) -> dict[str, Any]:
    """A method's block.

    Args:
        epochs: in all, at least 2.
    """
    block: dict[str, Any] = METHODS[name](epochs, sgd)
    return block


def _selecting(epochs: int, sgd: Mapping[str, Any]) -> dict[str, Any]:
    return {"selection_epochs": 1, "epochs": epochs - 1, **sgd}


def _rest(epochs: int, sgd: Mapping[str, Any]) -> dict[str, Any]:
    return {"fine_tuning": {"epochs": epochs, **sgd}}
