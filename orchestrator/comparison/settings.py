"""The `compare` block of a config, and the runs that it asks for: every one an ordinary config of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator

from orchestrator.config.loading import check_config, expand, validated
from orchestrator.config.schema import Config
from orchestrator.searches.limits import Bound
from orchestrator.searches.registry import search_methods
from orchestrator.searches.settings import SearchSettings, Strict
from search_spaces.errors import ConfigError

__all__ = ["CompareSettings", "PlannedRun", "complete", "planned_runs"]

_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+]*(-[A-Za-z0-9_.+]+)*")


class CompareSettings(Strict):
    """What a comparison goes through.

    Attributes:
        budgets: each a value for the one limit that `search.budget` names, or a mapping of limits as it takes them.
        seeds: of search and validation split; None takes `search.seed` alone.
        searches: by name what differs from `search`. The method, where none is given, is the one of that name, else
            that of `search`; with another method only the keys that all methods share are taken over from `search`.
            None compares all registered methods.
    """

    budgets: Annotated[tuple[Any, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] | None = None
    searches: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)] | None = None

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice")
        return seeds

    @field_validator("searches")
    @classmethod
    def _folder_names(cls, searches: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in searches or {}:
            if not _FOLDER.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a folder; take letters, digits, and _ . + - between them")
        return searches


@dataclass(frozen=True)
class PlannedRun:
    """One search under one budget with one seed.

    Attributes:
        search: its name in the comparison.
        number: the budget's place in `compare.budgets`.
        config: that of an ordinary run.
        base: the config's own `search`: its objective tells the best of several runs.
    """

    search: str
    number: int
    config: Config
    base: SearchSettings

    @property
    def budget(self) -> str:
        """The budget as text: `parameters 0.5`."""
        return ", ".join(f"{cost} {_plain(value)}" for cost, value in self.config.search.budget.items())

    @property
    def name(self) -> str:
        """Name of the run's directory below the comparison's: `alds-0.5-s0`, with costs where others are limited."""
        limits, usual = self.config.search.budget, list(self.base.budget)
        named = [f"{'' if list(limits) == usual[:1] else cost}{_plain(value)}" for cost, value in limits.items()]
        limits_text = re.sub(r"[^A-Za-z0-9_.+@-]", "", "+".join(named))  # `10 ms` and `500/s` name folders
        return f"{self.search}-{limits_text}-s{self.config.search.seed}"

    @contextmanager
    def keys(self) -> Iterator[None]:
        """Has errors that name a key below `search` name the one below `compare` that it comes from."""
        with _keys(self.search, self.number):
            yield


def complete(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A comparison's config with its environment variables, seeds and searches written out.

    Args:
        raw: as it was read.
        source: what to call it in messages.

    Raises:
        ConfigError: the config or its `compare` block is wrong.
    """
    rest = {name: block for name, block in raw.items() if name != "compare"}
    base = check_config(rest, source)
    block = expand(raw.get("compare"), "compare")
    if not isinstance(block, dict):
        raise ConfigError(f"{source}: compare", "is missing; a comparison needs `compare: {budgets: [0.5, 0.7]}`")
    settings: CompareSettings = validated(CompareSettings, block, "compare.")
    methods = search_methods().names()
    wanted = settings.searches or {name: None for name in methods}
    searches = {}
    for name, own in wanted.items():
        method = name if name in methods else base.search.method
        searches[name] = {"method": method, **(own or {})}
    compare = {
        "budgets": list(settings.budgets),
        "seeds": list(settings.seeds or (base.search.seed,)),
        "searches": searches,
    }
    return {**expand(rest), "compare": compare}


def planned_runs(completed: Mapping[str, Any]) -> list[PlannedRun]:
    """The runs of a comparison, budget by budget, then seed by seed.

    Args:
        completed: what `complete` returned.

    Raises:
        ConfigError: a search's key or a budget is wrong; the key below `compare` is named.
    """
    rest = {name: block for name, block in completed.items() if name != "compare"}
    compare, base = completed["compare"], check_config(rest, "config")
    runs: dict[str, PlannedRun] = {}
    for number, value in enumerate(compare["budgets"]):
        budget = _budget(value, number, base.search)
        fresh = [
            _planned(rest, name, own, number, budget, seed, base.search)
            for seed in compare["seeds"]
            for name, own in compare["searches"].items()
        ]
        if fresh[0].name in runs:
            raise ConfigError(f"compare.budgets.{number}", f"{fresh[0].budget} stands twice")
        runs.update({run.name: run for run in fresh})
    return list(runs.values())


def _planned(
    rest: Mapping[str, Any],
    name: str,
    own: Mapping[str, Any],
    number: int,
    budget: Any,
    seed: int,
    checked: SearchSettings,
) -> PlannedRun:
    for key, by in (("budget", "compare.budgets"), ("seed", "compare.seeds")):
        if key in own:
            raise ConfigError(f"compare.searches.{name}.{key}", f"is the same for all searches; give it in {by}")
    base = rest["search"]
    same = own["method"] == base["method"]
    shared = {key: value for key, value in base.items() if same or key in SearchSettings.model_fields}
    with _keys(name, number):
        config = check_config({**rest, "search": {**shared, **own, "budget": budget, "seed": seed}}, "config")
    return PlannedRun(name, number, config, checked)


def _budget(value: Any, number: int, base: SearchSettings) -> Any:
    """A budget as `search.budget` takes it."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return value
    if len(base.budget) > 1:
        limited = ", ".join(f"{cost}: ..." for cost in base.budget)
        raise ConfigError(
            f"compare.budgets.{number}",
            f"is one number, but search.budget has {len(base.budget)} limits; write {{{limited}}}",
        )
    return dict.fromkeys(base.budget, value)


@contextmanager
def _keys(search: str, number: int) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        head, _, tail = error.key.partition(".")
        if type(error) is not ConfigError or head != "search":
            raise
        where = f"compare.searches.{search}.{tail}"
        if tail.partition(".")[0] == "budget":
            where = f"compare.budgets.{number}{tail.removeprefix('budget')}"
        raise ConfigError(where.rstrip("."), error.message) from None


def _plain(value: Bound) -> str:
    """A limit's value without rounding: `0.5`, `1200000`, `10 ms`."""
    if isinstance(value, str):
        return value
    return str(int(value)) if value == int(value) else repr(float(value))
