"""Top floor: decides. `search`, `load_run` and `load_compressed` are the same doors as the command line's.

Imported lazily: searches are pure Python and must not pay for torch or Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Run, load_compressed, load_run, resume, search

__all__ = ["Run", "load_compressed", "load_run", "resume", "search"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from orchestrator import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
