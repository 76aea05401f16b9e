"""`kill -9` of the driver at random moments, then `rankray resume`: the same answer, and nothing is scored twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from orchestrator import api
from orchestrator.ray_cluster import Cluster
from tests.orchestrator.digits_run import digits_config

RANKRAY = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def driver(*arguments: str, project: Path) -> subprocess.Popen[str]:
    """`rankray ...` as a process of its own, with its own Ray on this machine."""
    environment = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.Popen(
        [*RANKRAY, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def recorded(run: Path) -> list[str]:
    """Every recorded rank vector, as often as it was recorded."""
    parts = [pd.read_parquet(part)["ranks"] for part in run.glob("evaluations/*.parquet")]
    journal = run / "evaluations/journal.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.dumps(json.loads(line)["ranks"]))
        except ValueError:
            assert line == lines[-1], "only the last line may be torn"
    return [json.dumps(_plain(ranks)) for part in parts for ranks in part] + rows


def _plain(ranks: list[float]) -> list[int | None]:
    return [None if rank is None or rank != rank else int(rank) for rank in ranks]


def wait_for_scores(process: subprocess.Popen[str], run: Path, number: int) -> None:
    """Until so many candidates are recorded, or the driver is done."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        journal = run / "evaluations/journal.jsonl"
        if journal.exists() and journal.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    return api.search(digits_config(digits_checkpoint), tmp_path_factory.mktemp("undisturbed") / "run")


def kill_and_resume(seed: int, undisturbed: api.Run, config: Path, run: Path, project: Path) -> None:
    draw = random.Random(seed)
    assert undisturbed.result is not None
    whole = undisturbed.result["evaluations"]
    process = driver("search", str(config), "--run-dir", str(run), project=project)
    wait_for_scores(process, run, draw.randrange(1, whole))
    time.sleep(draw.uniform(0, 0.05))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = recorded(run)

    resumed = driver("resume", str(run), project=project)
    _, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, errors

    result = json.loads((run / "result.json").read_text())
    assert result["ranks"] == undisturbed.result["ranks"]
    after = recorded(run)
    assert len(set(after)) == whole == result["evaluations"]
    twice = len(after) - len(set(after))
    assert twice == len(before) - len(set(before)), "a recorded candidate was scored again"


@pytest.fixture
def config_file(digits_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(digits_config(digits_checkpoint)))
    return path


def test_killed_at_a_random_moment(undisturbed: api.Run, config_file: Path, tmp_path: Path, project: Path) -> None:
    kill_and_resume(0, undisturbed, config_file, tmp_path / "run", project)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_twenty_random_moments(
    undisturbed: api.Run, config_file: Path, tmp_path: Path, project: Path
) -> None:
    for seed in range(1, 21):
        kill_and_resume(seed, undisturbed, config_file, tmp_path / f"run-{seed}", project)
