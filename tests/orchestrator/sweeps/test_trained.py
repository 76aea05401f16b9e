"""A trial's network is built again from its files, and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator import api
from orchestrator.export import export_trial
from orchestrator.sweeps.directory import SweepDirectory
from orchestrator.sweeps.material import Material
from orchestrator.sweeps.preparing import prepare_sweep
from orchestrator.sweeps.proposals import grid_of
from orchestrator.sweeps.settings import plan_sweep
from orchestrator.sweeps.trials import Trial
from orchestrator.sweeps.work import TrialWork
from search_spaces.errors import ConfigError
from tests.orchestrator.sweeps.conftest import QUICK, sweep_config
from workers.training.sgd import evaluate

METHODS = {"less": {"selection_epochs": 1, "epochs": 1, **QUICK}, "lc": {"fine_tuning": {"epochs": 0}}}


@pytest.fixture(scope="module")
def trained(digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Material, list[Trial]]:
    """A sweep of which the first trial was trained, without Ray."""
    raw = sweep_config(digits_checkpoint, methods=METHODS)
    prepared = prepare_sweep(plan_sweep(raw, "config"))
    location = str(tmp_path_factory.mktemp("sweeps") / "sweep")
    directory = SweepDirectory.create(location, raw, None, {})
    trials = grid_of(prepared.plan)
    for trial in trials:
        directory.propose(trial)
    work = TrialWork(trials[0], prepared.material, None, directory.trials)
    while not work.epoch()["done"]:
        pass
    return location, prepared.material, trials


def test_it_is_as_accurate_as_the_trial_was(trained: tuple[str, Material, list[Trial]]) -> None:
    location, material, trials = trained
    network = api.load_trained(location, trials[0].name)
    directory = SweepDirectory.open(location)
    result = directory.result(trials[0], directory.trials)
    assert result is not None
    assert result["structure"]["filters"], "no filter was removed: this shows little"
    assert evaluate(network, material.held_out)[0] == pytest.approx(result["accuracy"])
    dense = sum(parameter.numel() for parameter in material.network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) < 0.6 * dense


def test_it_is_exported_and_runs_without_the_project(
    trained: tuple[str, Material, list[Trial]], tmp_path: Path
) -> None:
    location, _, trials = trained
    file = export_trial(location, trials[0].name, "torch-export", tmp_path / "network.pt2")
    images = torch.zeros(3, 1, 8, 8)
    exported = torch.export.load(file).module()(images)
    torch.testing.assert_close(exported, api.load_trained(location, trials[0].name)(images), rtol=1e-4, atol=1e-4)


def test_other_trials_are_refused(trained: tuple[str, Material, list[Trial]]) -> None:
    location, _, trials = trained
    with pytest.raises(ConfigError, match=r"^--trial: 0001-lc-parameters0\.5-s0 is unfinished; take another"):
        api.load_trained(location, trials[1].name)
    with pytest.raises(ConfigError, match=r"^--trial: .* has no trial '0000-les'; its trials\.parquet lists them"):
        api.load_trained(location, "0000-les")
