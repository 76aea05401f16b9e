"""`bench_trials.py` in its short form: the table, the penalty and the budgets, and that finished cells are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(project: Path, name: str, file: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, f"benchmarks/bench_{name}.py", "--quick", "--json", str(file), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(project)},
        cwd=project,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_each_part_says_what_it_measured_and_keeps_the_others(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "trials.json"
    run(project, "trials", file, "--part", "budgets", "penalty", "--methods", "uniform", "less", "ca")
    results = run(project, "trials", file, "--part", "table")["results"]
    assert set(results) == {"budgets", "penalty", "table"}
    for method, found in results["budgets"].items():
        assert len(found["unused"]) + found["infeasible"] == 3, method
        assert all(0 <= share <= 0.01 for share in found["unused"]), method
    tail = results["penalty"]["tail_energy"]
    assert tail["with"] < tail["without"]
    assert set(results["table"]) == {"dense", "0.5"}
    for cell in results["table"]["0.5"].values():
        assert cell["epochs"] == 2
        assert 0.5 <= cell["compression"] <= 0.505
        assert cell["test_accuracy"] > 0.2


def test_a_sweep_is_killed_twice_and_asha_saves_epochs(project: Path, tmp_path: Path) -> None:
    results = run(project, "sweep", tmp_path / "sweep.json")["results"]
    assert results["killed"]["rewritten"] == 0
    assert results["killed"]["statuses"] == {"finished": results["killed"]["trials"]}
    assert results["asha"]["asha"]["epochs"] < results["asha"]["all"]["epochs"]
    assert results["asha"]["saved"] > 0
