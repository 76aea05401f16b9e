"""Devices of which there is only a cost model: estimates in a child process, with the record of a measurement."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.errors import ConfigError, RankRayError
from workers.causes import cause
from workers.timing.backends.estimators import estimators
from workers.timing.child import alive, call_in_child
from workers.timing.contract import Device, Estimator, Measurement, Workload
from workers.timing.lease import Lease
from workers.timing.local_way import LocalWay
from workers.timing.way import Identity

__all__ = ["EstimateWay", "estimate_workloads"]

_IDENTIFY_S = 60.0


class EstimateWay(LocalWay):
    """An estimator on this machine. Nothing is timed, so only cores that the config names are leased and kept to."""

    def backends(self) -> Sequence[str]:
        """The estimators."""
        return estimators().names()

    def things(self, device: Device) -> Sequence[str]:
        """The cores that it is to compute on, if the config names some.

        Raises:
            ConfigError: this process may not run on one of them.
        """
        return super().things(device) if device.cores else ()

    def identify(self, device: Device) -> Identity:
        """What is estimated; it is always fit."""
        found: Identity = call_in_child(_identify, (device,), device=device.name, silence_s=_IDENTIFY_S)
        return found

    def time(
        self, device: Device, workloads: Sequence[Workload], rules: Mapping[str, Any], held: Lease
    ) -> list[Measurement]:
        """Estimates one workload after the other, each within the device's time limit; the rules do not enter."""
        found: list[Measurement] = call_in_child(
            _estimate,
            (device, list(workloads)),
            device=device.name,
            silence_s=device.time_limit_s,
            inherited=held.descriptors,
        )
        return found


def estimate_workloads(device: Device, workloads: Sequence[Workload]) -> list[Measurement]:
    """One measurement per workload, in their order, in this process. One that fails says so in its status.

    Raises:
        ConfigError: no such estimator, it is not installed, or it does not know an option.
    """
    estimator = _estimator(device)
    identity = _identify(device)
    return [_estimated(estimator, identity, device, workload) for workload in workloads]


def _estimator(device: Device) -> Estimator:
    return estimators().get(device.backend, f"devices.{device.name}.backend")


def _identify(device: Device) -> Identity:
    estimator = _estimator(device)
    return Identity(estimator.device_model(device), "", estimator.versions(device), platform.node())


def _estimate(device: Device, workloads: Sequence[Workload]) -> list[Measurement]:
    """In the child: every workload has the time limit for itself."""
    if device.cores:
        os.sched_setaffinity(0, device.cores)
    found = []
    for workload in workloads:
        alive()
        found += estimate_workloads(device, [workload])
    return found


def _estimated(estimator: Estimator, identity: Identity, device: Device, workload: Workload) -> Measurement:
    started, spread, reason = time.perf_counter(), None, ""
    try:
        spread = estimator.estimate(workload.program(), device)
    except ConfigError:
        raise  # it would be the same for every workload, and somebody can mend it
    except RankRayError as error:
        reason = str(error)
    except Exception as error:
        reason = cause(error)
    return Measurement(
        kind=workload.kind,
        subject=workload.subject,
        batch_size=workload.batch_size,
        precision=device.precision,
        backend=device.backend,
        threads=device.threads,
        device=device.name,
        device_model=identity.device_model,
        power_mode="",
        versions=identity.versions,
        status="error" if spread is None else "ok",
        reason=reason,
        spread=spread,
        node=identity.node,
        taken_at=time.time(),
        seconds=time.perf_counter() - started,
    )
