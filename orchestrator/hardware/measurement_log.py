"""A run's `measurements/*.parquet`: every measurement that it took, also those that were of no use, with the reason."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from orchestrator.hardware.measurement_rows import parquet_bytes, row_of
from orchestrator.storage import Storage
from workers.timing.contract import Measurement

__all__ = ["MeasurementLog"]


class MeasurementLog:
    """Adds files to a run directory.

    Args:
        storage: the run directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        numbers = [re.match(r"part-(\d+)\.parquet", name) for name in storage.names("measurements")]
        self._parts = 1 + max((int(number.group(1)) for number in numbers if number), default=-1)

    def record(self, measurements: Sequence[Measurement]) -> None:
        """Keeps measurements; when it returns they outlive the process.

        Raises:
            RunStoppedError: they cannot be written.
        """
        if not measurements:
            return
        rows = [row_of(uuid.uuid4().hex, one) for one in measurements]
        self._storage.write(f"measurements/part-{self._parts:06d}.parquet", parquet_bytes(rows))
        self._parts += 1
