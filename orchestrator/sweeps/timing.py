"""The devices of a sweep on its cluster: timed once before any trial trains, and at hand while trials end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from orchestrator.hardware.devices import devices_of
from orchestrator.hardware.measurement_log import MeasurementLog
from orchestrator.hardware.measuring import measurer_on
from orchestrator.hardware.run_memory import RunMemory
from orchestrator.hardware.timed_search import SearchWatcher, measure_all, said_of
from orchestrator.progress import Observer
from orchestrator.ray_cluster import Cluster
from orchestrator.sweeps.directory import SweepDirectory
from orchestrator.sweeps.preparing import PreparedSweep, try_method
from orchestrator.sweeps.timed_budgets import TimedBudgets, time_budgets, time_dense
from orchestrator.sweeps.trial_times import TrialTimes
from orchestrator.termination import termination_interrupts

__all__ = ["networks_timed", "with_timed_budgets"]


def with_timed_budgets(
    prepared: PreparedSweep, cluster: Cluster, directory: SweepDirectory, observer: Observer
) -> PreparedSweep:
    """The sweep with what its devices take; every method is then tried under the budgets that limit them.

    What is measured is kept in the sweep's `measurements/`, and in the latency table: resuming measures nothing again.

    Raises:
        ConfigError: naming the budget that cannot be reached or expressed, or a device that cannot be used.
        MeasurementError: a device does not answer, or too little could be measured on it.
        KeyboardInterrupt: Ctrl-C, or SIGTERM.
    """
    plan = prepared.plan
    if not plan.devices:
        return prepared
    observer.say(f"timing {', '.join(plan.devices)}, before anything is trained")
    with _memory(prepared, cluster, directory, observer) as memory, termination_interrupts():
        for device in plan.devices:
            time_dense(prepared.base, device, memory)
        timed = time_budgets(plan, prepared.base, memory)
    _tell(timed, observer)
    material = replace(prepared.material, timed=timed)
    for method in plan.methods:
        try_method(plan, method, material, timed=True)
    return replace(prepared, material=material)


@contextmanager
def networks_timed(
    prepared: PreparedSweep, cluster: Cluster, directory: SweepDirectory, observer: Observer
) -> Iterator[TrialTimes | None]:
    """Keeps the devices for as long as trials end; None where networks are not timed.

    Not while ranks are searched for: a search uses the devices itself.
    """
    devices = prepared.plan.devices
    if not devices:
        yield None
        return
    with _memory(prepared, cluster, directory, observer) as memory:
        yield TrialTimes(prepared.base, prepared.material, directory.trials, devices, memory)


@contextmanager
def _memory(
    prepared: PreparedSweep, cluster: Cluster, directory: SweepDirectory, observer: Observer
) -> Iterator[RunMemory]:
    config = prepared.plan.config
    with measurer_on(
        cluster,
        devices_of(config.devices),
        config.timing,
        run=directory.location,
        log=MeasurementLog(directory.storage),
        watcher=SearchWatcher(observer),
    ) as measurer:
        yield RunMemory(directory.storage, measure_all(measurer))


def _tell(timed: TimedBudgets, observer: Observer) -> None:
    for (scheme, text), one in timed.items():
        for model in one.models:
            record = model.record((None,) * len(one.space.layers))
            observer.say(f"{text}, {scheme}: {said_of(record, model.device, model.cost.step)}")
