"""The hardware benchmark in its short form: every part runs to its end, and writes what it documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # each part starts a dozen processes


def quick(project: Path, file: Path, part: str) -> dict[str, Any]:
    """What one part writes on random weights and images."""
    dropped = ("RANKRAY_DATA", "IMAGENET")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    script = project / "benchmarks" / "bench_hardware.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--part", part, "--json", str(file)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(project)},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(file.read_text())
    assert content["benchmark"] == "hardware"
    found: dict[str, Any] = content["results"][part]
    assert {"finished", "machine", "git_commit", "seconds"} <= set(found)
    assert found["finished"] is True
    written = json.dumps(content)
    assert os.uname().nodename not in written
    assert str(Path.home()) not in written
    return found


def test_repeatability_compares_two_sessions(project: Path, tmp_path: Path) -> None:
    found = quick(project, tmp_path / "hardware.json", "repeatability")
    for session in (found["first"], found["second"]):
        assert sum(session["workloads"].values()) == found["asked"] == 4
        assert session["workloads"].get("ok", 0) == len(session["ms"]) == 4 - len(session["refused"])
        assert session["blocks"]["kept"] > 0
    both = set(found["first"]["ms"]) & set(found["second"]["ms"])
    assert found["difference"]["entries"] == len(both)


def test_a_session_of_a_former_run_is_gone_on_with(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "hardware.json"
    first = quick(project, file, "repeatability")["first"]
    content = json.loads(file.read_text())
    del content["results"]["repeatability"]["second"]  # as if it had been stopped in the gap
    file.write_text(json.dumps(content))
    assert quick(project, file, "repeatability")["first"] == first


def test_under_load_tables_and_plain_loops_are_held_against_the_quiet_table(project: Path, tmp_path: Path) -> None:
    found = quick(project, tmp_path / "hardware.json", "loaded")
    assert {"quiet", "same_core"} <= set(found["sessions"])
    for session in found["sessions"].values():
        assert len(session["plain_ms"]) == found["asked"] == 3
        assert set(session["ms"]) <= set(session["plain_ms"])
        for kind in ("table", "plain_loop"):
            assert {"entries", "median", "largest", "above_tenth", "spearman"} <= set(session[kind])


def test_predictions_are_judged_on_networks_that_they_were_not_fitted_to(project: Path, tmp_path: Path) -> None:
    case = quick(project, tmp_path / "hardware.json", "prediction")["cases"]["small-1"]
    assert case["calibration"]["networks"] <= 4
    assert 0 < case["measured"] == len(case["networks"]) <= case["proposed"] <= 4
    assert set(case["held_out"]) == {"calibrated", "raw_sum", "macs"}
    errors = sorted(abs(one["predicted_ms"] / one["measured_ms"] - 1) for one in case["networks"])
    assert case["held_out"]["calibrated"]["error_max"] == pytest.approx(errors[-1])


def test_networks_of_both_budgets_are_timed_beside_the_dense_one(project: Path, tmp_path: Path) -> None:
    found = quick(project, tmp_path / "hardware.json", "resnet18")
    assert found["random"] is True
    assert set(found["networks"]) == {"dense", "latency", "macs"}
    assert found["networks"]["macs"]["macs"] <= 40_000_000 < found["networks"]["dense"]["macs"]
    assert found["searches"]["latency"]["latency"]["dense_ms"] > 0
    assert found["published"] == {"V100": 1.46, "TX2": 1.75, "Eyeriss": 2.03}


def test_no_lease_overlaps_another(project: Path, tmp_path: Path) -> None:
    found = quick(project, tmp_path / "hardware.json", "leases")
    assert set(found["cases"]) == {"one_cluster", "own_clusters"}
    for case in found["cases"].values():
        assert case["blocks"] > 0
        assert case["without_lease"] == case["overlaps"] == 0
        assert len(case["devices"]) == found["cores"]
        runs = {run for device in case["devices"].values() for run in device["by_run"]}
        assert len(runs) == found["runs"] == 2


def test_without_a_card_the_gpu_part_says_so(project: Path, tmp_path: Path) -> None:
    found = quick(project, tmp_path / "hardware.json", "gpu")
    import torch

    assert found["measured"] is torch.cuda.is_available()
