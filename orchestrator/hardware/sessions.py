"""Keeps devices busy with sessions until their work is done, or none of them is left to do it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.hardware.latency_table import Conditions, LatencyTable, Work
from orchestrator.hardware.measurement_log import MeasurementLog
from orchestrator.hardware.stations import Station, Stations, why_lost
from orchestrator.hardware.work_queue import Piece, WorkQueue
from search_spaces.errors import MeasurementError
from workers.causes import cause
from workers.timing.child import ChildTimeoutError
from workers.timing.contract import Measurement, Status, Workload
from workers.timing.lease import LeaseHeldError

__all__ = ["Course", "Kind", "Sessions", "Unwatched", "Watcher", "median_ms", "work_of"]

_LEASE_S = 10.0
"""Seconds that one call waits for a lease before it says who has it."""

_HANGS = 3
"""Sessions in a row that hung, after which even the last device of its kind is given up."""

_HEARTBEAT_S = 60.0
"""Seconds after which actors at work are asked again whether they are there."""


@dataclass(frozen=True)
class Course:
    """How far a measuring has come, in workloads.

    Attributes:
        known: that the table had.
        measured: that it has now.
        rejected: that have no good measurement, for good.
        waiting: that have not been timed, or not well enough.
        timing: that are timed now, by device; none of a device that waits for its lease.
    """

    known: int
    measured: int
    rejected: int
    waiting: int
    timing: Mapping[str, int]


class Watcher(Protocol):
    """Who watches a measuring."""

    def update(self, course: Course) -> None:
        """Called whenever something was measured or begun."""

    def say(self, line: str) -> None:
        """Something a person should know: a device that is leased, or given up."""


class Unwatched:
    """Watches nothing."""

    def update(self, course: Course) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@dataclass
class Kind:
    """Devices that stand in for one another, and their common work.

    Attributes:
        conditions: of all their measurements.
        queue: what is left to time.
        stations: the devices.
        results: what is known so far, good or final.
        checked: medians of known entries that are measured again, in ms.
        differences: of these, the new median over the old one, less 1.
    """

    conditions: Conditions
    queue: WorkQueue
    stations: list[Station]
    results: dict[Work, Measurement]
    checked: Mapping[Work, float]
    differences: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Session:
    """A call under way."""

    kind: Kind
    station: Station
    pieces: list[Piece]


class Sessions:
    """Keeps every device busy until no work is left that one of them can do.

    Args:
        kinds: with their work; what is found lies in them.
        stations: of the devices.
        table: every good measurement enters it at once.
        wait_s: how long to wait for a device that somebody else leases.
        log: keeps every measurement.
        watcher: sees how it goes.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        stations: Stations,
        table: LatencyTable,
        *,
        wait_s: float,
        log: MeasurementLog | None,
        watcher: Watcher,
    ) -> None:
        self._kinds, self._stations, self._table = kinds, stations, table
        self._wait_s, self._log, self._watcher = wait_s, log, watcher
        self._known = sum(len(kind.results) for kind in kinds)
        self._sessions: dict[Any, _Session] = {}

    def run(self) -> None:
        """To its end."""
        looked = time.monotonic()
        try:
            while True:
                self._begin()
                self._report()
                if not self._sessions:
                    return
                ready, _ = ray.wait(list(self._sessions), num_returns=1, timeout=_HEARTBEAT_S)
                for reference in ready:
                    self._end(reference, self._sessions.pop(reference))
                if time.monotonic() - looked >= _HEARTBEAT_S:
                    self._look_after()
                    looked = time.monotonic()
        finally:
            for reference in self._sessions:  # interrupted
                self._stations.give_up(self._sessions[reference].station, "interrupted")

    def _begin(self) -> None:
        busy = {id(session.station) for session in self._sessions.values()}
        for kind in self._kinds:
            for station in kind.stations:
                if station.given_up or id(station) in busy:
                    continue
                pieces = kind.queue.take()
                if not pieces:
                    break
                workloads = [piece.workload for piece in pieces]
                reference = station.actor.time.remote(workloads, _LEASE_S)
                self._sessions[reference] = _Session(kind, station, pieces)

    def _look_after(self) -> None:
        """Gives up devices whose actor does not answer: it does while it times."""
        for reference, session in list(self._sessions.items()):
            try:
                self._stations.activity(session.station.name)
            except MeasurementError as error:
                del self._sessions[reference]
                self._lost(session, "timeout", error.reason, give_up=True)

    def _end(self, reference: Any, session: _Session) -> None:
        try:
            measurements = ray.get(reference)
        except RayTaskError as error:
            self._failed(session, error.cause if isinstance(error.cause, Exception) else error)
        except RayError as error:
            self._lost(session, "error", why_lost(error), give_up=True)
        else:
            self._measured(session, measurements)

    def _measured(self, session: _Session, measurements: Sequence[Measurement]) -> None:
        kind, station = session.kind, session.station
        station.hangs, station.waited_s = 0, 0.0
        station.told.clear()
        self._keep(measurements)
        for piece, measurement in zip(session.pieces, measurements, strict=True):
            self._settle(kind, piece, measurement)

    def _settle(self, kind: Kind, piece: Piece, measurement: Measurement) -> None:
        work = work_of(piece.workload)
        if measurement.ok and work in kind.checked:
            kind.differences.append(median_ms(measurement) / kind.checked[work] - 1.0)
        # What the device says of itself may have changed since it was asked, its power mode for one.
        doubtful = measurement.ok and self._table.find(Conditions.of(measurement), work) is None
        if doubtful:
            reason = f"{median_ms(measurement):.4g} ms contradicts what was measured before"
            measurement = replace(measurement, status="noisy", reason=reason)
        elif measurement.ok and Conditions.of(measurement) != kind.conditions:
            reason = "versions or power mode changed since the device was asked; run it again"
            measurement = replace(measurement, status="throttled", reason=reason)
        if kind.queue.measured(piece, measurement, doubtful=doubtful):
            kind.results[work] = self._table.find(kind.conditions, work) or measurement

    def _keep(self, measurements: Sequence[Measurement]) -> None:
        if self._log is not None:
            self._log.record(measurements)
        self._table.add([one for one in measurements if one.ok])

    def _failed(self, session: _Session, error: Exception) -> None:
        station = session.station
        if isinstance(error, LeaseHeldError):
            self._wait_on(session, error)
        elif isinstance(error, ChildTimeoutError):
            self._hung(session, error.reason)
        elif isinstance(error, MeasurementError):
            self._lost(session, "error", error.reason, give_up=False)
        else:
            raise error if not isinstance(error, RayTaskError) else MeasurementError(station.name, cause(error))

    def _hung(self, session: _Session, reason: str) -> None:
        """The device is to blame if another one can do its work, unless this work has made one hang before."""
        session.station.hangs += 1
        fresh = not any(piece.suspicion for piece in session.pieces)
        give_up = session.station.hangs >= _HANGS or (fresh and bool(self._stations.like(session.station)))
        self._lost(session, "timeout", reason, give_up=give_up)

    def _wait_on(self, session: _Session, error: LeaseHeldError) -> None:
        station = session.station
        session.kind.queue.put_back(session.pieces)
        station.waited_s += _LEASE_S
        if str(error.holder) not in station.told:
            station.told.add(str(error.holder))
            self._watcher.say(f"{station.name} waits: {error.thing} is leased by {error.holder or 'another process'}")
        if station.waited_s >= self._wait_s:
            self._give_up(session, f"{error.thing} was leased by {error.holder} for {station.waited_s:.0f} s")

    def _lost(self, session: _Session, status: Status, reason: str, *, give_up: bool) -> None:
        """A session ended without measurements: its work goes to others, or is tried again piece by piece."""
        kind, station = session.kind, session.station
        if give_up:
            self._give_up(session, reason)
        else:
            self._watcher.say(f"{station.name}: {reason}; its workloads are tried again one at a time")
        failed = [
            self._unmeasured(session.station, piece.workload, status, reason)
            for piece in kind.queue.lost(session.pieces, moved=give_up)
        ]
        self._keep(failed)
        for one in failed:
            kind.results.setdefault(Work(one.kind, one.subject, one.batch_size), one)

    def _give_up(self, session: _Session, reason: str) -> None:
        kind, station = session.kind, session.station
        self._stations.give_up(station, reason)
        others = self._stations.like(station)
        moved = f"its work goes to {', '.join(one.name for one in others)}" if others else "no other one is of its kind"
        self._watcher.say(f"{station.name} is given up: {reason}; {moved}")
        kind.stations += [one for one in others if one not in kind.stations]

    def _unmeasured(self, station: Station, workload: Workload, status: Status, reason: str) -> Measurement:
        device, identity = station.device, station.identity
        return Measurement(
            kind=workload.kind,
            subject=workload.subject,
            batch_size=workload.batch_size,
            precision=device.precision,
            backend=device.backend,
            threads=device.threads,
            device=device.name,
            device_model=identity.device_model,
            power_mode=identity.power_mode,
            versions=identity.versions,
            status=status,
            reason=reason,
            node=identity.node,
        )

    def _report(self) -> None:
        results = [one for kind in self._kinds for one in kind.results.values()]
        sessions = self._sessions.values()
        timing = {one.station.name: len(one.pieces) for one in sessions if not one.station.waited_s}
        waiting = sum(len(kind.queue) for kind in self._kinds) + sum(len(one.pieces) for one in sessions)
        waiting -= sum(timing.values())
        good = sum(one.ok for one in results)
        self._watcher.update(Course(self._known, good - self._known, len(results) - good, waiting, timing))


def work_of(workload: Workload) -> Work:
    """What is timed, as the table names it."""
    return Work(workload.kind, workload.subject, workload.batch_size)


def median_ms(measurement: Measurement) -> float:
    """Of a good one."""
    assert measurement.spread is not None
    return measurement.spread.median_ms
