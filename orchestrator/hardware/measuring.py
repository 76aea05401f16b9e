"""Gets workloads timed on the devices of a cluster: what the table lacks, the cheapest first, all devices at once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

from orchestrator.hardware.devices import TimingSettings
from orchestrator.hardware.latency_table import Conditions, LatencyTable, Work
from orchestrator.hardware.measurement_log import MeasurementLog
from orchestrator.hardware.sessions import Course, Kind, Sessions, Unwatched, Watcher, median_ms, work_of
from orchestrator.hardware.stations import Station, Stations
from orchestrator.hardware.work_queue import WorkQueue
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import MeasurementError
from workers.timing.contract import Device, Measurement, Workload

__all__ = ["ClusterMeasurer", "Course", "Outcome", "Unwatched", "Watcher", "measurer_on"]


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
        Sessions(
            list(kinds.values()),
            self._stations,
            self.table,
            wait_s=self._settings.wait_s,
            log=self._log,
            watcher=self._watcher,
        ).run()
        self.table.merge_files()
        return self._outcome(opened, wanted, kinds, known)

    def _known(self, name: str) -> str:
        known = self._stations.devices
        if name not in known:
            raise MeasurementError(name, f"there is no such device; the config has {', '.join(sorted(known))}")
        return name

    def _kinds(
        self, opened: Sequence[Station], wanted: Mapping[str, Sequence[Workload]], check: float, dice: random.Random
    ) -> dict[Conditions, Kind]:
        """What the table has, and what is to be timed, by kind of device."""
        asked: dict[Conditions, dict[Work, Workload]] = {}
        for station in opened:
            works = asked.setdefault(station.conditions, {})
            works.update({work_of(one): one for one in wanted[station.name]})
        kinds = {}
        for conditions, works in asked.items():
            results = {work: one for work in works if (one := self.table.find(conditions, work)) is not None}
            drawn = dice.sample(sorted(results), min(len(results), round(check * len(results) + 0.5) if check else 0))
            checked = {work: median_ms(results[work]) for work in drawn}
            todo = [one for work, one in works.items() if work not in results or work in checked]
            queue = WorkQueue(todo, self._settings.session, self._settings.retries)
            alike = [one for one in opened if one.conditions == conditions]
            if all(one.given_up for one in alike):
                alike += self._stations.like(alike[0])
            kinds[conditions] = Kind(conditions, queue, alike, results, checked)
        return kinds

    def _outcome(
        self,
        opened: Sequence[Station],
        wanted: Mapping[str, Sequence[Workload]],
        kinds: Mapping[Conditions, Kind],
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
