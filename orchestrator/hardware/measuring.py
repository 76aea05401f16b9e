"""Gets workloads timed on the devices of a cluster: what the table lacks, the cheapest first, all devices at once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.hardware.devices import TimingSettings
from orchestrator.hardware.latency_table import Conditions, LatencyTable, Work
from orchestrator.hardware.measurement_log import MeasurementLog
from orchestrator.hardware.stations import Station, Stations, why_lost
from orchestrator.hardware.work_queue import Piece, WorkQueue
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import MeasurementError
from workers.causes import cause
from workers.timing.child import ChildTimeoutError
from workers.timing.contract import Device, Measurement, Status, Workload
from workers.timing.lease import LeaseHeldError

__all__ = ["ClusterMeasurer", "Course", "Outcome", "Unwatched", "Watcher", "measurer_on"]

_LEASE_S = 10.0
"""Seconds that one call waits for a lease before it says who has it."""

_HANGS = 3
"""Sessions in a row that hung, after which even the last device of its kind is given up."""


@dataclass(frozen=True)
class Course:
    """How far a measuring has come, in workloads.

    Attributes:
        known: that the table had.
        measured: that it has now.
        rejected: that have no good measurement, for good.
        waiting: that have not been timed, or not well enough.
        timing: that are timed now, by device.
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


@dataclass(frozen=True)
class Outcome:
    """What came of a measuring.

    Attributes:
        measurements: by device, one per workload that was asked for, in their order; None where no device of the kind
            was left to time it.
        measured, known: workloads that were timed well, and that the table had; devices of a kind share them.
        rejected: those without a good measurement, with the reason.
        given_up: devices, with the reason.
        differences: of checked entries, the new median over the old one, less 1.
    """

    measurements: Mapping[str, list[Measurement | None]]
    measured: int
    known: int
    rejected: Sequence[Measurement]
    given_up: Mapping[str, str]
    differences: Sequence[float] = ()

    @property
    def difference(self) -> float | None:
        """The median difference of checked entries, without its sign."""
        return median(map(abs, self.differences)) if self.differences else None


@dataclass
class _Kind:
    """Devices that stand in for one another, and their common work."""

    conditions: Conditions
    queue: WorkQueue
    stations: list[Station]
    results: dict[Work, Measurement]
    checked: Mapping[Work, float]
    differences: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Session:
    """A call under way."""

    kind: _Kind
    station: Station
    pieces: list[Piece]


