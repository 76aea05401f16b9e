"""Stations: the hardware actors of a run, one per device, and what became known of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from orchestrator.hardware.latency_table import Conditions
from orchestrator.hardware.measurement_rows import versions_text
from orchestrator.hardware.placement import check_placeable, start_actor
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import ConfigError, MeasurementError
from workers.causes import cause
from workers.timing.contract import Device
from workers.timing.hardware_actor import Activity
from workers.timing.way import Identity

__all__ = ["Station", "Stations", "why_lost"]

_SAY_AFTER_S = 10.0
_ASK_S = 120.0


@dataclass
class Station:
    """One device and its actor.

    Attributes:
        identity: what it is.
        waited_s: since its lease was last had.
        given_up: why nothing more is asked of it; empty while it is in use.
        hangs: sessions in a row that hung.
        told: who was said to hold its lease.
    """

    device: Device
    actor: Any
    identity: Identity
    waited_s: float = 0.0
    given_up: str = ""
    hangs: int = 0
    told: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The device's."""
        return self.device.name

    @property
    def conditions(self) -> Conditions:
        """Those of its measurements; devices with the same ones stand in for one another."""
        device, identity = self.device, self.identity
        return Conditions(
            identity.device_model,
            identity.power_mode,
            device.backend,
            versions_text(identity.versions),
            device.threads,
            device.precision,
        )


class Stations:
    """Starts actors when they are first asked for, and ends them all.

    Args:
        cluster: where they run.
        devices: of the config, by name.
        run: written beside leases.
        rules: fields of `protocol.Rules` that are not as they come.
        wait_s: for a place on the cluster.
        say: called with what a person should know.
    """

    def __init__(
        self,
        cluster: Cluster,
        devices: Mapping[str, Device],
        *,
        run: str,
        rules: Mapping[str, Any],
        wait_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._cluster, self.devices = cluster, devices
        self._run, self._rules, self._wait_s, self._say = run, rules, wait_s, say
        self._stations: dict[str, Station] = {}

    def open(self, names: Iterable[str]) -> list[Station]:
        """The stations of devices, in their order; those that are new start side by side.

        Raises:
            ConfigError: no node can hold one, its backend is missing there, or one of its options is wrong.
            MeasurementError: one does not answer, or gets no place on the cluster in time.
        """
        wanted = list(names)
        new = [name for name in dict.fromkeys(wanted) if name not in self._stations]
        for name in new:
            check_placeable(self._cluster, self.devices[name])
        actors = {name: start_actor(self._cluster, self.devices[name], self._run, self._rules) for name in new}
        asked = {name: actor.identify.remote() for name, actor in actors.items()}
        try:
            for name, reference in asked.items():
                identity = self._await(name, reference)
                self._stations[name] = Station(self.devices[name], actors[name], identity)
        finally:
            for name in actors.keys() - self._stations.keys():
                ray.kill(actors[name])
        return [self._stations[name] for name in wanted]

    def like(self, station: Station) -> list[Station]:
        """Other stations of the same kind, those of devices that nobody asked for until now included."""

        def setting(device: Device) -> tuple[object, ...]:
            return device.backend, device.threads, device.precision

        for name, other in self.devices.items():
            if name not in self._stations and setting(other) == setting(station.device):
                try:
                    self.open([name])
                except (ConfigError, MeasurementError) as error:
                    self._say(f"{name} cannot stand in for {station.name}: {error}")
        return [
            one
            for one in self._stations.values()
            if one is not station and not one.given_up and one.conditions == station.conditions
        ]

    def activity(self, name: str) -> Activity:
        """What happens on a device now.

        Raises:
            MeasurementError: its actor does not say.
        """
        try:
            found: Activity = ray.get(self._stations[name].actor.activity.remote(), timeout=_ASK_S)
        except GetTimeoutError:
            raise MeasurementError(name, f"its actor has not answered for {_ASK_S:.0f} s") from None
        except RayError as error:
            raise MeasurementError(name, why_lost(error)) from None
        return found

    def give_up(self, station: Station, reason: str) -> None:
        """Asks nothing more of a device; its process and its lease are free at once."""
        station.given_up = reason
        ray.kill(station.actor)

    def close(self) -> None:
        """Ends every actor."""
        for station in self._stations.values():
            if not station.given_up:
                ray.kill(station.actor)
        self._stations = {}

    def _await(self, name: str, reference: Any) -> Identity:
        ready, _ = ray.wait([reference], timeout=_SAY_AFTER_S)
        if not ready:
            self._say(f"{name}: waits for a place on the cluster, or for its node to answer")
        started = time.monotonic()
        try:
            identity: Identity = ray.get(reference, timeout=max(self._wait_s, _ASK_S))
        except RayTaskError as error:
            raise _own(error, name) from None
        except GetTimeoutError:
            waited = time.monotonic() - started + _SAY_AFTER_S
            reason = f"no place on the cluster within {waited:.0f} s; what it needs is taken, or its node is hung"
            raise MeasurementError(name, reason) from None
        except RayError as error:
            raise MeasurementError(name, why_lost(error)) from None
        return identity


def _own(error: RayTaskError, name: str) -> Exception:
    """What the actor raised."""
    raised = error.cause
    if isinstance(raised, ConfigError | MeasurementError):
        return raised
    return MeasurementError(name, cause(raised if isinstance(raised, Exception) else error))


def why_lost(error: RayError) -> str:
    """What Ray says of an actor that is gone, in one line."""
    return f"its actor was lost: {cause(error)}"
