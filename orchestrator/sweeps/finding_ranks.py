"""Rank vectors for the training methods that need them: a search at every budget, or a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.hardware.latency_step import limited_devices
from orchestrator.preparation import Prepared, prepare
from orchestrator.progress import Observer
from orchestrator.run_directory import RunDirectory
from orchestrator.search_run import run_search
from orchestrator.searches.limits import Bound
from orchestrator.searches.registry import search_methods
from orchestrator.storage import Storage, below
from orchestrator.sweeps.directory import SweepDirectory
from orchestrator.sweeps.rank_source import FoundRanks, RankSource, RankVectors
from orchestrator.sweeps.settings import SweepPlan
from orchestrator.sweeps.trials import budget_text
from search_spaces.errors import ConfigError
from search_spaces.rank_space import RankVector, rank_vector_from

__all__ = ["check_sources", "find_ranks", "sources_of"]


def sources_of(plan: SweepPlan) -> dict[RankSource, Mapping[str, Bound]]:
    """All sources that a sweep's trials can need, with their budgets."""
    return {
        RankSource(method.ranks_from, method.scheme, budget_text(budget)): budget
        for method in plan.methods
        if method.ranks_from is not None
        for budget in plan.budgets
    }


def check_sources(plan: SweepPlan, names: Sequence[str]) -> dict[RankSource, Prepared | RankVector]:
    """Prepares every search for ranks and reads every run that has them.

    Args:
        names: the network's layers.

    Raises:
        ConfigError: a search cannot be run, or a run is none, is unfinished, or is of other layers or schemes.
    """
    found: dict[RankSource, Prepared | RankVector] = {}
    for source, budget in sources_of(plan).items():
        if source.searched:
            with plan.keys(budget):
                found[source] = prepare(plan.config_for(source.scheme, budget, source.origin))
        else:
            found[source] = _ranks_of_run(source, names)
    return found


def find_ranks(
    checked: Mapping[RankSource, Prepared | RankVector], directory: SweepDirectory, observer: Observer
) -> RankVectors:
    """Runs the searches that have not been run; Ray must be connected.

    Raises:
        RunStoppedError: one of them ended early; resuming the sweep goes on with it.
    """
    ranks: dict[RankSource, FoundRanks] = {}
    for source, one in checked.items():
        if not isinstance(one, Prepared):
            ranks[source] = FoundRanks(one)
            continue
        location = below(directory.location, source.folder)
        begun = Storage(location).exists("config.yaml")
        run = RunDirectory.open(location) if begun else RunDirectory(location)
        if not begun:
            run.begin(one)
        result = run.result()
        if result is None:
            observer.say(f"ranks by {source.origin}, {source.scheme}, {source.text}: searching")
            run.check_unchanged(one)
            result = run_search(one, run, observer)
        vector = _vector(result, [layer.name for layer in one.found.layers])
        ranks[source] = FoundRanks(vector, stand=bool(limited_devices(one)) and result["in_window"])
    return ranks


def _ranks_of_run(source: RankSource, names: Sequence[str]) -> RankVector:
    key = "sweep.ranks_from"
    near = ", ".join(["search", *search_methods().names()])
    if "/" not in source.origin and not Storage(source.origin, key).exists("config.yaml"):
        raise ConfigError(key, f"{source.origin!r} is neither a search nor a run directory; searches: {near}")
    result = RunDirectory.open(source.origin, key).result()
    if result is None:
        raise ConfigError(key, f"{source.origin} is not finished; `rankray resume {source.origin}` goes on with it")
    if set(result["ranks"]) != set(names):
        raise ConfigError(key, f"{source.origin} is of other layers than this network's; take a run of this network")
    used = sorted(set(result["schemes"].values()))
    if used != [source.scheme]:
        raise ConfigError(
            key, f"{source.origin} has ranks for {', '.join(used)}, not for {source.scheme}; name that scheme instead"
        )
    return _vector(result, names)


def _vector(result: Mapping[str, Any], names: Iterable[str]) -> RankVector:
    return rank_vector_from(result["ranks"][name] for name in names)
