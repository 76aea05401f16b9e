"""Optuna's proposals: as many as wanted, none twice, and the study follows from the sweep's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.sweeps.proposals import OptunaStudy
from orchestrator.sweeps.settings import SweepPlan, plan_sweep
from orchestrator.sweeps.trials import Trial
from tests.orchestrator.sweeps.conftest import sweep_config

RANGED = {"fine_tuning": {"learning_rate": {"loguniform": [1e-4, 1]}}, "lc": {}}


def plan(**optuna_settings: Any) -> SweepPlan:
    sweep = {"methods": RANGED, "budgets": [0.5, 0.6], "optuna": {"trials": 6, **optuna_settings}}
    return plan_sweep(sweep_config(Path("unread.safetensors"), **sweep), "config")


def row(trial: Trial, status: str = "finished") -> dict[str, Any]:
    return {"status": status, "accuracy": 0.5 + 0.01 * trial.number, "compression_macs": 0.3}


def all_of(study: OptunaStudy, begun: dict[str, dict[str, Any]]) -> list[Trial]:
    trials = []
    while (trial := study.next()) is not None:
        begun[trial.name] = row(trial)
        study.told(trial, begun[trial.name])
        trials.append(trial)
    return trials


def states(database: Path) -> list[str]:
    study = optuna.load_study(storage=f"sqlite:///{database}", study_name="sweep")
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_as_many_as_wanted_then_more_none_twice(tmp_path: Path, sampler: str) -> None:
    rows: dict[str, dict[str, Any]] = {}
    database = tmp_path / "study.db"
    first = all_of(OptunaStudy(plan(sampler=sampler), database, 6, [], rows), rows)
    more = all_of(OptunaStudy(plan(sampler=sampler), database, 9, first, rows), rows)
    assert (len(first), len(more)) == (6, 3)
    definitions = [str(trial.definition) for trial in (*first, *more)]
    assert len(set(definitions)) == 9
    assert states(database).count("COMPLETE") >= 9


def test_an_interrupted_study_proposes_what_it_would_have(tmp_path: Path) -> None:
    straight: dict[str, dict[str, Any]] = {}
    whole = all_of(OptunaStudy(plan(), tmp_path / "a.db", 6, [], straight), straight)
    begun: list[Trial] = []
    rows: dict[str, dict[str, Any]] = {}
    for wanted in range(1, 7):
        begun += all_of(OptunaStudy(plan(), tmp_path / "b.db", wanted, begun, rows), rows)
    assert [trial.definition for trial in begun] == [trial.definition for trial in whole]


def test_what_was_cut_short_is_failed_and_what_ended_unheard_is_told(tmp_path: Path) -> None:
    database = tmp_path / "study.db"
    study = OptunaStudy(plan(), database, 6, [], {})
    unwritten, unheard, running = (study.next() for _ in range(3))
    assert unwritten is not None
    assert unheard is not None
    assert running is not None
    OptunaStudy(plan(), database, 6, [unheard, running], {unheard.name: row(unheard)})
    assert states(database) == ["FAIL", "COMPLETE", "RUNNING"]


@pytest.mark.parametrize(
    "directions", [{"accuracy": "maximize"}, {"accuracy": "maximize", "compression_macs": "maximize"}]
)
def test_failed_and_stopped_trials_are_not_told_as_results(tmp_path: Path, directions: dict[str, str]) -> None:
    study = OptunaStudy(plan(directions=directions), tmp_path / "study.db", 3, [], {})
    for status in ("failed", "stopped", "finished"):
        trial = study.next()
        assert trial is not None
        study.told(trial, row(trial, status))
    assert states(tmp_path / "study.db") == ["FAIL", "PRUNED", "COMPLETE"]


def test_an_exhausted_space_ends(tmp_path: Path) -> None:
    sweep = {"methods": {"lc": {}}, "budgets": [0.5, 0.6], "optuna": {"trials": 9}}
    two = plan_sweep(sweep_config(Path("unread.safetensors"), **sweep), "config")
    rows: dict[str, dict[str, Any]] = {}
    assert len(all_of(OptunaStudy(two, tmp_path / "study.db", 9, [], rows), rows)) == 2
