"""The `devices` and `timing` blocks of the config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from orchestrator.searches.settings import Strict
from search_spaces.errors import ConfigError
from search_spaces.registry import nearest

if TYPE_CHECKING:  # the contract is described with torch, which a config's check need not wait for
    from workers.timing.contract import Device

__all__ = ["THIS_MACHINE", "DeviceSettings", "TimingSettings", "check_device_names", "device_named", "devices_of"]

Share = Annotated[float, Field(gt=0, lt=1)]

THIS_MACHINE = "cpu"
"""The device that there is without a `devices` block: the processor of the machine that the command runs on."""


class DeviceSettings(Strict):
    """A device, as `workers.timing.contract.Device` describes it.

    Attributes:
        backend: what runs there: a name in the registry of backends.
        resource: Ray's custom resource that only nodes with such a device offer (`jetson_orin`).
        labels: Ray node labels that the node must have.
        cores: processor cores that are leased, and that the measuring process is pinned to; none is all of them.
        threads: of the backend.
        accelerator: torch's name of the device on its node: `cpu`, `cuda:0`.
        precision: of weights and activations.
        options: of the backend, or of the way there (`ssh`).
        time_limit_s: for one workload.
    """

    backend: str = "torch"
    resource: Annotated[str, Field(min_length=1)] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    threads: Annotated[int, Field(ge=1)] = 1
    accelerator: Annotated[str, Field(pattern=r"^[a-z]+(:\d+)?$")] = "cpu"
    precision: Annotated[str, Field(pattern=r"^(float32|float16|bfloat16)$")] = "float32"
    options: dict[str, Any] = Field(default_factory=dict)
    time_limit_s: Annotated[float, Field(gt=0)] = 60.0

    @field_validator("cores")
    @classmethod
    def _each_once(cls, cores: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(cores)) < len(cores):
            raise ValueError("names a core twice")
        return cores

    @model_validator(mode="after")
    def _room_for_threads(self) -> DeviceSettings:
        if self.cores and self.threads > len(self.cores):
            raise ValueError(f"{self.threads} threads do not fit on {len(self.cores)} cores; give as many cores")
        return self


class TimingSettings(Strict):
    """How devices are timed, and where what they take is kept.

    Attributes:
        table: folder or URI of the latency table; runs share it.
        batch_size: samples per call.
        confidence: half the 95 % confidence interval of a median, relative to it, that is narrow enough.
        ranks: `rankray measure` times the multiples of this rank, and the highest that shrinks the layer.
        session: workloads that one child process times; a kill loses no more than them.
        retries: how often a workload is tried again whose measurement was noisy, throttled or cut off.
        wait_s: how long to wait for a device that somebody else leases, before it is given up.
        protocol: other numbers of the protocol by name; see `workers.timing.protocol.Rules`.
        ranks_per_layer: of a search with latency limits: the most ranks of a layer that are timed.
        calibration: whole networks that such a search measures before it starts, to calibrate the sums over layers.
        proposals: of its best candidates that are measured whenever it is done.
        rounds: searches at most until the best measured network is within the limits.
    """

    table: str = "latency"
    batch_size: Annotated[int, Field(ge=1)] = 1
    confidence: Share = 0.01
    ranks: Annotated[int, Field(ge=1)] = 16
    session: Annotated[int, Field(ge=1, le=256)] = 16
    retries: Annotated[int, Field(ge=0)] = 2
    wait_s: Annotated[float, Field(ge=0)] = 600.0
    protocol: dict[str, float] = Field(default_factory=dict)
    ranks_per_layer: Annotated[int, Field(ge=2)] = 32
    calibration: Annotated[int, Field(ge=2)] = 12
    proposals: Annotated[int, Field(ge=1)] = 3
    rounds: Annotated[int, Field(ge=1)] = 5

    @property
    def rules(self) -> dict[str, float]:
        """What is not as it comes in the protocol's rules."""
        return {"half_width": self.confidence, **self.protocol}


def check_device_names(devices: dict[str, DeviceSettings]) -> dict[str, DeviceSettings]:
    """The devices, if their names can stand in file names, costs and messages.

    Raises:
        ValueError: one cannot.
    """
    for name in devices:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(f"{name!r} is no name of a device; use letters, digits, `_`, `-` and `.`")
    return devices


def devices_of(settings: Mapping[str, DeviceSettings]) -> dict[str, Device]:
    """The config's devices by name; this machine's processor where it has none.

    Raises:
        ConfigError: a backend that is not known.
    """
    given = settings or {THIS_MACHINE: DeviceSettings()}
    return {name: _device(name, one) for name, one in given.items()}


def device_named(devices: Mapping[str, Device], name: str, key: str) -> Device:
    """The device called `name`.

    Args:
        key: config key that asked, for the message.

    Raises:
        ConfigError: there is none; those that exist are named.
    """
    if name not in devices:
        raise ConfigError(key, f"unknown device {name!r}; `devices:` has {', '.join(sorted(devices))}")
    return devices[name]


def _device(name: str, settings: DeviceSettings) -> Device:
    from workers.timing.contract import Device
    from workers.timing.way import way_to

    device = Device(name=name, **settings.model_dump())
    known = list(way_to(device).backends())
    if settings.backend not in known:
        close = nearest(settings.backend, known)
        raise ConfigError(f"devices.{name}.backend", f"unknown backend {settings.backend!r}{close}")
    return device
