"""Runs a comparison, new or resumed: one run after another on one cluster; what one of them meets ends no other."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd

from orchestrator.comparison.directory import ComparisonDirectory
from orchestrator.comparison.outcomes import Outcome, parquet_bytes, table_of
from orchestrator.comparison.page import comparison_page
from orchestrator.comparison.preparing import PreparedRuns, prepare_all
from orchestrator.comparison.settings import PlannedRun
from orchestrator.preparation import Prepared
from orchestrator.progress import Observer
from orchestrator.ray_cluster import Cluster, connect
from orchestrator.report import build_report
from orchestrator.search_run import run_search
from search_spaces.errors import InfeasibleBudgetError, RankRayError, RunInterruptedError

__all__ = ["prepare_waiting", "run_comparison"]

_LET_GO_S = 15.0
"""How long the next run waits for the CPUs of the last one's evaluators."""

Outcomes = dict[str, Outcome]


def prepare_waiting(directory: ComparisonDirectory, planned: Sequence[PlannedRun]) -> PreparedRuns:
    """Prepares the runs that have no result yet.

    Raises:
        ConfigError: the model or the data are not what the comparison began with.
    """
    started = {run.name: directory.run(run.name) for run in planned}
    results = {name: run.result() for name, run in started.items() if run is not None}
    prepared = prepare_all([run for run in planned if results.get(run.name) is None])
    by_seed = {one.config.search.seed: one for one in prepared.values() if isinstance(one, Prepared)}
    for run in planned:
        former, now = started[run.name], by_seed.get(run.config.search.seed)
        if former is not None and now is not None:
            former.check_unchanged(now)
    return prepared


def run_comparison(
    directory: ComparisonDirectory, planned: Sequence[PlannedRun], prepared: PreparedRuns, observer: Observer
) -> pd.DataFrame:
    """Goes through the runs; the table is brought up to date after each.

    Args:
        planned: all runs.
        prepared: those that have no result yet.

    Returns:
        The table; see `outcomes.table_of`.

    Raises:
        RunInterruptedError: Ctrl-C; the comparison can be resumed.
        RunStoppedError: the directory cannot be written to.
        ConfigError: the cluster cannot be joined.
    """
    with directory.locked():
        outcomes = {run.name: _known(directory, run, prepared) for run in planned}
        waiting = [run for run in planned if isinstance(prepared.get(run.name), Prepared)]
        try:
            if waiting:
                with connect(waiting[0].config.cluster) as cluster:
                    _run_each(directory, planned, waiting, prepared, outcomes, observer, cluster)
        except (KeyboardInterrupt, RunInterruptedError):
            raise RunInterruptedError(f"interrupted; go on with `rankray resume {directory.location}`") from None
        table = _write(directory, planned, outcomes)
        page = comparison_page(table, [run.data() for one in planned if (run := directory.run(one.name)) is not None])
        directory.storage.write("comparison.html", page.encode())
    return table


def _run_each(
    directory: ComparisonDirectory,
    planned: Sequence[PlannedRun],
    waiting: Sequence[PlannedRun],
    prepared: PreparedRuns,
    outcomes: Outcomes,
    observer: Observer,
    cluster: Cluster,
) -> None:
    cpus = cluster.cpus_free
    _write(directory, planned, outcomes)
    for number, run in enumerate(waiting, start=1):
        observer.say(f"run {number} of {len(waiting)}: {run.search}, {run.budget}, seed {run.config.search.seed}")
        ready = prepared[run.name]
        assert isinstance(ready, Prepared)
        outcomes[run.name] = _outcome(directory, run, ready, observer)
        if outcomes[run.name].reason:
            observer.say(f"{run.name}: {outcomes[run.name].status}: {outcomes[run.name].reason}")
        _write(directory, planned, outcomes)
        _wait_for(cluster, cpus)


def _outcome(directory: ComparisonDirectory, run: PlannedRun, prepared: Prepared, observer: Observer) -> Outcome:
    """Runs one search to its end, whatever that is.

    Raises:
        RunInterruptedError: Ctrl-C.
    """
    location = directory.run_location(run.name)
    try:
        started = directory.start(run.name, prepared)
        result = run_search(prepared, started, observer)
        started.storage.write("report.html", build_report([started.data()]).encode())
    except RunInterruptedError:
        raise
    except InfeasibleBudgetError as error:
        return Outcome("infeasible", error.message, location)
    except RankRayError as error:
        return Outcome("failed", str(error), location)
    return Outcome("finished", "", location, result)


def _known(directory: ComparisonDirectory, run: PlannedRun, prepared: PreparedRuns) -> Outcome:
    """What is known of a run before anything runs."""
    location, ready = directory.run_location(run.name), prepared.get(run.name)
    if isinstance(ready, InfeasibleBudgetError):
        return Outcome("infeasible", ready.message, location)
    if ready is not None:
        return Outcome("unfinished", "", location)
    former = directory.run(run.name)
    return Outcome("finished", "", location, None if former is None else former.result())


def _write(directory: ComparisonDirectory, planned: Sequence[PlannedRun], outcomes: Outcomes) -> pd.DataFrame:
    table = table_of([(run, outcomes[run.name]) for run in planned])
    directory.storage.write("comparison.parquet", parquet_bytes(table))
    return table


def _wait_for(cluster: Cluster, cpus: float) -> None:
    """Until so many CPUs are free, so that `evaluators: auto` gives every run as many; no longer than `_LET_GO_S`."""
    deadline = time.monotonic() + _LET_GO_S
    while cluster.cpus_free < cpus and time.monotonic() < deadline:
        time.sleep(0.1)
