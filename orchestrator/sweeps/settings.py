"""The `sweep` block of a config, checked: methods, budgets, seeds, and who proposes what to try."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from orchestrator.config.loading import check_config, expand, validated
from orchestrator.config.schema import Config
from orchestrator.hardware.devices import device_named, devices_of
from orchestrator.searches.limits import Bound, limit_of
from orchestrator.searches.registry import search_methods
from orchestrator.searches.settings import SearchSettings, Strict
from orchestrator.sweeps.ranges import Range, filled, ranges_in
from orchestrator.sweeps.trials import LATENCY, Trial, budget_text, limited_devices, timed_device
from search_spaces.costs import COST_NAMES
from search_spaces.errors import ConfigError
from search_spaces.latency import limited_device
from search_spaces.registry import nearest
from search_spaces.schemes.registry import schemes
from workers.training.contract import TrainingMethod
from workers.training.registry import trainables

__all__ = ["Method", "SweepPlan", "SweepSettings", "plan_sweep"]

_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+]*(-[A-Za-z0-9_.+]+)*")
_OWN_KEYS = ("method", "scheme", "ranks_from")
_OBJECTIVES = ("accuracy", "accuracy_before", "seconds", *(f"compression_{cost}" for cost in COST_NAMES), *COST_NAMES)


class OptunaSettings(Strict):
    """Optuna chooses method, budget and hyper-parameters.

    Attributes:
        trials: how many, until `--more` asks for more.
        sampler: of proposals.
        directions: objectives, columns of `trials.parquet`; several make the study multi-objective. Never test data.
            `latency_ms@DEVICE` is the time measured on a device of the config, whether a budget limits it or not; a
            trial whose network could not be timed is told as failed, which samplers leave out: it says nothing about
            its settings.
    """

    trials: Annotated[int, Field(ge=1)]
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    directions: Annotated[dict[str, Literal["maximize", "minimize"]], Field(min_length=1)] = {"accuracy": "maximize"}

    @field_validator("directions")
    @classmethod
    def _numbers_of_a_trial(cls, directions: dict[str, str]) -> dict[str, str]:
        for name in directions:
            if name.startswith("test_"):
                raise ValueError(f"{name} is of the test data, which choose nothing; take {name.removeprefix('test_')}")
            if name not in _OBJECTIVES and not timed_device(name):
                known = [*_OBJECTIVES, f"{LATENCY}DEVICE"]
                raise ValueError(f"{name!r} is nothing that Optuna can optimise{nearest(name, known)}")
        return directions


class AshaSettings(Strict):
    """Stops hopeless trials; see `halving.py`.

    Attributes:
        metric: what an epoch is judged by, on the held-out samples.
        grace: epochs that every trial may have.
        factor: of how many trials one goes on at every rung.
    """

    metric: Literal["accuracy"] = "accuracy"
    grace: Annotated[int, Field(ge=1)] = 1
    factor: Annotated[int, Field(ge=2)] = 3


class ResourceSettings(Strict):
    """What a trial holds while it runs.

    Attributes:
        cpus: and as many torch threads.
        gpus: a fraction lets several trials share one; above 0 the trial trains on it.
    """

    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0


class SweepSettings(Strict):
    """What a sweep goes through.

    Attributes:
        methods: by name its settings, in which `{uniform: [a, b]}`, `{loguniform: [a, b]}`, `{integer: [a, b]}` and
            `{choice: [...]}` stand for search spaces. Beside them may be `method` (the training method, where the
            name is not its own), `scheme` and `ranks_from`.
        budgets: each a value for the one limit that `search.budget` names, or a mapping of limits, as a search takes
            them: of parameters, macs, volume, and of the latency or throughput of the config's devices.
        seeds: of training; the split of the data is by `search.seed` for all trials.
        optuna: None goes through the grid of methods, their choices, budgets and seeds.
        asha: None trains every trial to its end.
        resources: of each trial.
        storage: folder or URI for checkpoints and results, which every node can reach; None is the run directory.
        ranks_from: where methods that need a rank vector have it from: `search` (the config's own search, run at each
            budget), the name of another search, or a finished run whose ranks are fitted to each budget.
        retries: how often a trial is taken up again on another node after its own was lost.
        concurrency: most trials at once; None is as many as the cluster holds.
        checkpoint_every: epochs between checkpoints.
    """

    methods: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    budgets: Annotated[tuple[Any, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    optuna: OptunaSettings | None = None
    asha: AshaSettings | None = None
    resources: ResourceSettings = ResourceSettings()
    storage: str | None = None
    ranks_from: str = "search"
    retries: Annotated[int, Field(ge=0)] = 3
    concurrency: Annotated[int, Field(ge=1)] | None = None
    checkpoint_every: Annotated[int, Field(ge=1)] = 1

    @field_validator("methods")
    @classmethod
    def _folder_names(cls, methods: dict[str, Any]) -> dict[str, Any]:
        for name in methods:
            if not _FOLDER.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a folder; take letters, digits, and _ . + - between them")
        return methods

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice")
        return seeds


@dataclass(frozen=True)
class Method:
    """A method of a sweep.

    Attributes:
        name: in the config.
        trainable: its training method's name.
        scheme: how it factorises.
        ranks_from: see `SweepSettings`; None where it needs no rank vector.
        settings: as given, ranges in them.
        ranges: those ranges, by dotted name.
    """

    name: str
    trainable: str
    scheme: str
    ranks_from: str | None
    settings: Mapping[str, Any]
    ranges: Mapping[str, Range]

    @property
    def key(self) -> str:
        """Its place in the config."""
        return f"sweep.methods.{self.name}"

    @property
    def registered(self) -> TrainingMethod:
        """What it trains by."""
        return trainables().get(self.trainable, f"{self.key}.method")

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Its settings with values for the ranges, defaults written out, in JSON's types.

        Raises:
            ConfigError: the training method does not take them.
        """
        settings = validated(self.registered.settings, filled(self.settings, values), f"{self.key}.")
        dumped: dict[str, Any] = settings.model_dump(mode="json")
        return dumped

    def trial(self, number: int, values: Mapping[str, Any], budget: Mapping[str, Bound], seed: int) -> Trial:
        """A trial of it."""
        settings = self.checked(values)
        return Trial(number, self.name, self.trainable, self.scheme, settings, dict(budget), seed, self.ranks_from)


