"""Trained networks on a made-up device: timed whole, by what they are, and never twice."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hardware.run_memory import RunMemory
from orchestrator.storage import Storage
from orchestrator.sweeps.preparing import PreparedSweep, prepare_sweep
from orchestrator.sweeps.proposals import grid_of
from orchestrator.sweeps.settings import plan_sweep
from orchestrator.sweeps.timed_budgets import budget_key, time_budgets
from orchestrator.sweeps.trained import trained_network
from orchestrator.sweeps.trial_times import TrialTimes, awaits_timing
from orchestrator.sweeps.trials import Trial
from orchestrator.sweeps.work import TrialWork
from search_spaces.errors import MeasurementError
from tests.orchestrator.hardware.made_up_measuring import PaddingDevice
from tests.orchestrator.sweeps.conftest import QUICK, timed_config
from workers.timing.contract import Measurement, Workload
from workers.timing.workloads import NetworkWorkload

SHORT = {"selection_epochs": 1, "epochs": 0, **QUICK}
BUDGETS = [{"latency": {"near": 0.25}}, {"macs": 0.5}]


class Trials:
    """Two trials of LeSS: under a latency ranks alone are lowered, under multiply-accumulates filters are removed."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        raw = timed_config(checkpoint, methods={"less": SHORT}, budgets=BUDGETS)
        self.device = PaddingDevice()
        self.memory = RunMemory(Storage(str(folder / "sweep")), self.measure)
        prepared: PreparedSweep = prepare_sweep(plan_sweep(raw, "config"))
        timed = time_budgets(prepared.plan, prepared.base, self.memory)
        self.prepared = replace(prepared, material=replace(prepared.material, timed=timed))
        self.place = Storage(str(folder / "trials"))
        self.latency, self.macs = (self.trained(trial) for trial in grid_of(prepared.plan))

    def trained(self, trial: Trial) -> tuple[Trial, dict[str, Any]]:
        work = TrialWork(trial, self.prepared.material, None, self.place)
        while not work.epoch()["done"]:
            pass
        return trial, json.loads(self.place.read(f"{trial.name}/result.json"))

    def measure(self, wanted: Mapping[str, Sequence[Workload]]) -> dict[str, list[Measurement]]:
        if self.device.failing == ("lost",):
            raise MeasurementError("near", "its actor was lost")
        return self.device.measure_all(wanted)

    @property
    def times(self) -> TrialTimes:
        return TrialTimes(self.prepared.base, self.prepared.material, self.place, ("near",), self.memory)


@pytest.fixture(scope="module")
def trials(digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(digits_checkpoint, tmp_path_factory.mktemp("times"))


@pytest.fixture(autouse=True)
def _healthy(trials: Trials) -> None:
    trials.device.failing = ()


def own_subject(trials: Trials) -> str:
    """How the network of the trial under a latency is called as a workload."""
    device = PaddingDevice()
    with tempfile.TemporaryDirectory() as folder:
        replace(trials.times, memory=RunMemory(Storage(folder), device.measure_all)).of(*trials.latency)
    return device.asked[-1][1].subject


def test_the_network_of_a_trial_is_measured_and_predicted(trials: Trials) -> None:
    trial, result = trials.latency
    (model,) = trials.prepared.material.timed[budget_key(trial.scheme, trial.budget)].models
    found = trials.times.of(trial, result)["near"]
    assert found["reason"] == ""
    assert found["dense_ms"] == model.dense_ms
    assert found["limit_ms"] == pytest.approx(0.75 * model.dense_ms)
    assert found["measured_ms"] <= found["limit_ms"] * 1.002
    assert found["predicted_ms"] == pytest.approx(found["measured_ms"], rel=0.05)
    assert found["low_ms"] < found["measured_ms"] < found["high_ms"]


def test_where_filters_were_removed_the_thin_network_itself_is_measured(trials: Trials) -> None:
    trial, result = trials.macs
    assert result["structure"]["filters"]
    found = trials.times.of(trial, result)["near"]
    network = trained_network(trial, trials.prepared.material, result, trials.place)
    assert found["measured_ms"] == pytest.approx(PaddingDevice().network_ms(NetworkWorkload(network, (1, 8, 8), 4)))
    assert (found["limit_ms"], found["predicted_ms"]) == (None, None)


def test_nothing_is_measured_twice(trials: Trials) -> None:
    first = trials.times.of(*trials.latency)
    asked = len(trials.device.asked)
    assert trials.times.of(*trials.latency) == first
    assert len(trials.device.asked) == asked


def test_a_noisy_device_leaves_no_number_and_says_why(trials: Trials, tmp_path: Path) -> None:
    trial, result = trials.latency
    noisy = replace(trials.times, memory=RunMemory(Storage(str(tmp_path)), trials.measure))
    trials.device.failing = [own_subject(trials)]
    found = noisy.of(trial, result)["near"]
    assert found["measured_ms"] is None
    assert found["reason"] == "near: noisy: too many blocks were disturbed"
    assert not awaits_timing({**result, "latency": {"near": found}}, ["near"])


def test_a_lost_device_is_asked_again_by_a_resumed_sweep(trials: Trials, tmp_path: Path) -> None:
    trial, result = trials.latency
    lost = replace(trials.times, memory=RunMemory(Storage(str(tmp_path)), trials.measure))
    trials.device.failing = ("lost",)
    found = lost.of(trial, result)["near"]
    assert found["reason"] == "lost: near: its actor was lost"
    assert awaits_timing({**result, "latency": {"near": found}}, ["near"])


def test_only_what_has_finished_waits_for_a_device(trials: Trials) -> None:
    _, result = trials.latency
    assert awaits_timing(result, ["near"])
    assert not awaits_timing(result, [])
    assert not awaits_timing(None, ["near"])
    assert not awaits_timing({"status": "failed", "reason": "diverged"}, ["near"])
