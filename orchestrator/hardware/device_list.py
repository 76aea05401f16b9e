"""`rankray devices`: what can be timed now, and whether it is fit to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config.schema import ClusterSettings
from orchestrator.hardware.devices import TimingSettings
from orchestrator.hardware.stations import Stations
from orchestrator.ray_cluster import connect
from search_spaces.errors import ConfigError, MeasurementError
from workers.timing.contract import Device
from workers.timing.lease import Holder
from workers.timing.way import Identity

__all__ = ["Listed", "list_devices"]

_PLACE_S = 60.0


@dataclass(frozen=True)
class Listed:
    """One device of the config.

    Attributes:
        identity: None if it could not be reached.
        unfit: why it cannot or should not be timed now; empty if it may be.
        holder: who has its lease.
    """

    device: Device
    identity: Identity | None
    unfit: str
    holder: Holder | None = None


def list_devices(devices: Mapping[str, Device], cluster: ClusterSettings, timing: TimingSettings) -> list[Listed]:
    """Looks at every device; one that cannot be reached does not hide the others.

    Raises:
        ConfigError: the cluster cannot be joined.
    """
    with connect(ClusterSettings(address=cluster.address)) as joined:
        stations = Stations(joined, devices, run="", rules=timing.rules, wait_s=_PLACE_S, say=lambda _line: None)
        try:
            return [_look(stations, device) for device in devices.values()]
        finally:
            stations.close()


def _look(stations: Stations, device: Device) -> Listed:
    try:
        identity = stations.open([device.name])[0].identity
        holder = stations.activity(device.name).holder
    except (ConfigError, MeasurementError) as error:
        return Listed(device, None, _without_name(str(error), device.name))
    return Listed(device, identity, identity.unfit, holder)


def _without_name(reason: str, name: str) -> str:
    """A message without the device that it begins with, which a list has beside it."""
    for start in (f"{name}: ", f"devices.{name}: ", f"devices.{name}."):
        reason = reason.removeprefix(start)
    return reason
