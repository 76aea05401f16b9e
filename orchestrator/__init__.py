"""Top floor: decides. `search`, `compare`, `measure`, `load_run` and so on are the same doors as the command line's.

Imported lazily: searches are pure Python and must not pay for torch or Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import (
        Comparison,
        Run,
        Sweep,
        compare,
        devices,
        load_compressed,
        load_run,
        load_trained,
        measure,
        resume,
        resume_comparison,
        resume_sweep,
        search,
        sweep,
    )

__all__ = [
    "Comparison",
    "Run",
    "Sweep",
    "compare",
    "devices",
    "load_compressed",
    "load_run",
    "load_trained",
    "measure",
    "resume",
    "resume_comparison",
    "resume_sweep",
    "search",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from orchestrator import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
