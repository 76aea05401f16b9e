"""What backends ask for before they build: packages, options, a card, a precision; each refusal is one clear line."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.registry import nearest
from workers.causes import cause
from workers.timing.contract import Device

__all__ = ["DTYPES", "check_accelerator", "check_options", "need", "version_of"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Torch's names of the precisions."""


def need(module: str, backend: str, install: str) -> ModuleType:
    """Imports what a backend runs on.

    Args:
        install: what pip would be given.

    Raises:
        ConfigError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"backend {backend}", f"needs {module}, which does not import here ({cause(error)}); pip install {install}"
        ) from None


def version_of(*distributions: str) -> str:
    """Version of the first of these packages that is installed: some come under several names."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def check_options(device: Device, known: Iterable[str]) -> None:
    """Refuses options that a backend does not know.

    Raises:
        ConfigError: there is one.
    """
    names = list(known)
    for option in device.options:
        if option not in names:
            offered = nearest(option, names) or "; it has none"
            raise ConfigError(f"devices.{device.name}.options.{option}", f"unknown option of {device.backend}{offered}")


def check_accelerator(device: Device, *kinds: str) -> None:
    """Refuses an accelerator that the backend does not drive or that is not there.

    Args:
        kinds: of those it drives (`cpu`, `cuda`).

    Raises:
        MeasurementError: naming what there is.
    """
    kind = device.accelerator.partition(":")[0]
    if kind not in kinds:
        raise MeasurementError(
            device.name, f"{device.backend} runs on {' and '.join(kinds)}, not on {device.accelerator!r}"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise MeasurementError(device.name, f"{device.accelerator} is asked for, and torch finds no CUDA card here")
