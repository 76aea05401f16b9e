"""Budgets on devices: timed once before anything trains, met by every method, and refused in one line where they are
not. The device is made up: its times follow from the real workloads that it is given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hardware.run_memory import RunMemory
from orchestrator.storage import Storage
from orchestrator.sweeps.material import Material
from orchestrator.sweeps.preparing import PreparedSweep, prepare_sweep, try_method
from orchestrator.sweeps.proposals import grid_of
from orchestrator.sweeps.settings import plan_sweep
from orchestrator.sweeps.timed_budgets import budget_key, time_budgets, time_dense
from orchestrator.sweeps.trials import Trial
from orchestrator.sweeps.work import TrialWork
from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.latency import latency_name
from tests.orchestrator.hardware.made_up_measuring import PaddingDevice
from tests.orchestrator.sweeps.conftest import QUICK, timed_config
from workers.timing.workloads import network_workload

SHORT = {"selection_epochs": 1, "epochs": 0, **QUICK}
METHODS: dict[str, dict[str, Any]] = {
    "less": SHORT,
    "transfer_masks": SHORT,
    "haloc": {"scheme": "tucker2", **SHORT},
    "lc": {"training": {"steps": 1, **QUICK}, "fine_tuning": {"epochs": 0, **QUICK}},
    "ca": {"training": {"epochs": 1, **QUICK}, "fine_tuning": {"epochs": 0, **QUICK}},
    "bsr": {"training": {"epochs": 1, **QUICK}, "fine_tuning": {"epochs": 0, **QUICK}},
    "fine_tuning": {"epochs": 0, **QUICK},
}
BUDGETS = [{"latency": {"near": 0.25}}, {"throughput": {"near": "1.4x"}, "parameters": 0.3}]


def timed(prepared: PreparedSweep, folder: Path, device: PaddingDevice) -> Material:
    memory = RunMemory(Storage(str(folder)), device.measure_all)
    return replace(prepared.material, timed=time_budgets(prepared.plan, prepared.base, memory))


@pytest.fixture(scope="module")
def prepared(digits_checkpoint: Path) -> PreparedSweep:
    return prepare_sweep(plan_sweep(timed_config(digits_checkpoint, methods=METHODS, budgets=BUDGETS), "config"))


@pytest.fixture(scope="module")
def material(prepared: PreparedSweep, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return timed(prepared, tmp_path_factory.mktemp("timed"), PaddingDevice())


def trials_of(prepared: PreparedSweep, method: str) -> list[Trial]:
    return [trial for trial in grid_of(prepared.plan) if trial.method == method]


def result_of(folder: Path, trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / trial.name / "result.json").read_text())
    return found


def network_ms(prepared: PreparedSweep, result: dict[str, Any], scheme: Any) -> float:
    """What the device takes for a result's network."""
    layers = prepared.base.found.layers
    ranks = tuple(result["ranks"][layer.name] for layer in layers)
    network = network_workload(prepared.base.model, layers, (scheme,) * len(layers), ranks, (1, 8, 8), 4)
    return PaddingDevice().network_ms(network)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [0, 1])
def test_every_method_ends_within_the_limit_of_a_device(
    prepared: PreparedSweep, material: Material, tmp_path: Path, method: str, number: int
) -> None:
    trial = trials_of(prepared, method)[number]
    setup = material.setup(trial)
    ranks = setup.space.cheapest(latency_name("near")) if trial.ranks_from else None
    work = TrialWork(trial, material, ranks, Storage(str(tmp_path)))
    while not work.epoch()["done"]:
        pass
    result = result_of(tmp_path, trial)
    found = material.timed[budget_key(trial.scheme, trial.budget)]
    (model,) = found.models
    taken = network_ms(prepared, result, setup.schemes[0])
    assert taken <= model.limit_ms * 1.002
    assert taken >= model.limit_ms * 0.8
    assert result["compression"]["latency@near"] >= dict(found.budget.targets)["latency@near"]
    if number == 1:
        assert model.limit_ms == pytest.approx(model.dense_ms / 1.4)
        assert result["compression"]["parameters"] >= 0.3
    offered = [{None, *layer.offered} for layer in setup.space.layers]
    chosen = [result["ranks"][layer.name] for layer in setup.space.layers]
    assert all(rank in ranks for rank, ranks in zip(chosen, offered, strict=True)), "a rank that was never timed"
    assert not result["structure"].get("filters")


def test_candidates_are_those_of_the_devices_step(prepared: PreparedSweep, material: Material) -> None:
    for method in ("haloc", "less"):
        space = material.setup(trials_of(prepared, method)[0]).space
        assert any(len(layer.offered) > 1 for layer in space.layers)
        for index, layer in enumerate(space.layers):
            times = [space.costs["latency@near"].of(index, rank) for rank in (*layer.offered, None)]
            assert times == sorted(set(times)), "a higher rank is as fast"
            highest = max(layer.offered, default=0)
            assert all(rank % 8 == 0 or rank == highest or highest < 8 for rank in layer.offered)