@dataclass(frozen=True)
class SweepPlan:
    """A checked config of a sweep.

    Attributes:
        config: without the `sweep` block.
        settings: that block.
        methods: in its order.
        budgets: limits by cost, in its order.
    """

    config: Config
    settings: SweepSettings
    methods: tuple[Method, ...]
    budgets: tuple[Mapping[str, Bound], ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices on which every trial's network is timed: those that a budget limits or Optuna goes by."""
        limited = [device for budget in self.budgets for device in limited_devices(budget)]
        directions = () if self.settings.optuna is None else self.settings.optuna.directions
        aimed = [device for name in directions if (device := timed_device(name)) is not None]
        return tuple(dict.fromkeys([*limited, *aimed]))

    def config_for(self, scheme: str, budget: Mapping[str, Bound], ranks_from: str = "search") -> Config:
        """The config of a search for ranks under a scheme and a budget."""
        base = self.config.search.model_dump(mode="json", serialize_as_any=True)
        if ranks_from != "search":
            shared = {key: value for key, value in base.items() if key in SearchSettings.model_fields}
            base = {**shared, "method": ranks_from}
        raw = self.config.model_dump(mode="json", serialize_as_any=True)
        return check_config({**raw, "search": {**base, "scheme": scheme, "budget": dict(budget)}}, "config")

    @contextmanager
    def keys(self, budget: Mapping[str, Bound]) -> Iterator[None]:
        """Has errors that name `search.budget` name the budget of the sweep."""
        try:
            yield
        except ConfigError as error:
            if not error.key.startswith("search.budget"):
                raise
            number = list(self.budgets).index(budget)
            raise ConfigError(f"sweep.budgets.{number}", error.message) from None


def plan_sweep(raw: Mapping[str, Any], source: str) -> SweepPlan:
    """Checks a sweep's config as far as the config alone tells.

    Args:
        raw: as it was read.
        source: what to call it in messages.

    Raises:
        ConfigError: the first mistake.
    """
    block = expand(raw.get("sweep"), "sweep")
    if not isinstance(block, dict):
        raise ConfigError(
            f"{source}: sweep", "is missing; a sweep needs `sweep: {methods: {fine_tuning: {}}, budgets: [0.5]}`"
        )
    config = check_config({name: one for name, one in raw.items() if name != "sweep"}, source)
    if config.metric != Config.model_fields["metric"].default:
        raise ConfigError("metric", "a sweep's trials are judged by accuracy; leave it out")
    settings: SweepSettings = validated(SweepSettings, block, "sweep.")
    methods = tuple(_method(name, own or {}, settings, config) for name, own in settings.methods.items())
    for number, value in enumerate(settings.budgets):
        _check_budget(value, number, config)
    budgets = tuple(_limits(value, number, config) for number, value in enumerate(settings.budgets))
    for name in () if settings.optuna is None else settings.optuna.directions:
        if device := timed_device(name):
            device_named(devices_of(config.devices), device, f"sweep.optuna.directions.{name}")
    _check_whole(settings, methods, budgets)
    return SweepPlan(config, settings, methods, budgets)


def _method(name: str, own: Mapping[str, Any], settings: SweepSettings, config: Config) -> Method:
    key = f"sweep.methods.{name}"
    trainable = str(own.get("method", name))
    registered = trainables().get(trainable, f"{key}.method" if "method" in own else key)
    scheme = str(own.get("scheme", config.search.scheme))
    schemes().get(scheme, f"{key}.scheme")
    source = str(own.get("ranks_from", settings.ranks_from))
    if "ranks_from" in own and not registered.needs_ranks:
        raise ConfigError(f"{key}.ranks_from", f"{trainable} finds its ranks itself; leave it out")
    training = {one: value for one, value in own.items() if one not in _OWN_KEYS}
    method = Method(
        name, trainable, scheme, source if registered.needs_ranks else None, training, ranges_in(training, key)
    )
    _check_ranges(method)
    if config.model.new_classes is not None and _distils(training):
        raise ConfigError(f"{key}.distillation", "the network does not know the new classes and cannot teach them")
    return method


def _distils(settings: Mapping[str, Any]) -> bool:
    """Whether a block, or one within it, learns from the dense network."""
    return any(
        bool(value) if name == "distillation" else isinstance(value, Mapping) and _distils(value)
        for name, value in settings.items()
    )


def _check_ranges(method: Method) -> None:
    """The training method takes every end of every range."""
    first = {name: one.extremes[0] for name, one in method.ranges.items()}
    method.checked(first)
    for name, one in method.ranges.items():
        for value in one.extremes[1:]:
            method.checked({**first, name: value})


def _check_budget(value: Any, number: int, config: Config) -> None:
    if not isinstance(value, Mapping | list | tuple) and len(config.search.budget) > 1:
        limited = ", ".join(f"{cost}: ..." for cost in config.search.budget)
        raise ConfigError(
            f"sweep.budgets.{number}",
            f"is one number, but search.budget has {len(config.search.budget)} limits; write {{{limited}}}",
        )


def _limits(value: Any, number: int, config: Config) -> Mapping[str, Bound]:
    """A budget in the flat form."""
    given = value if isinstance(value, Mapping | list | tuple) else dict.fromkeys(config.search.budget, value)
    given = list(given) if isinstance(given, tuple) else given
    base = config.search.model_dump(mode="json", serialize_as_any=True)
    try:
        search = validated(search_methods().get(config.search.method, "search").settings, {**base, "budget": given}, "")
    except ConfigError as error:
        raise ConfigError(f"sweep.budgets.{number}{error.key.removeprefix('budget')}", error.message) from None
    for name, bound in search.budget.items():
        cost, key = limit_of(name, bound, 1).cost, f"sweep.budgets.{number}.{name}"
        device = limited_device(cost)
        if device is not None:
            device_named(devices_of(config.devices), device, key)
        elif cost not in COST_NAMES:
            raise ConfigError(key, f"unknown cost{nearest(cost, [*COST_NAMES, 'latency', 'throughput'])}")
    budget: Mapping[str, Bound] = search.budget
    return budget


def _check_whole(
    settings: SweepSettings, methods: tuple[Method, ...], budgets: tuple[Mapping[str, Bound], ...]
) -> None:
    texts = [budget_text(budget) for budget in budgets]
    for number, text in enumerate(texts):
        if text in texts[:number]:
            raise ConfigError(f"sweep.budgets.{number}", f"{text} stands twice")
    ranged = any(method.ranges for method in methods)
    if settings.optuna is not None and len(settings.seeds) > 1:
        raise ConfigError("sweep.seeds", "Optuna's trials have one seed; give one, or leave out sweep.optuna")
    if settings.optuna is not None and not ranged and len(methods) == len(budgets) == 1:
        raise ConfigError("sweep.optuna", "there is nothing to choose: give ranges in sweep.methods, or more budgets")
    if settings.asha is not None and not ranged:
        raise ConfigError("sweep.asha", "trials compete within a method and a budget, and there each would be alone")
