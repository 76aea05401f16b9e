"""What decides whether two measurements of one device compare: versions, options, and the code that takes them."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Mapping
from functools import cache
from importlib import resources

from workers.timing.backends import backends
from workers.timing.contract import Device
from workers.timing.nvidia import NvidiaCard

__all__ = ["digest_of_code", "versions_of"]

_TIMING = ("bench.py", "protocol.py", "rounds.py", "spread.py")
"""What a time depends on, whatever the backend."""


def versions_of(device: Device) -> Mapping[str, str]:
    """Versions of a device's backend and driver, its backend's options, and a digest of the code, as measurements have.

    Raises:
        ConfigError: no such backend, or it is not installed.
    """
    backend = backends().get(device.backend, f"devices.{device.name}.backend")
    found = dict(backend.versions())
    if device.accelerator.startswith("cuda") and (driver := NvidiaCard(device.accelerator).driver):
        found["driver"] = driver
    if device.options:
        found["options"] = ", ".join(f"{name}={value}" for name, value in sorted(device.options.items()))
    return {**found, "timing": digest_of_code(type(backend))}


@cache
def digest_of_code(backend: type) -> str:
    """Of the code that takes measurements with a backend; comments, docstrings and layout do not enter.

    Args:
        backend: the class; its whole module counts.
    """
    folder = resources.files("workers.timing")
    texts = [(folder / name).read_text(encoding="utf-8") for name in _TIMING]
    module = inspect.getmodule(backend)
    if module is not None and getattr(module, "__file__", None):
        texts.append(inspect.getsource(module))
    sha = hashlib.sha256()
    for text in texts:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            _drop_docstring(node)
        sha.update(ast.dump(tree).encode())
    return sha.hexdigest()[:12]


def _drop_docstring(node: ast.AST) -> None:
    """Empties text that stands as a statement of its own: docstrings, and those of constants."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        node.value.value = ""
