"""What the trials of a sweep came to: a row for each, whether it finished or not."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.report.pareto import pareto_front
from orchestrator.searches.limits import limit_of
from orchestrator.sweeps.trials import LATENCY, Trial, budget_text, timed_device
from search_spaces.costs import COST_NAMES
from search_spaces.latency import latency_name, limited_device

__all__ = ["LOST", "SCHEMA", "devices_of_table", "parquet_bytes", "row_of", "schema_for", "table_of"]

LOST = "lost: "
"""What the reason begins with where an actor, or a device, was lost: a resumed sweep tries again."""

SCHEMA = pa.schema(
    {
        "trial": pa.string(),
        "number": pa.int64(),
        "method": pa.string(),
        "trainable": pa.string(),
        "scheme": pa.string(),
        "settings": pa.string(),
        "ranks_from": pa.string(),
        "seed": pa.int64(),
        "budget": pa.string(),
        "budget_cost": pa.string(),
        "budget_value": pa.float64(),
        "status": pa.string(),
        "reason": pa.string(),
        "epochs": pa.int64(),
        "seconds": pa.float64(),
        "accuracy_before": pa.float64(),
        "accuracy": pa.float64(),
        "test_accuracy": pa.float64(),
        "dense_accuracy": pa.float64(),
        "dense_test_accuracy": pa.float64(),
        **{f"compression_{cost}": pa.float64() for cost in COST_NAMES},
        **{cost: pa.float64() for cost in COST_NAMES},
        "pareto": pa.bool_(),
        "files": pa.string(),
    }
)
"""Columns of `trials.parquet`. `settings` is JSON; `status` is finished, stopped (by ASHA), failed or unfinished;
`accuracy` is on the held-out samples, of the network after its last epoch, `accuracy_before` of the factorised one
before fine-tuning; `compression_*` is C(r) over the layers, `parameters`, `macs` and `volume` are the whole network's;
`pareto` marks finished trials that none of the others beats in accuracy and in compression of its budget's cost, of
which a trial is credited with no more than its budget asks. A sweep with devices has `schema_for` them."""

Row = dict[str, Any]


def schema_for(devices: Sequence[str]) -> pa.Schema:
    """Columns of `trials.parquet` where networks are timed.

    By device `latency_ms@DEVICE`, the whole network's median for one batch as it was measured after training,
    `predicted_ms@DEVICE`, what the layers' times and the calibration say of its ranks, and
    `compression_latency@DEVICE`, the share of the dense network's measured time that it saves. All three are empty
    where there is no such number; `reason` says why a finished trial's network could not be timed. Of a budget on a
    latency, `budget_value` is the share to be saved, known once a trial's network was timed.
    """
    columns = [name for device in devices for name in _columns(device)]
    return pa.schema([*SCHEMA, *(pa.field(name, pa.float64()) for name in columns)])


def devices_of_table(columns: Iterable[str]) -> list[str]:
    """The devices that a table has columns for."""
    return [device for name in columns if (device := timed_device(str(name))) is not None]


def _columns(device: str) -> tuple[str, str, str]:
    return f"{LATENCY}{device}", f"predicted_ms@{device}", f"compression_{latency_name(device)}"


def row_of(
    trial: Trial,
    result: Mapping[str, Any] | None,
    history: Sequence[Mapping[str, Any]],
    dense: Mapping[str, Any],
    devices: Sequence[str] = (),
) -> Row:
    """A trial's row, without its place on the front.

    Args:
        result: its `result.json`, where it has ended.
        history: its epochs, where it has not.
        dense: accuracy of the dense network by split.
        devices: on which networks are timed.
    """
    found = result or {"status": "unfinished", "reason": ""}
    epochs = found.get("history", history)
    last = epochs[-1] if epochs else {}
    cost, value = _first_limit(trial, found)
    compression, costs = found.get("compression", {}), found.get("costs", {})
    return {
        "trial": trial.name,
        **{name: getattr(trial, name) for name in ("number", "method", "trainable", "scheme", "ranks_from", "seed")},
        "settings": json.dumps(dict(trial.settings)),
        "budget": budget_text(trial.budget),
        "budget_cost": cost,
        "budget_value": value,
        "status": found["status"],
        "reason": found["reason"] or _untimed(found.get("latency", {})),
        "epochs": len(epochs),
        "seconds": math.fsum(epoch["seconds"] for epoch in epochs),
        "accuracy_before": found.get("accuracy_before", last.get("accuracy_before")),
        "accuracy": found.get("accuracy", last.get("accuracy")),
        "test_accuracy": found.get("test_accuracy"),
        "dense_accuracy": dense["held_out"],
        "dense_test_accuracy": dense["test"],
        **{f"compression_{name}": compression.get(name) for name in COST_NAMES},
        **{name: costs.get(name) for name in COST_NAMES},
        "pareto": False,
        "files": "",
        **{name: value for device in devices for name, value in _times(device, found.get("latency", {})).items()},
    }


def _first_limit(trial: Trial, found: Mapping[str, Any]) -> tuple[str, float | None]:
    """Cost and value of the budget's first limit."""
    limit = limit_of(*next(iter(trial.budget.items())), batch_size=1)
    device = limited_device(limit.cost)
    if device is None or limit.kind == "ratio":
        return limit.cost, limit.value
    timed = found.get("latency", {}).get(device, {})
    known = timed.get("limit_ms") is not None and timed.get("dense_ms") is not None
    return limit.cost, 1.0 - timed["limit_ms"] / timed["dense_ms"] if known else None


def _times(device: str, latency: Mapping[str, Mapping[str, Any]]) -> Row:
    """A device's columns."""
    timed = latency.get(device, {})
    measured, dense = timed.get("measured_ms"), timed.get("dense_ms")
    saved = None if measured is None or dense is None else 1.0 - measured / dense
    return dict(zip(_columns(device), (measured, timed.get("predicted_ms"), saved), strict=True))


def _untimed(latency: Mapping[str, Mapping[str, Any]]) -> str:
    """Why devices could not time a network; empty where all could. What is worth trying again comes first."""
    reasons = [one["reason"] for one in latency.values() if one["reason"]]
    return "; ".join(sorted(reasons, key=lambda reason: not reason.startswith(LOST)))


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table by number, with the Pareto front of each budgeted cost marked."""
    ordered = [dict(row) for row in sorted(rows, key=lambda row: row["number"])]
    schema = schema_for(devices_of_table(ordered[0] if ordered else ()))
    table: pd.DataFrame = pa.Table.from_pylist(ordered, schema).to_pandas()
    finished = table["status"] == "finished"
    for cost in table.loc[finished, "budget_cost"].unique():
        judged = table["accuracy"].notna() & table[f"compression_{cost}"].notna()
        own = finished & (table["budget_cost"] == cost) & judged
        reached = _credited(table[own], cost)
        table.loc[own, "pareto"] = np.asarray(pareto_front(reached, table.loc[own, "accuracy"].to_numpy(float)))
    return table


def _credited(rows: pd.DataFrame, cost: str) -> NDArray[np.float64]:
    """What trials compress, at most what they were asked for: rounding beyond the budget is no merit of a method."""
    reached, asked = rows[f"compression_{cost}"].to_numpy(float), rows["budget_value"].to_numpy(float)
    return np.where(asked < 1, np.minimum(reached, asked), reached)


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file."""
    buffer = io.BytesIO()
    schema = schema_for(devices_of_table(table.columns))
    pq.write_table(pa.Table.from_pandas(table, schema, preserve_index=False), buffer, compression="zstd")
    return buffer.getvalue()
