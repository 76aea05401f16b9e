"""Section: where the numbers come from, so that they can be had again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.report.run_data import RunData
from orchestrator.report.section import Block, Column, Section, table

__all__ = ["provenance"]


def provenance(runs: Sequence[RunData]) -> Section:
    """Versions, commit, command, data and model of the run, and its whole config."""
    (run,) = runs
    result = run.result or {}
    known: dict[str, Any] = {key: result[key] for key in ("method", "seed", "search") if key in result}
    known |= {"fingerprint": run.space.get("fingerprints") or {}, **(result.get("provenance") or {})}
    lines = list(_flat(known))
    blocks: list[Block] = []
    columns = (Column("What", False), Column("Value", False))
    if lines:
        blocks.append(table("Provenance", columns, lines, limit=400))
    columns = (Column("Key", False), Column("Value", False))
    blocks.append(table("The run's config", columns, list(_flat(run.config)), limit=400, folded=True))
    sentences = () if run.result is not None else ("Versions and commit are recorded when the run ends.",)
    return Section("Provenance", sentences, tuple(blocks))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """A nested structure as lines of (dotted key, value)."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{index}]")
    elif isinstance(value, list):
        yield key, ", ".join(str(one) for one in value)
    else:
        yield key, "" if value is None else str(value)
