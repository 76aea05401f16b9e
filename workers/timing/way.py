"""How a device is reached: the contract, and the ways by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from search_spaces.registry import Registry
from workers.timing.contract import Device, Measurement, State, Workload
from workers.timing.lease import Lease

__all__ = ["Identity", "Way", "way_to", "ways"]


@dataclass(frozen=True)
class Identity:
    """What a device is, and how it is now.

    Attributes:
        device_model: what it physically is (`AMD EPYC 9B14`, `NVIDIA H100`).
        power_mode: as in `State`.
        versions: of backend and drivers, as a measurement has them.
        node: host name of the device, or of its board.
        state: just now.
        unfit: why it should not be timed now; empty if it may be.
    """

    device_model: str
    power_mode: str
    versions: Mapping[str, str]
    node: str
    state: State = field(default_factory=State)
    unfit: str = ""


class Way(Protocol):
    """Reaches devices from the process of their hardware actor. Registered under `rankray.ways`."""

    def backends(self) -> Sequence[str]:
        """What may run on a device that is reached so, by name."""

    def things(self, device: Device) -> Sequence[str]:
        """The physical things that have to be leased on this node, by names that are the same for everybody here.

        Raises:
            MeasurementError: the node has no such thing.
        """

    def identify(self, device: Device) -> Identity:
        """Looks at the device, without timing anything; called without a lease.

        Raises:
            ConfigError: the backend is not installed there, or an option is wrong.
            MeasurementError: it does not answer.
        """

    def time(
        self, device: Device, workloads: Sequence[Workload], rules: Mapping[str, Any], held: Lease
    ) -> list[Measurement]:
        """Times workloads together, in one session; called with the lease in hand.

        Args:
            rules: fields of `protocol.Rules` that are not as they come.

        Returns:
            One measurement per workload, in their order.

        Raises:
            ChildTimeoutError: the device hangs.
            MeasurementError: the session failed as a whole.
        """


@cache
def ways() -> Registry[Way]:
    """Ways by name; other packages add theirs through the entry point group `rankray.ways`."""
    from workers.timing.estimate_way import EstimateWay
    from workers.timing.local_way import LocalWay
    from workers.timing.ssh_way import SshWay

    built_in: dict[str, Way] = {"local": LocalWay(), "estimate": EstimateWay(), "ssh": SshWay()}
    return Registry("rankray.ways", "way to a device", built_in)


def way_to(device: Device) -> Way:
    """The way that an option of the device names (`ssh`), or that its backend is of (`estimate`).

    Without either it is a child process on the actor's node.

    Raises:
        ConfigError: its entry point does not import.
    """
    from workers.timing.backends.estimators import estimators

    named = [name for name in ways().names() if name in device.options]
    usual = "estimate" if device.backend in estimators().names() else "local"
    return ways().get(named[0] if named else usual, f"devices.{device.name}.options")
