"""What the trials of a sweep came to: a row for each, whether it finished or not."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from orchestrator.report.pareto import pareto_front
from orchestrator.sweeps.trials import Trial, budget_text
from search_spaces.costs import COST_NAMES

__all__ = ["SCHEMA", "parquet_bytes", "row_of", "table_of"]

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
which a trial is credited with no more than its budget asks."""

Row = dict[str, Any]


def row_of(
    trial: Trial, result: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]], dense: Mapping[str, Any]
) -> Row:
    """A trial's row, without its place on the front.

    Args:
        result: its `result.json`, where it has ended.
        history: its epochs, where it has not.
        dense: accuracy of the dense network by split.
    """
    found = result or {"status": "unfinished", "reason": ""}
    epochs = found.get("history", history)
    last = epochs[-1] if epochs else {}
    cost, value = next(iter(trial.budget.items()))
    compression, costs = found.get("compression", {}), found.get("costs", {})
    return {
        "trial": trial.name,
        **{name: getattr(trial, name) for name in ("number", "method", "trainable", "scheme", "ranks_from", "seed")},
        "settings": json.dumps(dict(trial.settings)),
        "budget": budget_text(trial.budget),
        "budget_cost": cost,
        "budget_value": float(value),
        "status": found["status"],
        "reason": found["reason"],
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
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table by number, with the Pareto front of each budgeted cost marked."""
    ordered = [dict(row) for row in sorted(rows, key=lambda row: row["number"])]
    table: pd.DataFrame = pa.Table.from_pylist(ordered, SCHEMA).to_pandas()
    finished = table["status"] == "finished"
    for cost in table.loc[finished, "budget_cost"].unique():
        own = finished & (table["budget_cost"] == cost) & table["accuracy"].notna()
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
    pq.write_table(pa.Table.from_pandas(table, SCHEMA, preserve_index=False), buffer, compression="zstd")
    return buffer.getvalue()
