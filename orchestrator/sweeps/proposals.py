"""Which trial comes next: the grid's next one, or what Optuna proposes after what it was told."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna

from orchestrator.sweeps.ranges import grid
from orchestrator.sweeps.settings import SweepPlan
from orchestrator.sweeps.trials import Trial, budget_text
from search_spaces.errors import ConfigError

__all__ = ["Grid", "OptunaStudy", "Proposals", "Row", "grid_of"]

Row = Mapping[str, Any]
"""What a trial came to: a row of `trials.parquet`."""

_REPEATS = 100
"""Proposals in a row that were trained already, after which a search space counts as exhausted."""


class Proposals(Protocol):
    """Where trials come from."""

    def next(self) -> Trial | None:
        """A trial that was never begun; None when there are no more."""

    def told(self, trial: Trial, row: Row) -> None:
        """What became of one: `finished`, `stopped` or `failed`."""


def grid_of(plan: SweepPlan) -> list[Trial]:
    """All trials of a sweep without Optuna: budget by budget, seed by seed, method by method, choice by choice."""
    settings = [
        (method, values, budget, seed)
        for budget in plan.budgets
        for seed in plan.settings.seeds
        for method in plan.methods
        for values in grid(method.ranges, method.key)
    ]
    return [
        method.trial(number, values, budget, seed) for number, (method, values, budget, seed) in enumerate(settings)
    ]


class Grid:
    """The grid in its order.

    Args:
        trials: all of them.
        begun: names of those that were begun before.
    """

    def __init__(self, trials: Sequence[Trial], begun: Sequence[str]) -> None:
        self._waiting = [trial for trial in trials if trial.name not in set(begun)]

    def next(self) -> Trial | None:
        """The next one."""
        return self._waiting.pop(0) if self._waiting else None

    def told(self, trial: Trial, row: Row) -> None:
        """A grid learns nothing."""


class OptunaStudy:
    """Optuna's proposals, in a study that optuna-dashboard opens.

    What a study holds follows from the sweep's own files: trials that have ended are told to it, proposals that were
    cut short before they were written down are failed in it. Every proposal has a sampler of its own, seeded by the
    sweep's seed and the proposal's number: a sweep that was interrupted goes on with other proposals than it began
    with, and on one trial at a time with those that it would have made.

    Args:
        plan: the sweep.
        database: SQLite file of the study.
        wanted: trials in all.
        begun: those begun before.
        rows: of those of them that have ended, by name.
    """

    def __init__(
        self, plan: SweepPlan, database: Path, wanted: int, begun: Sequence[Trial], rows: Mapping[str, Row]
    ) -> None:
        assert plan.settings.optuna is not None
        self._plan, self._wanted, self._settings = plan, wanted, plan.settings.optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=f"sqlite:///{database}",
            study_name="sweep",
            directions=list(self._settings.directions.values()),
            load_if_exists=True,
        )
        if len(self._settings.directions) > 1:  # names in the dashboard; Optuna asks for several objectives
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.set_metric_names(list(self._settings.directions))
        self._begun = {trial.number: trial for trial in begun}
        self._rows = {_key(trial): rows.get(trial.name) for trial in begun}
        self._catch_up(rows)

    def next(self) -> Trial | None:
        """What Optuna proposes; None once there are as many trials as wanted, or nothing new can be proposed."""
        if len(self._begun) >= self._wanted:
            return None
        for _ in range(_REPEATS):
            proposed = self._ask()
            if _key(proposed) not in self._rows:
                self._begun[proposed.number] = proposed
                self._rows[_key(proposed)] = None
                return proposed
            self._tell(proposed.number, self._rows[_key(proposed)])
        return None

    def told(self, trial: Trial, row: Row) -> None:
        """Tells the study the objectives, or that there are none."""
        self._rows[_key(trial)] = row
        self._tell(trial.number, row)

    def _catch_up(self, rows: Mapping[str, Row]) -> None:
        for frozen in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            trial = self._begun.get(frozen.number)
            if trial is None or trial.name in rows:
                self._tell(frozen.number, None if trial is None else rows[trial.name])

    def _ask(self) -> Trial:
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = _SAMPLERS[self._settings.sampler](_mixed(self._plan.config.search.seed, number))
        asked = self._study.ask()
        methods = {method.name: method for method in self._plan.methods}
        budgets = {budget_text(budget): budget for budget in self._plan.budgets}
        method = methods[asked.suggest_categorical("method", list(methods))]
        budget = budgets[asked.suggest_categorical("budget", list(budgets))]
        values = {name: one.suggest(asked, f"{method.name}.{name}") for name, one in method.ranges.items()}
        return method.trial(asked.number, values, budget, self._plan.settings.seeds[0])

    def _tell(self, number: int, row: Row | None) -> None:
        values = None if row is None else [_number(row.get(name)) for name in self._settings.directions]
        if row is not None and row["status"] == "stopped":
            self._study.tell(number, state=optuna.trial.TrialState.PRUNED)
        elif values is None or row is None or row["status"] != "finished" or not all(map(math.isfinite, values)):
            self._study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(number, values)


_SAMPLERS: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def check_database(database: Path | None) -> Path:
    """The study's file.

    Raises:
        ConfigError: the run directory is no local folder.
    """
    if database is None:
        raise ConfigError(
            "--run-dir",
            "Optuna keeps its study in a SQLite file, which needs a local folder; give one, and "
            "sweep.storage for the checkpoints",
        )
    return database.absolute()


def _key(trial: Trial) -> str:
    return json.dumps(trial.definition, sort_keys=True)


def _mixed(seed: int, number: int) -> int:
    """A seed that depends on both; neighbouring numbers' have nothing in common for Optuna's generators."""
    return (seed * 1_000_003 + number) % 2**32


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
