"""A sweep on a cluster whose only node with room for trials goes down, and another one comes."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.cluster.nodes import end_session, environ, free_port, start_node
from tests.orchestrator.sweeps.conftest import QUICK, sweep_config

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EPOCHS = 12


def epochs_of(place: Path) -> list[dict[str, object]]:
    written = list(place.glob("trials/*/epochs.json"))
    return list(json.loads(written[0].read_text())["history"]) if written else []


@pytest.mark.timeout(900)
def test_a_trial_whose_node_was_lost_goes_on_elsewhere_from_its_checkpoint(
    digits_checkpoint: Path, tmp_path: Path
) -> None:
    methods = {"fine_tuning": {"epochs": EPOCHS, **QUICK}}
    raw = {**sweep_config(digits_checkpoint, methods=methods), "cluster": {"evaluators": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    place, port = tmp_path / "sweep", free_port()
    with tempfile.TemporaryDirectory(prefix="rr", ignore_cleanup_errors=True) as name:
        folder, nodes = Path(name), []
        environment = environ(
            folder,
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(32),
            RAY_ADDRESS=f"127.0.0.1:{port}",
            RAY_worker_register_timeout_seconds="600",
        )
        joining = f"--address=127.0.0.1:{port} --num-cpus=1 --block"
        try:
            head = f"--head --port={port} --num-cpus=0 --temp-dir={folder}/ray --include-dashboard=false --block"
            nodes.append(start_node(folder, "head", head, environment))
            nodes.append(start_node(folder, "first", joining, environment))
            command = "from orchestrator.cli import main; main()"
            with open(folder / "sweep.log", "wb") as log:
                sweep = subprocess.Popen(
                    [sys.executable, "-c", command, "sweep", str(tmp_path / "config.yaml"), "--run-dir", str(place)],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            nodes.append(sweep)
            while len(epochs_of(place)) < 2:
                assert sweep.poll() is None, (folder / "sweep.log").read_text()
                time.sleep(0.05)
            end_session(nodes[1], at_once=True)
            before = epochs_of(place)
            assert len(before) < EPOCHS, "it was over before its node was lost"
            nodes.append(start_node(folder, "second", joining, environment))
            assert sweep.wait(600) == 0, (folder / "sweep.log").read_text()
        finally:
            for node in reversed(nodes):
                if node.poll() is None:
                    end_session(node)
    table = pd.read_parquet(place / "trials.parquet")
    assert table["status"].tolist() == ["finished"]
    history = json.loads(next(place.glob("trials/*/result.json")).read_text())["history"]
    assert len(history) == EPOCHS
    assert history[: len(before)] == before, "what its checkpoint had was trained again"
