"""The export formats by name."""

from __future__ import annotations

from functools import cache

from orchestrator.export.contract import Format
from orchestrator.export.onnx_graph import OnnxGraph
from orchestrator.export.program import Program
from orchestrator.export.weights import Weights
from search_spaces.registry import Registry

__all__ = ["formats"]


@cache
def formats() -> Registry[Format]:
    """Formats by name; other packages add theirs through the entry point group `rankray.formats`."""
    built_in: tuple[Format, ...] = (Weights(), Program(), OnnxGraph())
    return Registry("rankray.formats", "export format", {one.name: one for one in built_in})
