"""What a run went by: every measurement that decided something, kept so that a resumed run decides the same."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.hardware.latency_table import Work
from orchestrator.hardware.measurement_rows import measurement_from, parquet_bytes, row_of
from orchestrator.storage import Storage
from search_spaces.errors import ConfigError
from search_spaces.latency import Timing
from workers.timing.contract import Measurement, Workload

__all__ = ["MeasureAll", "RunMemory", "timing_of"]

MeasureAll = Callable[[Mapping[str, Sequence[Workload]]], Mapping[str, Sequence[Measurement]]]
"""Measures workloads by device, all devices at once; one measurement for each, in their order."""

_Key = tuple[str, Work]


class RunMemory:
    """Gives a run the same measurement for the same work for good.

    A latency table is shared: it may know better by the time that a run is resumed. What the run went by lies in
    `measurements/used-*.parquet`, with the columns of the table, failures included.

    Args:
        storage: the run directory.
        measure_all: asked for what is not remembered.
    """

    def __init__(self, storage: Storage, measure_all: MeasureAll) -> None:
        self._storage, self._measure_all = storage, measure_all
        self._known: dict[_Key, Measurement] = {}
        self._fresh: list[Measurement] = []
        names = [name for name in storage.names("measurements") if name.startswith("used-")]
        self._parts = len(names)
        for name in names:
            self._read(f"measurements/{name}")

    def measure(self, wanted: Mapping[str, Sequence[Workload]]) -> dict[str, list[Measurement]]:
        """One measurement per workload, by device.

        Raises:
            MeasurementError: a device does not answer.
        """
        missing = {
            device: [one for one in dict.fromkeys(workloads) if (device, _work(one)) not in self._known]
            for device, workloads in wanted.items()
        }
        missing = {device: workloads for device, workloads in missing.items() if workloads}
        if missing:
            for device, found in self._measure_all(missing).items():
                for workload, measurement in zip(missing[device], found, strict=True):
                    self._known[device, _work(workload)] = measurement
                    self._fresh.append(measurement)
        return {device: [self._known[device, _work(one)] for one in workloads] for device, workloads in wanted.items()}

    def keep(self) -> None:
        """Writes what was measured since; to be called when something was decided by it, not when it was of no use.

        Raises:
            RunStoppedError: it cannot be written.
        """
        if not self._fresh:
            return
        rows = [row_of(uuid.uuid4().hex, one) for one in self._fresh]
        self._storage.write(f"measurements/used-{self._parts:06d}.parquet", parquet_bytes(rows))
        self._parts += 1
        self._fresh = []

    def _read(self, name: str) -> None:
        try:
            rows = pq.read_table(io.BytesIO(self._storage.read(name))).to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{self._storage.location}/{name}", f"is no readable Parquet file: {reason}") from None
        self._remember(measurement_from(row) for row in rows)

    def _remember(self, measurements: Iterable[Measurement]) -> None:
        for one in measurements:
            self._known[one.device, Work(one.kind, one.subject, one.batch_size)] = one


def timing_of(measurement: Measurement) -> Timing | None:
    """A good measurement's time; None for one that is of no use."""
    spread = measurement.spread
    if not measurement.ok or spread is None:
        return None
    return Timing(spread.median_ms, spread.low_ms, spread.high_ms)


def _work(workload: Workload) -> Work:
    return Work(workload.kind, workload.subject, workload.batch_size)
