"""A trial's work without Ray: it goes on exactly where its checkpoint was taken, and refuses one of another config."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from orchestrator.storage import Storage
from orchestrator.sweeps.preparing import PreparedSweep, prepare_sweep
from orchestrator.sweeps.proposals import grid_of
from orchestrator.sweeps.settings import plan_sweep
from orchestrator.sweeps.trials import Trial
from orchestrator.sweeps.work import TrialWork
from search_spaces.errors import ConfigError, TrialDivergedError
from tests.orchestrator.sweeps.conftest import QUICK, sweep_config

METHODS = {"lc": {"method": "fine_tuning", "epochs": 3, **QUICK}}


@pytest.fixture(scope="module")
def prepared(digits_checkpoint: Path) -> PreparedSweep:
    return prepare_sweep(plan_sweep(sweep_config(digits_checkpoint, methods=METHODS), "config"))


@pytest.fixture(scope="module")
def trial(prepared: PreparedSweep) -> Trial:
    return grid_of(prepared.plan)[0]


def begin(trial: Trial, prepared: PreparedSweep, place: Path, rank: int = 4) -> TrialWork:
    ranks = (rank,) * len(prepared.material.found.layers)
    return TrialWork(trial, prepared.material, ranks, Storage(str(place)))


def ended(place: Path, trial: Trial) -> dict[str, Any]:
    result = json.loads((place / trial.name / "result.json").read_text())
    for row in result["history"]:
        del row["seconds"]
    return dict(result)


def test_an_interrupted_trial_ends_as_an_undisturbed_one(prepared: PreparedSweep, trial: Trial, tmp_path: Path) -> None:
    straight = begin(trial, prepared, tmp_path / "straight")
    assert [straight.epoch()["done"] for _ in range(3)] == [False, False, True]
    for _ in range(3):  # every epoch in a process of its own, as far as memory goes
        begin(trial, prepared, tmp_path / "broken").epoch()
    assert ended(tmp_path / "straight", trial) == ended(tmp_path / "broken", trial)
    one, other = (
        safetensors.torch.load_file(tmp_path / name / trial.name / "model.safetensors")
        for name in ("straight", "broken")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "straight" / trial.name / "checkpoint.pt").exists()


def test_the_result_is_within_the_budget_and_says_what_it_costs(
    prepared: PreparedSweep, trial: Trial, tmp_path: Path
) -> None:
    work = begin(trial, prepared, tmp_path)
    while not work.epoch()["done"]:
        pass
    result = ended(tmp_path, trial)
    weights = safetensors.torch.load_file(tmp_path / trial.name / "model.safetensors")
    layers = sum(tensor.numel() for name, tensor in weights.items() if tensor.dim() > 1)
    assert result["compression"]["parameters"] >= 0.5
    assert result["costs"]["parameters"] == pytest.approx(layers, rel=0.05)  # biases are counted too
    assert result["status"] == "finished"
    assert 0 <= result["accuracy_before"] <= 1
    assert result["accuracy"] == result["history"][-1]["accuracy"]


@pytest.mark.parametrize(
    ("change", "rank", "keys"),
    [({"seed": 5}, 4, "seed differ"), ({}, 3, "ranks differ"), ({"scheme": "spatial_svd"}, 4, "scheme differ")],
)
def test_a_checkpoint_of_another_config_is_refused(
    prepared: PreparedSweep, trial: Trial, tmp_path: Path, change: dict[str, Any], rank: int, keys: str
) -> None:
    begin(trial, prepared, tmp_path).epoch()
    (tmp_path / replace(trial, **change).name).mkdir(exist_ok=True)
    (tmp_path / trial.name / "checkpoint.pt").rename(tmp_path / replace(trial, **change).name / "checkpoint.pt")
    with pytest.raises(ConfigError, match=rf"checkpoint\.pt: is of another config: {keys}"):
        begin(replace(trial, **change), prepared, tmp_path, rank)


def test_other_settings_are_named_by_their_keys(prepared: PreparedSweep, trial: Trial, tmp_path: Path) -> None:
    begin(trial, prepared, tmp_path).epoch()
    other = replace(trial, settings={**trial.settings, "learning_rate": 0.5, "momentum": 0.5})
    with pytest.raises(ConfigError, match=r"settings\.learning_rate, settings\.momentum differ"):
        begin(other, prepared, tmp_path)


def test_a_checkpoint_that_holds_something_else_is_not_run(
    prepared: PreparedSweep, trial: Trial, tmp_path: Path
) -> None:
    (tmp_path / trial.name).mkdir()
    torch.save({"identity": Path("/")}, tmp_path / trial.name / "checkpoint.pt")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        begin(trial, prepared, tmp_path)


def test_a_trial_that_diverges_says_so(prepared: PreparedSweep, trial: Trial, tmp_path: Path) -> None:
    wild = replace(trial, settings={**trial.settings, "learning_rate": 1e30})
    work = begin(wild, prepared, tmp_path)
    with pytest.raises(TrialDivergedError, match="learning rate"):
        list(iter(lambda: work.epoch()["done"], True))


def test_transfer_masks_move_the_network_to_other_classes(digits_checkpoint: Path, tmp_path: Path) -> None:
    methods = {"transfer_masks": {"selection_epochs": 1, "epochs": 1, "remove_filters": False, **QUICK}}
    raw = sweep_config(digits_checkpoint, methods=methods)
    raw["model"]["new_classes"] = 12
    prepared = prepare_sweep(plan_sweep(raw, "config"))
    (trial,) = grid_of(prepared.plan)
    work = TrialWork(trial, prepared.material, None, Storage(str(tmp_path)))
    while not work.epoch()["done"]:
        pass
    weights = safetensors.torch.load_file(tmp_path / trial.name / "model.safetensors")
    assert (12,) in {tuple(tensor.shape) for tensor in weights.values()}
    assert ended(tmp_path, trial)["compression"]["parameters"] >= 0.5
