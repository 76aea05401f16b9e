"""`rankray search` with a latency limit, and `rankray resume`: real Ray, real actors, an estimator for a clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from orchestrator import api
from tests.orchestrator.digits_run import digits_config
from tests.orchestrator.hardware import padding_estimator

PROJECT = Path(__file__).parents[3]

pytestmark = pytest.mark.timeout(900)  # busy machines take minutes to start Ray


def rankray(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, in which the estimator's package is installed."""
    path = os.pathsep.join([str(PROJECT), str(folder)])
    return subprocess.run(
        [sys.executable, "-c", "from orchestrator.cli import main; main()", *arguments],
        env={**os.environ, **environment, "PYTHONPATH": path, "RANKRAY_LEASES": str(folder / "leases")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=800,
    )


def config(checkpoint: Path, **budget: Any) -> dict[str, Any]:
    raw = digits_config(checkpoint)
    raw["search"] = {"method": "layerwise", "objective": "kl", "budget": budget, "ratios": 3, "allocations": 3}
    return {
        **raw,
        "cluster": {"evaluators": 1},
        "devices": {"array": {"backend": "padding"}},
        "timing": {"batch_size": 4, "calibration": 5, "rounds": 3, "proposals": 2},
    }


def searched(checkpoint: Path, folder: Path) -> tuple[Path, str]:
    """A search for 1.4 times the throughput, to its end: the run and what was printed."""
    padding_estimator.register(folder)
    (folder / "digits.yaml").write_text(yaml.safe_dump(config(checkpoint, throughput={"array": "1.4x"})))
    done = rankray(folder, "search", "digits.yaml", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_a_search_ends_within_its_limit(digits_checkpoint: Path, tmp_path: Path) -> None:
    run, printed = searched(digits_checkpoint, tmp_path)
    assert "array: rank step 8; dense " in printed
    result = json.loads((run / "result.json").read_text())
    latency = result["latency"]["array"]
    assert result["in_window"]
    assert latency["measured_ms"] <= latency["limit_ms"] == pytest.approx(latency["dense_ms"] / 1.4)
    assert latency["predicted_ms"] == pytest.approx(latency["measured_ms"], rel=0.05)
    assert f"array: {latency['measured_ms']:.4g} ms measured" in printed
    assert result["costs"]["latency@array"]["compression"] > 0.2
    assert result["costs"]["latency@array"]["network"]["compressed"] == pytest.approx(latency["measured_ms"], rel=0.05)

    evaluations = pd.concat(map(pd.read_parquet, (run / "evaluations").glob("*.parquet")))
    assert evaluations["compression_latency@array"].between(-1, 1).all()
    used = pd.concat(map(pd.read_parquet, (run / "measurements").glob("used-*.parquet")))
    assert (used["kind"] == "network").sum() == len(latency["networks"])
    page = (run / "report.html").read_text()
    assert "Latency at each rank" in page
    assert "Latency, predicted and measured" in page
    assert api.load_compressed(run)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_a_resumed_run_ends_alike_from_what_was_measured(digits_checkpoint: Path, tmp_path: Path) -> None:
    run, _ = searched(digits_checkpoint, tmp_path)
    result = json.loads((run / "result.json").read_text())
    # As if it had been killed before its first score was written down: nothing is measured again.
    for name in ("result.json", "model.safetensors", "search_state.json", "report.html"):
        (run / name).unlink()
    for part in (run / "evaluations").iterdir():
        part.unlink()
    again = rankray(tmp_path, "resume", "run", **{padding_estimator.SILENT: "1"})
    assert again.returncode == 0, again.stderr
    resumed = json.loads((run / "result.json").read_text())
    for key in ("ranks", "latency", "costs", "in_window"):
        assert resumed[key] == result[key]


@pytest.mark.slow
def test_an_infeasible_limit_is_one_line_before_anything_is_scored(digits_checkpoint: Path, tmp_path: Path) -> None:
    padding_estimator.register(tmp_path)
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(config(digits_checkpoint, latency_ms={"array": 0.001})))
    done = rankray(tmp_path, "search", "digits.yaml", "--run-dir", "run")
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("rankray: search.budget.latency@array: no rank vector meets 0.001 ms; the closest that can ")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("evaluations/*.parquet"))
