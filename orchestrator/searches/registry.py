"""The search methods by name: the built-in ones and those that other packages register."""

from __future__ import annotations

from functools import cache

from orchestrator.searches.allocating import METHODS
from orchestrator.searches.contract import SearchMethod
from orchestrator.searches.mbs import MBS
from search_spaces.registry import Registry

__all__ = ["search_methods"]


@cache
def search_methods() -> Registry[SearchMethod]:
    """Search methods by name; other packages add theirs through the entry point group `rankray.searches`."""
    return Registry("rankray.searches", "search method", {"mbs": MBS, **METHODS})
