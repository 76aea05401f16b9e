"""Runs a comparison, new or resumed: runs that can share their evaluators interleaved, one such group after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.comparison.directory import ComparisonDirectory
from orchestrator.comparison.grouping import evaluators_key, grouped
from orchestrator.comparison.outcomes import Outcome, parquet_bytes, table_of
from orchestrator.comparison.page import comparison_page
from orchestrator.comparison.preparing import PreparedRuns, prepare_all
from orchestrator.comparison.settings import PlannedRun
from orchestrator.evaluation_log import read_evaluations, scores_in
from orchestrator.preparation import Prepared
from orchestrator.progress import Observer, duration
from orchestrator.ray_cluster import Cluster, connect
from orchestrator.search_run import SearchToRun, run_searches
from search_spaces.candidates import Score
from search_spaces.errors import InfeasibleBudgetError, RankRayError, RunInterruptedError

__all__ = ["prepare_waiting", "run_comparison"]

_LET_GO_S = 15.0
"""How long the next group waits for the CPUs of the last one's evaluators."""

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
    """Goes through the runs; the table is brought up to date after each; what one of them meets ends no other.

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
        comparison = _Comparison(directory, planned, prepared, observer, outcomes)
        try:
            if any(isinstance(one, Prepared) for one in prepared.values()):
                with connect(planned[0].config.cluster) as cluster:
                    comparison.run_all(cluster)
        except (KeyboardInterrupt, RunInterruptedError):
            raise RunInterruptedError(f"interrupted; go on with `rankray resume {directory.location}`") from None
        table = comparison.write()
        page = comparison_page(table, [run.data() for one in planned if (run := directory.run(one.name)) is not None])
        directory.storage.write("comparison.html", page.encode())
    return table


@dataclass
class _Comparison:
    """A comparison that runs: what became of its runs until now."""

    directory: ComparisonDirectory
    planned: Sequence[PlannedRun]
    prepared: PreparedRuns
    observer: Observer
    outcomes: Outcomes

    def run_all(self, cluster: Cluster) -> None:
        """Goes through the runs that have no result, group by group."""
        cpus = cluster.cpus_free
        self.write()
        groups = grouped([run for run in self.planned if isinstance(self.prepared.get(run.name), Prepared)])
        for number, group in enumerate(groups, start=1):
            together = "" if len(group) == 1 else f"{len(group)} searches interleaved on the same evaluators: "
            names = ", ".join(run.name for run in group)
            self.observer.say(f"group {number} of {len(groups)}: {together}{names}")
            self._run(group)
            _wait_for(cluster, cpus)

    def _run(self, group: Sequence[PlannedRun]) -> None:
        searches = []
        for run in group:
            ready = self.prepared[run.name]
            assert isinstance(ready, Prepared)
            try:
                searches.append(SearchToRun(run.name, ready, self.directory.start(run.name, ready)))
            except RankRayError as error:
                self._ended(run.name, error)
        run_searches(searches, self.observer, self._ended, self._scored_by_finished(group[0]))

    def _scored_by_finished(self, like: PlannedRun) -> Iterator[Score]:
        """Scores of finished runs that hold for a run too."""
        for run in self.planned:
            finished = self.outcomes[run.name].status == "finished" and evaluators_key(run) == evaluators_key(like)
            former = self.directory.run(run.name) if finished else None
            if former is None:
                continue
            try:
                yield from (one for one in scores_in(read_evaluations(former.storage)) if not one.stopped)
            except RankRayError as error:
                self.observer.say(f"{error}; what {run.name} scored may be scored again")

    def _ended(self, name: str, end: dict[str, Any] | RankRayError) -> None:
        """Notes what became of a run."""
        self.outcomes[name] = self._outcome(name, end)
        self.observer.say(f"{name}: {_in_words(self.outcomes[name])}")
        self.write()

    def _outcome(self, name: str, end: dict[str, Any] | RankRayError) -> Outcome:
        location = self.directory.run_location(name)
        if isinstance(end, InfeasibleBudgetError):
            return Outcome("infeasible", end.message, location)
        if isinstance(end, RankRayError):
            return Outcome("failed", str(end), location)
        return Outcome("finished", "", location, end)

    def write(self) -> pd.DataFrame:
        """Brings the table up to date.

        Raises:
            RunStoppedError: it cannot be written.
        """
        table = table_of([(run, self.outcomes[run.name]) for run in self.planned])
        self.directory.storage.write("comparison.parquet", parquet_bytes(table))
        return table


def _in_words(outcome: Outcome) -> str:
    """One line for whoever watches."""
    if outcome.result is None:
        return f"{outcome.status}: {outcome.reason}"
    scored, taken_over = outcome.result["evaluations"], outcome.result["taken_over"]
    of_others = f", {taken_over:,} of them scored for other searches" if taken_over else ""
    return f"{outcome.status}, {scored:,} candidates{of_others}, {duration(outcome.result['seconds'])}"


def _known(directory: ComparisonDirectory, run: PlannedRun, prepared: PreparedRuns) -> Outcome:
    """What is known of a run before anything runs."""
    location, ready = directory.run_location(run.name), prepared.get(run.name)
    if isinstance(ready, InfeasibleBudgetError):
        return Outcome("infeasible", ready.message, location)
    if ready is not None:
        return Outcome("unfinished", "", location)
    former = directory.run(run.name)
    return Outcome("finished", "", location, None if former is None else former.result())


def _wait_for(cluster: Cluster, cpus: float) -> None:
    """Until so many CPUs are free, so that `evaluators: auto` gives every group as many; no longer than `_LET_GO_S`."""
    deadline = time.monotonic() + _LET_GO_S
    while cluster.cpus_free < cpus and time.monotonic() < deadline:
        time.sleep(0.1)
