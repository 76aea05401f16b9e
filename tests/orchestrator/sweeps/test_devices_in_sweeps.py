"""`rankray sweep` with budgets on devices: real Ray, real actors, an estimator for a clock; once a real processor."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
import yaml

from orchestrator.storage import Storage
from tests.orchestrator.hardware import padding_estimator
from tests.orchestrator.hardware.test_timed_search import rankray
from tests.orchestrator.sweeps.conftest import QUICK, sweep_config

pytestmark = pytest.mark.timeout(1200)  # busy machines take minutes to start Ray

LESS = {"less": {"selection_epochs": 1, "epochs": 1, **QUICK}}


def config(checkpoint: Path, folder: Path, device: dict[str, Any] | None = None, **sweep: Any) -> dict[str, Any]:
    """A sweep over one device, by default one whose times follow a formula."""
    raw = sweep_config(checkpoint, **{"methods": LESS, "budgets": [{"throughput": {"array": "1.4x"}}], **sweep})
    raw["devices"] = {"array": device or {"backend": "padding"}}
    raw["timing"] = {"batch_size": 4, "calibration": 5, "rounds": 3, "proposals": 2}
    if device is None:
        padding_estimator.register(folder)
    (folder / "digits.yaml").write_text(yaml.safe_dump(raw))
    return raw


def swept(folder: Path, *arguments: str, **environment: str) -> tuple[pd.DataFrame, str]:
    """The table of a sweep that ended well, and what was printed."""
    command = arguments or ("sweep", "digits.yaml", "--run-dir", "run")
    done = rankray(folder, *command, **environment)
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(io.BytesIO(Storage(str(folder / "run")).read("trials.parquet"))), done.stdout


def test_a_sweep_ends_with_what_its_networks_take(digits_checkpoint: Path, tmp_path: Path) -> None:
    config(digits_checkpoint, tmp_path)
    table, printed = swept(tmp_path)
    (row,) = table.to_dict("records")
    assert row["status"] == "finished"
    assert row["budget"] == "throughput@array 1.4x"
    assert row["budget_cost"] == "latency@array"
    assert row["budget_value"] == pytest.approx(1 - 1 / 1.4)
    assert row["compression_latency@array"] >= row["budget_value"]
    assert row["predicted_ms@array"] == pytest.approx(row["latency_ms@array"], rel=0.02)
    assert row["pareto"]
    assert "rank step 8; dense" in printed
    assert f"{row['latency_ms@array']:.4g}" in printed
    result = json.loads((tmp_path / "run" / "trials" / row["trial"] / "result.json").read_text())
    assert result["latency"]["array"]["measured_ms"] == row["latency_ms@array"]
    assert "Latency on array" in (tmp_path / "run" / "sweep.html").read_text()


def forget(sweep: Path) -> None:
    """A sweep that has these files is finished, and just read."""
    for file in ("trials.parquet", "sweep.html"):
        (sweep / file).unlink()


@pytest.mark.slow
def test_a_resumed_sweep_goes_by_what_was_measured(digits_checkpoint: Path, tmp_path: Path) -> None:
    config(digits_checkpoint, tmp_path)
    table, _ = swept(tmp_path)
    (name,) = table["trial"]
    trial = tmp_path / "run" / "trials" / name
    # As if it had been killed before the trial was taken down, and its device lost for good.
    result = json.loads((trial / "result.json").read_text())
    del result["latency"]
    (trial / "result.json").write_text(json.dumps(result))
    forget(tmp_path / "run")
    again, _ = swept(tmp_path, "resume", "run", **{padding_estimator.SILENT: "1"})
    pd.testing.assert_frame_equal(again, table)
    # A trial that was never begun is trained under the same budget from the same measurements.
    (trial / "result.json").unlink()
    forget(tmp_path / "run")
    again, _ = swept(tmp_path, "resume", "run", **{padding_estimator.SILENT: "1"})
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    exported = rankray(tmp_path, "export", "run", "--trial", name, **{padding_estimator.SILENT: "1"})
    assert exported.returncode == 0, exported.stderr
    network = torch.export.load(tmp_path / f"{name}.pt2").module()
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_ranks_from_a_search_are_those_that_it_measured(digits_checkpoint: Path, tmp_path: Path) -> None:
    config(digits_checkpoint, tmp_path, methods={"fine_tuning": {"epochs": 1, **QUICK}})
    table, _ = swept(tmp_path)
    (name,) = table["trial"]
    searched = json.loads(
        (tmp_path / "run" / "ranks" / "search-channel_svd-throughput@array1.4x" / "result.json").read_text()
    )
    assert searched["in_window"]
    result = json.loads((tmp_path / "run" / "trials" / name / "result.json").read_text())
    assert result["ranks"] == searched["ranks"]
    assert result["latency"]["array"]["measured_ms"] == searched["latency"]["array"]["measured_ms"]


@pytest.mark.slow
def test_optuna_goes_by_measured_latency_whatever_the_budget(digits_checkpoint: Path, tmp_path: Path) -> None:
    directions = {"accuracy": "maximize", "latency_ms@array": "minimize"}
    optuna_block = {"trials": 2, "sampler": "random", "directions": directions}
    config(digits_checkpoint, tmp_path, budgets=[{"macs": 0.4}, {"macs": 0.6}, {"macs": 0.8}], optuna=optuna_block)
    table, _ = swept(tmp_path)
    assert table["latency_ms@array"].notna().all()
    assert table["predicted_ms@array"].isna().all(), "no budget limits the device"
    longer, _ = swept(tmp_path, "sweep", "digits.yaml", "--run-dir", "run", "--more", "1")
    assert len(longer) == 3
    study = optuna.load_study(storage=f"sqlite:///{tmp_path / 'run' / 'study.db'}", study_name="sweep")
    told = {trial.number: trial.values for trial in study.get_trials() if trial.values}
    expected = {row["number"]: [row["accuracy"], row["latency_ms@array"]] for row in longer.to_dict("records")}
    assert expected.items() <= told.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "environment", "message"),
    [
        ({"backend": "torch", "resource": "jetson"}, {}, "devices.array.resource: no node offers 'jetson'"),
        (None, {padding_estimator.SILENT: "1"}, "array: the dense network could not be measured: error: "),
    ],
)
def test_a_device_that_does_not_answer_ends_it_before_anything_is_trained(
    digits_checkpoint: Path, tmp_path: Path, device: Any, environment: dict[str, str], message: str
) -> None:
    config(digits_checkpoint, tmp_path, device)
    done = rankray(tmp_path, "sweep", "digits.yaml", "--run-dir", "run", **environment)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(f"rankray: {message}")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("trials/*"))


@pytest.mark.slow
def test_on_this_machines_processor(digits_checkpoint: Path, tmp_path: Path) -> None:
    raw = config(digits_checkpoint, tmp_path, {"backend": "torch", "cores": [min(os.sched_getaffinity(0))]})
    rules = {"load": 2.0, "drift": 1.0}  # whatever else this machine does meanwhile
    raw["timing"] |= {"batch_size": 64, "confidence": 0.2, "ranks_per_layer": 4, "protocol": rules}
    raw["sweep"]["budgets"] = [{"latency": {"array": 0.1}}]
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(raw))
    table, _ = swept(tmp_path)
    (row,) = table.to_dict("records")
    assert row["status"] == "finished"
    assert row["latency_ms@array"] > 0 or row["reason"].startswith("array: ")