class ClusterMeasurer:
    """Measures on the devices of a cluster, through the table.

    Args:
        stations: of the devices.
        table: asked first; every good measurement enters it at once.
        settings: of the config.
        log: keeps every measurement, where a run wants that.
        watcher: sees how it goes.
    """

    def __init__(
        self,
        stations: Stations,
        table: LatencyTable,
        settings: TimingSettings,
        log: MeasurementLog | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._stations, self.table, self._settings = stations, table, settings
        self._log, self._watcher = log, watcher or Unwatched()

    def conditions(self, device: str) -> Conditions:
        """What the device's measurements are taken under: its kind; with it the table can be asked.

        Raises:
            MeasurementError: it does not answer.
        """
        return self._stations.open([self._known(device)])[0].conditions

    def measure(self, device: str, workloads: Sequence[Workload]) -> list[Measurement]:
        """One measurement per workload, in their order; see `Measurer`."""
        outcome = self.measure_all({device: workloads})
        found = outcome.measurements[device]
        if any(one is None for one in found):
            raise MeasurementError(device, outcome.given_up.get(device, "no device of its kind is left"))
        return [one for one in found if one is not None]

    def measure_all(self, wanted: Mapping[str, Sequence[Workload]], *, check: float = 0.0, seed: int = 0) -> Outcome:
        """Measures what the table lacks for several devices.

        Args:
            wanted: by device.
            check: share of the entries that the table has which are measured again all the same.
            seed: of the draw of these.

        Raises:
            ConfigError: a device that no node can hold, or a rule or option that is wrong.
            MeasurementError: a device that is not known, or does not answer from the start.
        """
        self.table.refresh()
        opened = self._stations.open([self._known(name) for name in wanted])
        kinds = self._kinds(opened, wanted, check, random.Random(seed))
        known = sum(len(kind.results) for kind in kinds.values())
        _Measuring(self, list(kinds.values()), known).run()
        self.table.merge_files()
        return self._outcome(opened, wanted, kinds, known)

    def _known(self, name: str) -> str:
        known = self._stations.devices
        if name not in known:
            raise MeasurementError(name, f"there is no such device; the config has {', '.join(sorted(known))}")
        return name

    def _kinds(
        self, opened: Sequence[Station], wanted: Mapping[str, Sequence[Workload]], check: float, dice: random.Random
    ) -> dict[Conditions, _Kind]:
        """What the table has, and what is to be timed, by kind of device."""
        asked: dict[Conditions, dict[Work, Workload]] = {}
        for station in opened:
            works = asked.setdefault(station.conditions, {})
            works.update({work_of(one): one for one in wanted[station.name]})
        kinds = {}
        for conditions, works in asked.items():
            results = {work: one for work in works if (one := self.table.find(conditions, work)) is not None}
            drawn = dice.sample(sorted(results), min(len(results), round(check * len(results) + 0.5) if check else 0))
            checked = {work: _ms(results[work]) for work in drawn}
            todo = [one for work, one in works.items() if work not in results or work in checked]
            queue = WorkQueue(todo, self._settings.session, self._settings.retries)
            alike = [one for one in opened if one.conditions == conditions]
            kinds[conditions] = _Kind(conditions, queue, alike, results, checked)
        return kinds

    def _outcome(
        self,
        opened: Sequence[Station],
        wanted: Mapping[str, Sequence[Workload]],
        kinds: Mapping[Conditions, _Kind],
        known: int,
    ) -> Outcome:
        results = [one for kind in kinds.values() for one in kind.results.values()]
        good = sum(one.ok for one in results)
        stations = {id(one): one for kind in kinds.values() for one in kind.stations}
        return Outcome(
            {
                station.name: [
                    None if one is None else replace(one, device=station.name)
                    for one in (kinds[station.conditions].results.get(work_of(it)) for it in wanted[station.name])
                ]
                for station in opened
            },
            measured=good - known,
            known=known,
            rejected=[one for one in results if not one.ok],
            given_up={one.name: one.given_up for one in stations.values() if one.given_up},
            differences=[one for kind in kinds.values() for one in kind.differences],
        )


class _Measuring:
    """One `measure_all` under way: keeps every device busy until no work is left that one of them can do."""

    def __init__(self, measurer: ClusterMeasurer, kinds: Sequence[_Kind], known: int) -> None:
        self._measurer, self._kinds, self._known = measurer, kinds, known
        self._stations, self._table = measurer._stations, measurer.table
        self._settings, self._say = measurer._settings, measurer._watcher.say
        self._sessions: dict[Any, _Session] = {}

    def run(self) -> None:
        """To its end."""
        try:
            while True:
                self._begin()
                self._report()
                if not self._sessions:
                    return
                ready, _ = ray.wait(list(self._sessions), num_returns=1)
                for reference in ready:
                    self._end(reference, self._sessions.pop(reference))
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

    def _settle(self, kind: _Kind, piece: Piece, measurement: Measurement) -> None:
        work = work_of(piece.workload)
        if measurement.ok and work in kind.checked:
            kind.differences.append(_ms(measurement) / kind.checked[work] - 1.0)
        # What the device says of itself may have changed since it was asked, its power mode for one.
        doubtful = measurement.ok and self._table.find(Conditions.of(measurement), work) is None
        if doubtful:
            reason = f"{_ms(measurement):.4g} ms contradicts what was measured before"
            measurement = replace(measurement, status="noisy", reason=reason)
        elif measurement.ok and Conditions.of(measurement) != kind.conditions:
            reason = "versions or power mode changed since the device was asked; run it again"
            measurement = replace(measurement, status="throttled", reason=reason)
        if kind.queue.measured(piece, measurement, doubtful=doubtful):
            kind.results[work] = self._table.find(kind.conditions, work) or measurement

    def _keep(self, measurements: Sequence[Measurement]) -> None:
        if self._measurer._log is not None:
            self._measurer._log.record(measurements)
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
            self._say(f"{station.name} waits: {error.thing} is leased by {error.holder or 'another process'}")
        if station.waited_s >= self._settings.wait_s:
            self._give_up(session, f"{error.thing} was leased by {error.holder} for {station.waited_s:.0f} s")

    def _lost(self, session: _Session, status: Status, reason: str, *, give_up: bool) -> None:
        """A session ended without measurements: its work goes to others, or is tried again piece by piece."""
        kind, station = session.kind, session.station
        if give_up:
            self._give_up(session, reason)
        else:
            self._say(f"{station.name}: {reason}; its workloads are tried again one at a time")
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
        self._say(f"{station.name} is given up: {reason}; {moved}")
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
        timing = {session.station.name: len(session.pieces) for session in self._sessions.values()}
        waiting = sum(len(kind.queue) for kind in self._kinds)
        good = sum(one.ok for one in results)
        self._measurer._watcher.update(Course(self._known, good - self._known, len(results) - good, waiting, timing))


def work_of(workload: Workload) -> Work:
    """What is timed, as the table names it."""
    return Work(workload.kind, workload.subject, workload.batch_size)


def _ms(measurement: Measurement) -> float:
    assert measurement.spread is not None
    return measurement.spread.median_ms


@contextmanager
def measurer_on(
    cluster: Cluster,
    devices: Mapping[str, Device],
    settings: TimingSettings,
    *,
    run: str = "",
    log: MeasurementLog | None = None,
    watcher: Watcher | None = None,
) -> Iterator[ClusterMeasurer]:
    """A measurer for as long as the block lasts; its actors end with it.

    Args:
        cluster: where the devices are.
        devices: of the config, by name.
        run: written beside leases, for those who wait.
        log: keeps every measurement, where a run wants that.
        watcher: sees how it goes.

    Raises:
        ConfigError: the latency table cannot be read.
    """
    watcher = watcher or Unwatched()
    table = LatencyTable(settings.table)
    stations = Stations(cluster, devices, run=run, rules=settings.rules, wait_s=settings.wait_s, say=watcher.say)
    try:
        yield ClusterMeasurer(stations, table, settings, log, watcher)
    finally:
        stations.close()
