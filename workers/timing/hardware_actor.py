"""The hardware actor: a Ray actor that leases one device and has workloads timed on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.timing.contract import Device, Measurement, Workload
from workers.timing.lease import Holder, lease, lease_holder
from workers.timing.way import Identity, way_to

__all__ = ["CONCURRENCY", "Activity", "HardwareActor"]

CONCURRENCY = 2
"""Calls of an actor that run at once: one that times, and one that asks how it goes."""


@dataclass(frozen=True)
class Activity:
    """What an actor does.

    Attributes:
        timing: workloads that are timed now; 0 while it waits for its lease or for work.
        since: when that began, in seconds since the epoch.
        holder: who has the device's lease; None if it is free.
    """

    timing: int
    since: float
    holder: Holder | None


class HardwareActor:
    """Times workloads on one device; wrap with `ray.remote`, with `max_concurrency=CONCURRENCY`.

    Args:
        device: on this node, or reached from it.
        run: written beside the lease.
        rules: fields of `protocol.Rules` that are not as they come.
    """

    def __init__(self, device: Device, run: str, rules: Mapping[str, Any] | None = None) -> None:
        self._device, self._run, self._rules = device, run, dict(rules or {})
        self._way = way_to(device)
        self._one_session = threading.Lock()
        self._timing, self._since = 0, time.time()

    def identify(self) -> Identity:
        """What the device is; see `Way.identify`."""
        return self._way.identify(self._device)

    def activity(self) -> Activity:
        """What happens on the device; answers while it is timed."""
        holders = [lease_holder(thing) for thing in self._way.things(self._device)]
        return Activity(self._timing, self._since, next((one for one in holders if one is not None), None))

    def time(self, workloads: Sequence[Workload], wait_s: float) -> list[Measurement]:
        """One measurement per workload, in their order.

        Args:
            wait_s: how long to wait for the lease.

        Raises:
            LeaseHeldError: somebody else has it.
            ChildTimeoutError: the device hangs. Its process is dead and the lease free.
            MeasurementError: the session failed as a whole.
        """
        with (
            self._one_session,
            lease(self._way.things(self._device), self._device.name, self._run, wait_s=wait_s) as held,
        ):
            self._timing, self._since = len(workloads), time.time()
            try:
                return self._way.time(self._device, workloads, self._rules, held)
            finally:
                self._timing, self._since = 0, time.time()
