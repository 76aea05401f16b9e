"""Reads the table of scored candidates: those with a score, those without, and the best of some."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.report.run_data import RunData
from search_spaces.rank_space import Rank, rank_vector_from

__all__ = ["Objective", "beam_sizes", "cost_names", "evaluations_of", "failed", "objective_of", "rank_list", "scored"]

_NUMBERS = ("level", "compression", "accuracy", "loss", "kl", "seconds")
_TEXTS = ("search", "worker", "status", "reason")
_COST_PREFIX = "compression_"


@dataclass(frozen=True)
class Objective:
    """What the search ranked candidates by.

    Attributes:
        name: as the config has it.
        column: the column of the evaluations that holds it.
        ascending: whether less is better (a loss, a divergence).
    """

    name: str
    column: str
    ascending: bool

    def best_first(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows from the best to the worst; equal ones by compression, the larger first, then as they came."""
        return rows.sort_values([self.column, "compression"], ascending=[self.ascending, False], kind="stable")


def evaluations_of(run: RunData) -> pd.DataFrame:
    """The evaluations with every column that the report reads, numbers as floats (NaN where there is none)."""
    rows = run.evaluations.copy(deep=False).reset_index(drop=True)
    for column in (*_NUMBERS, *(name for name in rows.columns if str(name).startswith(_COST_PREFIX))):
        rows[column] = pd.to_numeric(rows[column], errors="coerce").astype(float) if column in rows else np.nan
    for column in _TEXTS:
        rows[column] = rows[column].fillna("").astype(str) if column in rows else ""
    rows["precision"] = rows["precision"].fillna("float32").astype(str) if "precision" in rows else "float32"
    rows["taken_over"] = rows["taken_over"].eq(True) if "taken_over" in rows else False
    if "ranks" not in rows:
        rows["ranks"] = None
    return rows


def scored(run: RunData) -> pd.DataFrame:
    """The rows that have a score: status `ok` and a finite objective."""
    rows = evaluations_of(run)
    good: pd.Series[bool] = (rows["status"] == "ok") & np.isfinite(rows[objective_of(run).column])
    return rows.loc[good]


def failed(run: RunData) -> pd.DataFrame:
    """The rows that have no score though it was wanted: not those whose scoring was stopped early."""
    rows = evaluations_of(run).drop(index=scored(run).index)
    return rows[rows["status"] != "stopped"]


def cost_names(run: RunData) -> list[str]:
    """Every cost whose compression the evaluations hold, else those of the result."""
    names = [str(name).removeprefix(_COST_PREFIX) for name in run.evaluations if str(name).startswith(_COST_PREFIX)]
    return names or list((run.result or {}).get("costs") or {})


def objective_of(run: RunData) -> Objective:
    """The run's objective; accuracy unless the result or the config says otherwise."""
    search = run.config.get("search") or {}
    name = str((run.result or {}).get("objective") or search.get("objective") or "accuracy")
    column = {"cross_entropy": "loss", "cross-entropy": "loss"}.get(name, name)
    if column not in ("loss", "kl"):
        return Objective(name, "accuracy", ascending=False)
    return Objective(name, column, ascending=True)


def beam_sizes(run: RunData, searches: Sequence[str]) -> dict[str, int]:
    """K of every search that has one: by the config's settings, else by its name (`s10-k5`)."""
    settings = (run.config.get("search") or {}).get("settings")
    listed = [one for one in settings if isinstance(one, Mapping)] if isinstance(settings, list) else []
    known = {f"s{one.get('step')}-k{one.get('beam_size')}": one.get("beam_size") for one in listed}
    sizes: dict[str, int] = {}
    for search in searches:
        named = re.search(r"k(\d{1,6})$", search)
        size = known.get(search) or (int(named[1]) if named else None)
        if isinstance(size, int) and size > 0:
            sizes[search] = size
    return sizes


def rank_list(value: Any) -> list[Rank | None]:
    """A row's rank vector as a list; Parquet readers give an array with NaN where a layer is dense.

    Ranks of several numbers come as arrays of them and leave as tuples.
    """
    if value is None or isinstance(value, float):
        return []
    return list(rank_vector_from(value))
