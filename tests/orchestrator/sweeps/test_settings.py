"""The `sweep` block: what it asks for, and every mistake in it by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.sweeps.proposals import grid_of
from orchestrator.sweeps.settings import SweepPlan, plan_sweep
from search_spaces.errors import ConfigError
from tests.orchestrator.sweeps.conftest import sweep_config


def plan(**sweep: Any) -> SweepPlan:
    return plan_sweep(sweep_config(Path("unread.safetensors"), **sweep), "config")


def test_a_grid_has_every_method_budget_seed_and_choice() -> None:
    methods = {"lc": {}, "low": {"method": "fine_tuning", "epochs": {"choice": [1, 2]}, "ranks_from": "uniform"}}
    trials = grid_of(plan(methods=methods, budgets=[0.5, {"macs": 0.4}], seeds=[3, 1]))
    assert len(trials) == 2 * 2 * (1 + 2)
    assert [trial.name for trial in trials][:3] == [
        "0000-lc-parameters0.5-s3",
        "0001-low-parameters0.5-s3",
        "0002-low-parameters0.5-s3",
    ]
    assert trials[-1].name == "0011-low-macs0.4-s1"
    assert [trial.settings["epochs"] for trial in trials if trial.method == "low"] == [1, 2] * 4
    assert {trial.ranks_from for trial in trials} == {None, "uniform"}


def test_budgets_limit_devices_as_a_search_does_and_trials_are_named_by_them() -> None:
    budgets = [
        {"latency": {"cpu": "10 ms"}},
        {"throughput": {"cpu": "2x"}, "macs": 0.4},
        {"throughput": {"cpu": "500/s"}},
    ]
    made = plan(budgets=budgets)
    assert [trial.name for trial in grid_of(made)] == [
        "0000-fine_tuning-latency@cpu10ms-s0",
        "0001-fine_tuning-throughput@cpu2x+macs0.4-s0",
        "0002-fine_tuning-throughput@cpu500s-s0",
    ]
    assert made.devices == ("cpu",)
    assert plan().devices == ()
    aimed = plan(budgets=[0.5, 0.6], optuna={"trials": 2, "directions": {"latency_ms@cpu": "minimize"}})
    assert aimed.devices == ("cpu",)


def test_defaults_are_written_out() -> None:
    (trial,) = grid_of(plan(methods={"fine_tuning": None}))
    assert trial.settings["momentum"] == 0.9
    assert (trial.scheme, trial.ranks_from) == ("channel_svd", "search")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"methods": {}}, r"^sweep\.methods: "),
        ({"methods": {"bsrr": {}}}, r"^sweep\.methods\.bsrr: unknown training method 'bsrr'; did you mean 'bsr'\?"),
        ({"methods": {"a": {"method": "hallo"}}}, r"^sweep\.methods\.a\.method: unknown .*'haloc'"),
        ({"methods": {"fine_tuning": {"epoch": 3}}}, r"^sweep\.methods\.fine_tuning\.epoch: .*did you mean 'epochs'"),
        (
            {"methods": {"fine_tuning": {"learning_rat": {"uniform": [0.1, 1]}}}},
            r"^sweep\.methods\.fine_tuning\.learning_rat: unknown key; did you mean 'learning_rate'",
        ),
        ({"methods": {"fine_tuning": {"momentum": {"choice": [0.5, 1.5]}}}}, r"^sweep\.methods\.fine_tuning\.momentum"),
        ({"methods": {"fine_tuning": {"scheme": "chanel_svd"}}}, r"fine_tuning\.scheme: unknown scheme .*channel_svd"),
        ({"methods": {"lc": {"ranks_from": "alds"}}}, r"^sweep\.methods\.lc\.ranks_from: lc finds its ranks itself"),
        ({"methods": {"a/b": {"method": "lc"}}}, r"cannot name a folder"),
        ({"budgets": []}, r"^sweep\.budgets"),
        ({"budgets": [0.5, 0.50]}, r"^sweep\.budgets\.1: parameters 0\.5 stands twice"),
        ({"budgets": [1.5]}, r"^sweep\.budgets\.0"),
        ({"budgets": [{"colour": 0.5}]}, r"^sweep\.budgets\.0\.colour: unknown cost"),
        (
            {"budgets": [{"latency_ms": {"cpu0": 4}}]},
            r"^sweep\.budgets\.0\.latency@cpu0: unknown device 'cpu0'; `devices:` has cpu$",
        ),
        (
            {"budgets": [{"throughput": {"cpu": 2}}]},
            r"^sweep\.budgets\.0: throughput@cpu = 2 is no limit; write",
        ),
        ({"budgets": [{"latency": 4}]}, r"^sweep\.budgets\.0: latency needs the device that it is measured on"),
        (
            {"budgets": [{"latency": {"cpu": "4 ms"}}, {"latency": {"cpu": "4 ms"}}]},
            r"^sweep\.budgets\.1: latency@cpu 4 ms stands twice",
        ),
        (
            {"optuna": {"trials": 4, "directions": {"latency_ms@gpu": "minimize"}}, "budgets": [0.5, 0.6]},
            r"^sweep\.optuna\.directions\.latency_ms@gpu: unknown device 'gpu'; `devices:` has cpu$",
        ),
        ({"seeds": [1, 1]}, r"^sweep\.seeds: a seed stands twice"),
        ({"seed": 1}, r"^sweep\.seed: unknown key; did you mean 'seeds'\?"),
        (
            {"optuna": {"trials": 4, "directions": {"acuracy": "maximize"}}},
            r"nothing that Optuna can optimise; did you",
        ),
        ({"optuna": {"trials": 4, "directions": {"test_accuracy": "maximize"}}}, r"test data, which choose nothing"),
        ({"optuna": {"trials": 4, "directions": {"accuracy": "up"}}}, r"^sweep\.optuna\.directions\.accuracy"),
        ({"optuna": {"trials": 4}}, r"^sweep\.optuna: there is nothing to choose"),
        ({"optuna": {"trials": 4}, "budgets": [0.5, 0.6], "seeds": [1, 2]}, r"^sweep\.seeds: Optuna's trials have one"),
        ({"asha": {}}, r"^sweep\.asha: trials compete within a method"),
        ({"resources": {"gpus": -1}}, r"^sweep\.resources\.gpus"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        plan(**sweep)
    assert "\n" not in str(error.value)


def test_a_config_without_the_block_is_told_what_to_write() -> None:
    raw = sweep_config(Path("unread.safetensors"))
    del raw["sweep"]
    with pytest.raises(ConfigError, match=r"^config: sweep: is missing; a sweep needs"):
        plan_sweep(raw, "config")


def test_what_an_untrained_last_layer_cannot_teach_is_refused() -> None:
    raw = sweep_config(Path("unread.safetensors"), methods={"bsr": {"training": {"distillation": {"choice": [0, 1]}}}})
    raw["model"]["new_classes"] = 4
    with pytest.raises(ConfigError, match=r"^sweep\.methods\.bsr\.distillation: the network does not know the new"):
        plan_sweep(raw, "config")


def test_a_metric_of_ones_own_is_refused() -> None:
    raw = {**sweep_config(Path("unread.safetensors")), "metric": "workers.batch:mean_loss"}
    with pytest.raises(ConfigError, match=r"^metric: a sweep's trials are judged by accuracy"):
        plan_sweep(raw, "config")


def test_the_example_is_right(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKRAY_DATA", "unread")
    example = plan_sweep(yaml.safe_load((project / "examples" / "resnet20_sweep.yaml").read_text()), "example")
    assert len(grid_of(example)) == len(example.methods) * len(example.budgets) == 15


def test_the_example_with_a_device_is_right(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKRAY_DATA", "unread")
    path = project / "examples" / "resnet20_sweep_latency.yaml"
    example = plan_sweep(yaml.safe_load(path.read_text()), "example")
    assert example.devices == ("cpu",)
    assert example.budgets == ({"throughput@cpu": "1.15x"}, {"throughput@cpu": "1.3x"})
