"""A run's search: as its method makes it, or, where the budget limits latency, with the loop closed by measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from orchestrator.hardware.devices import devices_of
from orchestrator.hardware.latency_step import limited_devices, time_networks, time_space
from orchestrator.hardware.measurement_log import MeasurementLog
from orchestrator.hardware.measuring import ClusterMeasurer, Course, measurer_on
from orchestrator.hardware.run_memory import MeasureAll, RunMemory
from orchestrator.preparation import Prepared
from orchestrator.progress import Observer
from orchestrator.ray_cluster import Cluster
from orchestrator.run_directory import RunDirectory
from orchestrator.searches.closed_loop import ClosedLoop, LoopSetting
from orchestrator.searches.contract import Problem, Search
from orchestrator.searches.registry import search_methods
from orchestrator.termination import termination_interrupts
from search_spaces.errors import MeasurementError, RunInterruptedError
from search_spaces.latency import Timing
from search_spaces.rank_space import RankVector
from workers.timing.contract import Measurement, Workload

__all__ = ["SearchWatcher", "measure_all", "said_of", "timed_search"]


@contextmanager
def timed_search(
    prepared: Prepared, cluster: Cluster, run: RunDirectory, observer: Observer, state: Mapping[str, Any] | None
) -> Iterator[tuple[Prepared, Search]]:
    """The search, and the preparation with all that it needs to know; its devices are kept for as long as the block.

    Args:
        prepared: after the local step.
        state: of the search in a former process; a search with latency limits needs none.

    Raises:
        InfeasibleBudgetError: no rank vector meets the latency limits.
        MeasurementError: a device does not answer, or too little could be measured on it.
        RunInterruptedError: Ctrl-C, or SIGTERM, while devices were timed.
    """
    settings = prepared.config.search
    method = search_methods().get(settings.method, "search.method")
    if not limited_devices(prepared):
        yield prepared, method.start(settings, prepared.problem, state)
        return
    devices = devices_of(prepared.config.devices)
    log, watcher = MeasurementLog(run.storage), SearchWatcher(observer)
    with measurer_on(cluster, devices, prepared.config.timing, run=run.location, log=log, watcher=watcher) as measurer:
        memory = RunMemory(run.storage, measure_all(measurer))
        try:
            with termination_interrupts():
                timed = time_space(prepared, memory)
        except KeyboardInterrupt:
            raise RunInterruptedError(
                "interrupted while devices were timed; what was measured is in the latency table: go on with "
                f"`rankray resume {run.location}`"
            ) from None
        for model in timed.models:
            observer.say(said_of(model.record(prepared.space.dense), model.device, model.cost.step))

        def start(problem: Problem) -> Search:
            search: Search = method.start(settings, problem, None)
            return search

        def measure(device: str, vectors: Sequence[RankVector]) -> list[Timing | None]:
            found = time_networks(timed.prepared, device, vectors, memory)
            memory.keep()
            return found

        timing = prepared.config.timing
        setting = LoopSetting(timing.rounds, timing.proposals)
        problem, models = timed.prepared.problem, timed.models
        yield timed.prepared, ClosedLoop(problem, timed.static, models, start, measure, setting)


class SearchWatcher:
    """Passes on what a person should know of a measuring; its course is not the search's."""

    def __init__(self, observer: Observer) -> None:
        self.say = observer.say

    def update(self, course: Course) -> None:
        """Nothing."""


def measure_all(measurer: ClusterMeasurer) -> MeasureAll:
    """What a run's memory asks; a device of which something was not measured has been given up."""

    def measure(wanted: Mapping[str, Sequence[Workload]]) -> dict[str, list[Measurement]]:
        outcome = measurer.measure_all(wanted)
        found: dict[str, list[Measurement]] = {}
        for device, measurements in outcome.measurements.items():
            found[device] = [one for one in measurements if one is not None]
            if len(found[device]) < len(measurements):
                raise MeasurementError(device, outcome.given_up.get(device, "no device of its kind is left"))
        return found

    return measure


def said_of(record: Mapping[str, Any], device: str, step: int) -> str:
    """What was learned of a device, in one line."""
    calibration = record["calibration"]
    error = calibration["error_median"]
    exact = "" if error is None else f", {error:.1%} off (median)"
    return (
        f"{device}: rank step {step}; dense {record['dense_ms']:.4g} ms, limit {record['limit_ms']:.4g} ms; "
        f"calibrated by {calibration['networks']} networks{exact}"
    )
