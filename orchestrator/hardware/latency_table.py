"""The latency table: what devices were measured to take, shared by runs; a folder of Parquet files.

Every writer adds files of its own, under names that nobody else takes, so several runs lose nothing of one another.
Merging writes the merged file before it deletes its parts; whoever reads in between finds entries twice, and counts
them once, by `entry`.

Of several entries for the same work on the same kind of device the newest that another one agrees with counts. Two that
contradict each other, further apart than their spreads and than `AGREEMENT`, are both set aside: the work counts as not
measured, and a third measurement decides.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.hardware.measurement_rows import (
    SCHEMA,
    VERSION,
    VERSION_KEY,
    Row,
    measurement_from,
    parquet_bytes,
    row_of,
    versions_text,
)
from orchestrator.storage import Storage
from search_spaces.errors import ConfigError
from workers.timing.contract import Measurement

__all__ = ["AGREEMENT", "Conditions", "Contradiction", "LatencyTable", "Work"]

AGREEMENT = 0.05
"""Medians of two good measurements that differ by less do not contradict each other."""

_MANY_FILES = 64


@dataclass(frozen=True, order=True)
class Conditions:
    """The kind of device, as it was set up: devices alike in all of this share their entries.

    Attributes:
        device_model, power_mode, backend, threads, precision: as in `Measurement`.
        versions: of backend and drivers, as JSON with sorted keys.
    """

    device_model: str
    power_mode: str
    backend: str
    versions: str
    threads: int
    precision: str

    @classmethod
    def of(cls, measurement: Measurement) -> Conditions:
        """Those that a measurement was taken under."""
        return cls(
            measurement.device_model,
            measurement.power_mode,
            measurement.backend,
            versions_text(measurement.versions),
            measurement.threads,
            measurement.precision,
        )


@dataclass(frozen=True, order=True)
class Work:
    """What was timed; see `workers.timing.contract.Workload`."""

    kind: str
    subject: str
    batch_size: int


@dataclass(frozen=True)
class Contradiction:
    """Entries for the same work of which no two agree.

    Attributes:
        entries: newest first.
    """

    conditions: Conditions
    work: Work
    entries: tuple[Measurement, ...]

    def __str__(self) -> str:
        found = ", ".join(f"{one.spread.median_ms:.4g} ms on {one.device}" for one in self.entries if one.spread)
        where = f"{self.conditions.device_model}, {self.conditions.backend}"
        return f"{self.work.subject} (batch {self.work.batch_size}; {where}): {found}; set aside until measured again"


class LatencyTable:
    """Reads a latency table and adds to it.

    Args:
        location: folder or URI; made with the first entry.
        key: what to call it in messages.

    Raises:
        ConfigError: a file in it is none of a latency table, or of another version of it.
    """

    def __init__(self, location: str, key: str = "timing.table") -> None:
        self._storage = Storage(location, key, again="rankray measure")
        self.location, self._key = location, key
        self._files: set[str] = set()
        self._entries: dict[str, Measurement] = {}
        self._found: dict[tuple[Conditions, Work], list[str]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._entries)

    def refresh(self) -> None:
        """Reads what others have added since."""
        vanished = True
        while vanished:  # others merged a file away: what was in it is in one that is not read yet
            vanished = False
            for name in self._names():
                if name in self._files:
                    continue
                try:
                    self._take(self._read(name))
                except FileNotFoundError:
                    vanished = True
                else:
                    self._files.add(name)

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Adds good measurements; when it returns they outlive the process.

        Raises:
            ValueError: one is not `ok`.
            RunStoppedError: they cannot be written.
        """
        rows = []
        for measurement in measurements:
            if not measurement.ok or measurement.spread is None:
                raise ValueError(f"only good measurements enter a latency table, got {measurement.status}")
            rows.append(row_of(uuid.uuid4().hex, measurement))
        if rows:
            self._write(rows)
            self._take(rows)

    def find(self, conditions: Conditions, work: Work) -> Measurement | None:
        """What is known of the work; None if it was not measured, or not beyond doubt."""
        return _chosen(self._newest_first(conditions, work))

    def contradictions(self) -> list[Contradiction]:
        """All work whose entries were set aside."""
        found = []
        for conditions, work in sorted(self._found):
            entries = self._newest_first(conditions, work)
            if _chosen(entries) is None:
                found.append(Contradiction(conditions, work, tuple(entries)))
        return found

    def frame(self) -> pd.DataFrame:
        """The entries that count, a row each, with the columns of `measurement_rows.SCHEMA`."""
        chosen = {id(one) for pair in self._found if (one := self.find(*pair)) is not None}
        rows = [row_of(entry, one) for entry, one in self._entries.items() if id(one) in chosen]
        frame: pd.DataFrame = pa.Table.from_pylist(rows, SCHEMA).to_pandas()
        return frame

    def merge_files(self) -> None:
        """Makes one file of many; entries stay what they are."""
        self.refresh()
        merged = self._names()
        if len(merged) <= _MANY_FILES:
            return
        self._write([row_of(entry, one) for entry, one in self._entries.items()])
        for name in set(merged) & self._files:  # others may have added meanwhile
            self._storage.delete(name)
            self._files.discard(name)

    def _write(self, rows: Sequence[Row]) -> None:
        name = f"part-{uuid.uuid4().hex}.parquet"
        self._storage.write(name, parquet_bytes(rows))
        self._files.add(name)

    def _names(self) -> list[str]:
        return [name for name in self._storage.names() if name.endswith(".parquet")]

    def _read(self, name: str) -> list[dict[str, Any]]:
        where = f"{self._key}: {self.location}/{name}"
        try:
            table = pq.read_table(io.BytesIO(self._storage.read(name)))
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise ConfigError(where, f"is no readable Parquet file: {reason}; restore or delete it") from None
        version = (table.schema.metadata or {}).get(VERSION_KEY)
        if version is None or not version.isdigit():
            raise ConfigError(where, f"is no file of a latency table; give {self._key} a folder of its own")
        if int(version) != VERSION:
            wanted = "a newer RankRay reads it" if int(version) > VERSION else "an older RankRay wrote it"
            raise ConfigError(
                where,
                f"has schema version {int(version)}, this RankRay has {VERSION}: {wanted}; "
                f"give {self._key} another folder and measure anew, or use that RankRay",
            )
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def _take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["entry"] in self._entries or row["status"] != "ok":
                continue
            measurement = measurement_from(row)
            self._entries[row["entry"]] = measurement
            work = Work(measurement.kind, measurement.subject, measurement.batch_size)
            self._found.setdefault((Conditions.of(measurement), work), []).append(row["entry"])

    def _newest_first(self, conditions: Conditions, work: Work) -> list[Measurement]:
        ids = self._found.get((conditions, work), [])
        # Of two of the same moment the order must not depend on which file was read first.
        ordered = sorted(ids, key=lambda entry: (self._entries[entry].taken_at, entry), reverse=True)
        return [self._entries[entry] for entry in ordered]


def _chosen(entries: Sequence[Measurement]) -> Measurement | None:
    """The newest that another one agrees with; the only one, where there is only one."""
    if len(entries) == 1:
        return entries[0]
    for place, one in enumerate(entries):
        if any(_agree(one, other) for other in (*entries[:place], *entries[place + 1 :])):
            return one
    return None


def _agree(one: Measurement, other: Measurement) -> bool:
    a, b = one.spread, other.spread
    assert a is not None
    assert b is not None
    overlap = a.p10_ms <= b.p90_ms and b.p10_ms <= a.p90_ms
    return overlap or abs(a.median_ms - b.median_ms) <= AGREEMENT * min(a.median_ms, b.median_ms)
