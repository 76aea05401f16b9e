"""Section: layers that were not searched, and why."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.quantities import plural
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Column, Section, table

__all__ = ["layers_left_out"]


def layers_left_out(runs: Sequence[RunData]) -> Section | None:
    """Every layer outside the space with its reason; None if there is none."""
    (run,) = runs
    rows = [(str(one.get("name", "")), str(one.get("reason", ""))) for one in run.space.get("left_out", [])]
    if not rows:
        return None
    amount = f"{plural(len(rows), 'layer')} {'stays as it is' if len(rows) == 1 else 'stay as they are'}"
    columns = (Column("Layer", False), Column("Reason", False))
    return Section("Layers left out", (f"{amount} in every candidate.",), (table("Layers left out", columns, rows),))
