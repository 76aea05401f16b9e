"""Devices of the actor's own node: every session in a child process, that is killed if it hangs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.registry import nearest
from workers.timing.backends import backends
from workers.timing.child import alive, call_in_child
from workers.timing.contract import Device, Measurement, Workload
from workers.timing.lease import Lease
from workers.timing.protocol import Rules
from workers.timing.way import Identity

__all__ = ["LocalWay", "rules_from"]

_IDENTIFY_S = 60.0


class LocalWay:
    """A processor or a card of this machine."""

    def backends(self) -> Sequence[str]:
        """Those that time."""
        return backends().names()

    def things(self, device: Device) -> Sequence[str]:
        """Its cores, and its card; a processor without `cores` is all that this process may run on.

        Raises:
            ConfigError: this process may not run on one of the cores.
            MeasurementError: there is no such card.
        """
        usable = sorted(os.sched_getaffinity(0))
        absent = sorted(set(device.cores) - set(usable))
        if absent:
            shown = ", ".join(map(str, usable))
            raise ConfigError(
                f"devices.{device.name}.cores", f"core {absent[0]} is not among those usable here: {shown}"
            )
        if device.accelerator == "cpu":
            return _cores(device.cores or usable)
        return (_card(device.accelerator), *_cores(device.cores))

    def identify(self, device: Device) -> Identity:
        """Asks a child process: a driver that hangs must not take the actor with it."""
        found: Identity = call_in_child(
            _identify, (device,), device=device.name, silence_s=_IDENTIFY_S, environment=_environment(device)
        )
        return found

    def time(
        self, device: Device, workloads: Sequence[Workload], rules: Mapping[str, Any], held: Lease
    ) -> list[Measurement]:
        """Times in a child process, that keeps the lease as long as it lives.

        The device hangs if one step, be it building one workload or one block of calls, takes longer than its limit.
        """
        wait_s = rules_from(rules).wait_s
        found: list[Measurement] = call_in_child(
            _time,
            (device, list(workloads), dict(rules)),
            device=device.name,
            silence_s=device.time_limit_s + wait_s,
            environment=_environment(device),
            inherited=held.descriptors,
        )
        return found


def rules_from(given: Mapping[str, Any]) -> Rules:
    """The protocol's rules with some of their numbers changed.

    Raises:
        ConfigError: there is no such rule, or its value is no number.
    """
    known = Rules.__dataclass_fields__
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"timing.protocol.{name}", f"unknown rule{nearest(name, list(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"timing.protocol.{name}", f"must be a number, not {value!r}")
    return Rules(**given)


def _identify(device: Device) -> Identity:
    """In the child."""
    from workers.timing.processor import preflight, sensors_of
    from workers.timing.session import versions_of

    versions = versions_of(device)
    sensors = sensors_of(device)
    state = sensors.read()
    return Identity(
        device_model=sensors.model,
        power_mode=state.power_mode or "",
        versions=versions,
        node=platform.node(),
        state=state,
        unfit=preflight(state, Rules(), device.accelerator),
    )


def _time(device: Device, workloads: Sequence[Workload], rules: Mapping[str, Any]) -> list[Measurement]:
    """In the child: the session asks what time it is before and after every step."""
    from workers.timing.session import Session

    def clock() -> float:
        alive()
        return time.perf_counter()

    return Session(device, rules_from(rules), clock=clock).measure(workloads)


def _environment(device: Device) -> dict[str, str]:
    """Libraries read their number of threads when they are loaded, and Ray has set its own."""
    return {name: str(device.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def _cores(cores: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"core-{core}" for core in cores)


@cache
def _card(accelerator: str) -> str:
    """The card's lease: by its UUID, because torch, nvidia-smi and two users may count cards differently."""
    found: str = call_in_child(_card_here, (accelerator,), device=accelerator, silence_s=_IDENTIFY_S)
    return found


def _card_here(accelerator: str) -> str:
    """In the child, so that no memory of the card stays taken."""
    import torch

    try:
        device = torch.device(accelerator)
        properties = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise MeasurementError(accelerator, f"this node has no such card: {str(error).splitlines()[0]}") from None
    uuid = getattr(properties, "uuid", None)
    return f"card-{uuid}" if uuid else f"card-{device.type}-{device.index or 0}"