def test_devices_are_timed_once_for_all_trials_and_never_again(prepared: PreparedSweep, tmp_path: Path) -> None:
    device = PaddingDevice()
    first = timed(prepared, tmp_path, device)
    asked = [(name, one.kind, one.subject) for name, one in device.asked]
    assert len(set(asked)) == len(asked)
    silent = PaddingDevice()
    again = timed(prepared, tmp_path, silent)
    assert not silent.asked
    assert {key: one.budget for key, one in again.timed.items()} == {
        key: one.budget for key, one in first.timed.items()
    }


def test_what_is_predicted_to_fit_near_the_limit_was_measured_to_fit(material: Material) -> None:
    for found in material.timed.values():
        (model,) = found.models
        proposed = [ranks for ranks, one in model.networks.items() if one.role == "proposed"]
        assert proposed
        assert all(model.within(ranks) for ranks in proposed if found.budget.gap(found.space, ranks) >= 0)


def test_ranks_that_were_measured_to_fit_are_not_changed(prepared: PreparedSweep, material: Material) -> None:
    trial = trials_of(prepared, "fine_tuning")[0]
    names = len(prepared.base.found.layers)
    dense = (None,) * names
    assert material.setup(trial, dense, ranks_stand=True).ranks_stand
    assert not material.setup(trial, dense).ranks_stand
    never_timed = (3,) * names
    assert not material.setup(trial, never_timed, ranks_stand=True).ranks_stand


def start(prepared: PreparedSweep, folder: Path, device: PaddingDevice) -> None:
    found = timed(prepared, folder, device)
    for method in prepared.plan.methods:
        try_method(prepared.plan, method, found, timed=True)


def refusal(checkpoint: Path, folder: Path, device: PaddingDevice | None = None, **sweep: Any) -> str:
    """The line that a sweep ends with once its devices are timed."""
    prepared = prepare_sweep(plan_sweep(timed_config(checkpoint, **sweep), "config"))
    with pytest.raises((ConfigError, MeasurementError)) as error:
        start(prepared, folder, device or PaddingDevice())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_limit_out_of_reach_says_the_least_that_can_be_reached(digits_checkpoint: Path, tmp_path: Path) -> None:
    line = refusal(digits_checkpoint, tmp_path, budgets=[0.2, {"latency_ms": {"near": 0.001}}])
    assert line.startswith("sweep.budgets.1: no rank vector meets 0.001 ms; the closest that can be reached is 1.")


def test_a_limit_that_the_dense_network_meets_is_refused(digits_checkpoint: Path, tmp_path: Path) -> None:
    line = refusal(digits_checkpoint, tmp_path, budgets=[{"latency": {"near": "5 s"}}])
    assert line.startswith("sweep.budgets.0: the dense network already takes 7.")


def test_filters_alone_cannot_meet_a_latency(digits_checkpoint: Path, tmp_path: Path) -> None:
    line = refusal(digits_checkpoint, tmp_path, methods={"less": {**SHORT, "learn": "filters"}}, budgets=[0.2])
    assert line.startswith("sweep.methods.less.learn: filters alone cannot meet latency@near: devices were timed at")


def test_a_device_that_measures_nothing_is_named(digits_checkpoint: Path, tmp_path: Path) -> None:
    line = refusal(digits_checkpoint, tmp_path, PaddingDevice(failing=["conv", "linear"]), budgets=[0.2])
    assert line.startswith("near: nothing could be measured: noisy: too many blocks were disturbed")


def test_a_mistake_of_another_kind_does_not_wait_for_devices(digits_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"^sweep\.methods\.haloc\.scheme: haloc factorises by tucker2"):
        prepare_sweep(plan_sweep(timed_config(digits_checkpoint, methods={"haloc": SHORT}), "config"))


def test_two_devices_limit_together(digits_checkpoint: Path, tmp_path: Path) -> None:
    budgets = [{"latency": {"near": 0.2, "far": 0.1}}]
    raw = timed_config(digits_checkpoint, methods={"less": SHORT}, budgets=budgets)
    prepared = prepare_sweep(plan_sweep(raw, "config"))
    found = timed(prepared, tmp_path, PaddingDevice(slow=("far", "linear")))
    (trial,) = grid_of(prepared.plan)
    work = TrialWork(trial, found, None, Storage(str(tmp_path)))
    while not work.epoch()["done"]:
        pass
    saved = result_of(tmp_path, trial)["compression"]
    targets = dict(found.timed[budget_key(trial.scheme, trial.budget)].budget.targets)
    assert set(targets) == {"latency@near", "latency@far"}
    assert all(saved[cost] >= target for cost, target in targets.items())


def test_the_dense_network_must_be_timed_where_optuna_goes_by_a_device(prepared: PreparedSweep, tmp_path: Path) -> None:
    memory = RunMemory(Storage(str(tmp_path)), PaddingDevice(failing=["8x8"]).measure_all)
    with pytest.raises(MeasurementError, match="far: the dense network could not be measured"):
        time_dense(prepared.base, "far", memory)
