"""Measurements as rows: the columns of the latency table and of a run's `measurements/*.parquet`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.timing.contract import Measurement, Spread, State

__all__ = ["SCHEMA", "VERSION", "VERSION_KEY", "measurement_from", "parquet_bytes", "row_of", "versions_text"]

VERSION = 1
VERSION_KEY = b"rankray.measurements"
"""In every file's metadata, with the version of the columns as value."""

_SPREAD = {
    "median_ms": pa.float64(),
    "low_ms": pa.float64(),
    "high_ms": pa.float64(),
    "p10_ms": pa.float64(),
    "p90_ms": pa.float64(),
    "min_ms": pa.float64(),
    "blocks": pa.int32(),
    "rejected": pa.int32(),
    "calls": pa.int64(),
    "clock": pa.string(),
}
_STATE = {
    "clock_mhz": pa.float64(),
    "temperature_c": pa.float64(),
    "load": pa.float64(),
    "power_mode": pa.string(),
    "throttled": pa.bool_(),
}

SCHEMA = pa.schema(
    {
        "entry": pa.string(),
        "device_model": pa.string(),
        "power_mode": pa.string(),
        "backend": pa.string(),
        "versions": pa.string(),
        "threads": pa.int32(),
        "precision": pa.string(),
        "kind": pa.string(),
        "subject": pa.string(),
        "batch_size": pa.int32(),
        **_SPREAD,
        "status": pa.string(),
        "reason": pa.string(),
        "drift": pa.float64(),
        **{f"{name}_{when}": kind for when in ("before", "after") for name, kind in _STATE.items()},
        "device": pa.string(),
        "node": pa.string(),
        "taken_at": pa.float64(),
        "seconds": pa.float64(),
    },
    metadata={VERSION_KEY: str(VERSION).encode()},
)
"""`entry` names a measurement for good; from `device_model` to `batch_size` is what was measured, `versions` as JSON
with sorted keys; times are ms per call of `batch_size` inputs; the rest is how it was taken, and by which device of the
run's config."""

Row = dict[str, Any]


def row_of(entry: str, measurement: Measurement) -> Row:
    """A measurement as a row."""
    spread = measurement.spread
    return {
        "entry": entry,
        "device_model": measurement.device_model,
        "power_mode": measurement.power_mode,
        "backend": measurement.backend,
        "versions": versions_text(measurement.versions),
        "threads": measurement.threads,
        "precision": measurement.precision,
        "kind": measurement.kind,
        "subject": measurement.subject,
        "batch_size": measurement.batch_size,
        **{name: None if spread is None else getattr(spread, name) for name in _SPREAD},
        "status": measurement.status,
        "reason": measurement.reason,
        "drift": measurement.drift,
        **{f"{name}_before": getattr(measurement.before, name) for name in _STATE},
        **{f"{name}_after": getattr(measurement.after, name) for name in _STATE},
        "device": measurement.device,
        "node": measurement.node,
        "taken_at": measurement.taken_at,
        "seconds": measurement.seconds,
    }


def measurement_from(row: Mapping[str, Any]) -> Measurement:
    """The measurement that a row holds; `row_of` undoes it."""
    spread = None if row["median_ms"] is None else Spread(**{name: row[name] for name in _SPREAD})
    plain = ("kind", "subject", "batch_size", "precision", "backend", "threads", "device", "device_model", "power_mode")
    return Measurement(
        **{name: row[name] for name in plain},
        versions=json.loads(row["versions"]),
        status=row["status"],
        reason=row["reason"],
        spread=spread,
        before=State(**{name: row[f"{name}_before"] for name in _STATE}),
        after=State(**{name: row[f"{name}_after"] for name in _STATE}),
        drift=row["drift"],
        node=row["node"],
        taken_at=row["taken_at"],
        seconds=row["seconds"],
    )


def versions_text(versions: Mapping[str, str]) -> str:
    """Versions as text that is equal if they are."""
    return json.dumps(dict(versions), sort_keys=True)


def parquet_bytes(rows: Sequence[Row]) -> bytes:
    """Rows as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
