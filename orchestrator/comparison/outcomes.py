"""What the runs of a comparison came to: a row for each, whether it finished or not."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.comparison.settings import PlannedRun
from search_spaces.costs import COST_NAMES
from search_spaces.latency import limited_device

__all__ = ["SCHEMA", "Outcome", "costs_of", "judged_by", "parquet_bytes", "table_of"]

_SPLITS, _METRICS = ("validation", "test"), ("accuracy", "loss")
_SAVED = "compression_"

SCHEMA = pa.schema(
    {
        "search": pa.string(),
        "method": pa.string(),
        "scheme": pa.string(),
        "norm": pa.string(),
        "last_stage": pa.string(),
        "bias": pa.string(),
        "batch_norm": pa.string(),
        "measure": pa.string(),
        "objective": pa.string(),
        "seed": pa.int64(),
        "budget": pa.string(),
        "budget_cost": pa.string(),
        "budget_value": pa.float64(),
        "in_window": pa.bool_(),
        "best": pa.bool_(),
        **{f"{_SAVED}{cost}": pa.float64() for cost in COST_NAMES},
        **{cost: pa.float64() for cost in COST_NAMES},
        **{
            f"{network}{split}_{metric}": pa.float64()
            for network in ("dense_", "")
            for split in _SPLITS
            for metric in _METRICS
        },
        "evaluations": pa.int64(),
        "taken_over": pa.int64(),
        "seconds": pa.float64(),
        "status": pa.string(),
        "reason": pa.string(),
        "run": pa.string(),
    }
)
"""Columns of `comparison.parquet`, a row per run. `budget_cost` and `budget_value` are the budget's first limit,
`budget` is all of it; `compression_*` is C(r) over the layers searched, `parameters`, `macs` and `volume` are the whole
compressed network's; `dense_*` scores are the network's as it came. `taken_over` of the `evaluations` were scored for
another run, and the `seconds` of runs on the same evaluators add up to those that passed (see
`orchestrator/shared_time.py`). For each device that is limited there is `compression_latency@DEVICE` besides: 1 less
the network's measured latency over the dense one's. Null is what a run without a result does not know. `best` is told
by validation data alone, see `judged_by`."""

Status = Literal["finished", "infeasible", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        status: `infeasible` where no rank vector of the search meets its budget, `failed` where it was stopped.
        reason: why it did not finish.
        location: of its directory.
        result: its `result.json`.
    """

    status: Status
    reason: str
    location: str
    result: Mapping[str, Any] | None = None


def table_of(outcomes: Sequence[tuple[PlannedRun, Outcome]]) -> pd.DataFrame:
    """The table, in the order given; columns as in `SCHEMA`, and as attribute the `objective` that tells the best."""
    limited = dict.fromkeys(limit.cost for run, _ in outcomes for limit in run.config.limits)
    latencies = [cost for cost in limited if limited_device(cost) is not None]
    rows = [{**_row(run, outcome), **_latency_saved(outcome, latencies)} for run, outcome in outcomes]
    for (run, _), row in zip(outcomes, rows, strict=True):
        alike = [
            other
            for (one, _), other in zip(outcomes, rows, strict=True)
            if (one.number, one.config.search.seed) == (run.number, run.config.search.seed)
        ]
        value = _judged(row, run.base.objective)
        row["best"] = value > -math.inf and value == max(_judged(other, run.base.objective) for other in alike)
    frame: pd.DataFrame = pa.Table.from_pylist(rows, _schema(rows[0])).to_pandas()
    frame.attrs["objective"] = outcomes[0][0].base.objective
    return frame


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file."""
    buffer = io.BytesIO()
    written = pa.Table.from_pandas(table, _schema(map(str, table.columns)), preserve_index=False)
    pq.write_table(written, buffer, compression="zstd")
    return buffer.getvalue()


def costs_of(table: pd.DataFrame) -> list[str]:
    """The costs that the runs are compared in, those of limited devices last."""
    return [name.removeprefix(_SAVED) for name in table.columns if name.startswith(_SAVED)]


def judged_by(objective: str) -> str:
    """The column that the best run of a budget and a seed is told by: never one of the test data.

    Args:
        objective: of the config's `search`. Divergences are not part of results: there the loss stands in.
    """
    return "validation_accuracy" if objective == "accuracy" else "validation_loss"


def _judged(row: Mapping[str, Any], objective: str) -> float:
    """A run's value, more is better; minus infinity where it met no budget."""
    column = judged_by(objective)
    value = row[column]
    if not row["in_window"] or value is None or math.isnan(value):
        return -math.inf
    return float(value if column == "validation_accuracy" else -value)


def _row(run: PlannedRun, outcome: Outcome) -> dict[str, Any]:
    search, result = run.config.search, outcome.result or {}
    first = run.config.limits[0]
    names = ("method", "scheme", "norm", "last_stage", "bias", "batch_norm", "measure", "objective", "seed")
    return {
        "search": run.search,
        **{name: getattr(search, name) for name in names},
        "budget": run.budget,
        "budget_cost": first.cost,
        "budget_value": first.value,
        "in_window": result.get("in_window"),
        **_reached(result),
        "evaluations": result.get("evaluations"),
        "taken_over": result.get("taken_over"),
        "seconds": result.get("seconds"),
        "status": outcome.status,
        "reason": outcome.reason,
        "run": outcome.location,
    }


def _latency_saved(outcome: Outcome, costs: Sequence[str]) -> dict[str, float | None]:
    """By column, the share of the dense network's latency that the network was measured to save."""
    told = (outcome.result or {}).get("latency", {})
    saved: dict[str, float | None] = {}
    for cost in costs:
        device = told.get(limited_device(cost), {})
        measured = device.get("measured_ms")
        saved[f"{_SAVED}{cost}"] = None if measured is None else 1.0 - measured / device["dense_ms"]
    return saved


def _schema(columns: Iterable[str]) -> pa.Schema:
    """`SCHEMA` and the columns that it does not have: those of limited devices."""
    return pa.schema([*SCHEMA, *(pa.field(name, pa.float64()) for name in columns if name not in SCHEMA.names)])


def _reached(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Costs and scores of a result, by column."""
    values: dict[str, float | None] = {}
    for cost in COST_NAMES:
        entry = result.get("costs", {}).get(cost, {})
        values[f"{_SAVED}{cost}"] = entry.get("compression")
        values[cost] = entry.get("network", {}).get("compressed")
    for network, prefix in (("dense", "dense_"), ("compressed", "")):
        for split in _SPLITS:
            scores = result.get("scores", {}).get(network, {}).get(split) or {}
            values.update({f"{prefix}{split}_{metric}": scores.get(metric) for metric in _METRICS})
    return values
