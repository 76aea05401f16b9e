"""Whole sweeps on digits, on real Ray: grids, Optuna, divergence, interruption, more trials, and a killed process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml

from orchestrator import api, cli
from orchestrator.progress import Silent
from orchestrator.ray_cluster import Cluster
from orchestrator.sweeps import running
from search_spaces.errors import ConfigError, RunInterruptedError
from tests.orchestrator.sweeps.conftest import QUICK, sweep_config

FIXED = ["trial", "status", "accuracy", "accuracy_before", "compression_parameters", "epochs", "pareto"]


def wide(checkpoint: Path, **sweep: Any) -> dict[str, Any]:
    methods = {
        "uniform": {"method": "fine_tuning", "epochs": {"choice": [1, 2]}, **QUICK},
        "wild": {"method": "fine_tuning", "epochs": 1, "learning_rate": 1e30, **QUICK},
    }
    return sweep_config(checkpoint, **{"methods": methods, **sweep})


class Pressing(Silent):
    """Presses Ctrl-C once so many trials have ended."""

    def __init__(self, ended: int) -> None:
        self.lines: list[str] = []
        self._left = ended

    def say(self, line: str) -> None:
        self.lines.append(line)
        if ": finished" in line:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Sweep:
    return api.sweep(wide(digits_checkpoint, concurrency=1), tmp_path_factory.mktemp("sweeps") / "finished")


def test_every_trial_has_a_row_and_one_that_diverges_ends_alone(finished: api.Sweep) -> None:
    table = finished.table
    assert table["status"].tolist() == ["finished", "finished", "failed"]
    assert "learning rate" in table["reason"][2]
    done = table[table["status"] == "finished"]
    assert done["compression_parameters"].between(0.5, 0.56).all()
    assert done["epochs"].tolist() == [1, 2]
    assert done["test_accuracy"].notna().all()
    pd.testing.assert_frame_equal(pd.read_parquet(Path(finished.location, "trials.parquet")), table)


def test_files_for_people(finished: api.Sweep) -> None:
    place = Path(finished.location)
    assert "Pareto front" in (place / "sweep.html").read_text()
    assert list((place / "tensorboard" / finished.table["trial"][1]).glob("events*"))
    assert not list(place.glob("trials/*/checkpoint.pt")), "what has ended needs no checkpoint"
    assert not list(place.rglob("*.pkl")), "nothing in a run directory is pickled"


def test_a_finished_sweep_is_read_without_ray(
    finished: api.Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(finished.location, tmp_path / "copied")
    asked = (copied / "sweep.json").read_text().replace(finished.location, str(copied))
    (copied / "sweep.json").write_text(asked)
    monkeypatch.setattr(running, "connect", lambda _: pytest.fail("Ray was started"))
    pd.testing.assert_frame_equal(api.resume_sweep(copied).table[FIXED], finished.table[FIXED])


def test_a_sweep_of_another_network_is_not_gone_on_with(finished: api.Sweep, tmp_path: Path) -> None:
    copied = shutil.copytree(finished.location, tmp_path / "copied")
    asked = json.loads((copied / "sweep.json").read_text())
    asked["fingerprints"]["model"] = "another"
    (copied / "sweep.json").write_text(json.dumps(asked))
    (copied / "trials.parquet").unlink()  # a sweep that is finished is just read
    with pytest.raises(ConfigError, match=r"^model\.checkpoint: the model is not what this sweep began with"):
        api.resume_sweep(copied)


def test_more_than_any_node_has_is_refused(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path: Path) -> None:
    raw = wide(digits_checkpoint, resources={"cpus": 3, "gpus": 0.5})
    with pytest.raises(ConfigError, match=r"^sweep\.resources: no node holds 3 CPUs and 0\.5 GPUs; there are 4 CPUs"):
        api.sweep(raw, tmp_path / "sweep")


def test_ctrl_c_leaves_a_sweep_that_ends_the_same(
    ray_cluster: Cluster, digits_checkpoint: Path, finished: api.Sweep, tmp_path: Path
) -> None:
    searched = f"{finished.location}/ranks/search-channel_svd-parameters0.5"
    raw = wide(digits_checkpoint, concurrency=1, ranks_from=searched)
    with pytest.raises(RunInterruptedError, match="go on with `rankray resume"):
        api.sweep(raw, tmp_path / "sweep", observer=Pressing(1))
    first = tmp_path / "sweep" / "trials" / finished.table["trial"][0] / "result.json"
    trained = first.stat().st_mtime_ns
    table = api.resume_sweep(tmp_path / "sweep").table
    pd.testing.assert_frame_equal(table[FIXED], finished.table[FIXED])
    assert first.stat().st_mtime_ns == trained, "what was finished is not trained again"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_optuna_over_budgets_and_rates_then_more(ray_cluster: Cluster, digits_checkpoint: Path, tmp_path: Path) -> None:
    raw = sweep_config(
        digits_checkpoint,
        methods={"fine_tuning": {"epochs": 2, "learning_rate": {"loguniform": [1e-3, 0.1]}, **QUICK}},
        budgets=[0.5, 0.6],
        optuna={"trials": 4, "directions": {"accuracy": "maximize", "compression_parameters": "maximize"}},
        asha={"grace": 1, "factor": 2},
    )
    table = api.sweep(raw, tmp_path / "sweep").table
    assert set(table["status"]) <= {"finished", "stopped"}
    assert len(table) == 4
    assert (table.loc[table["status"] == "stopped", "epochs"] == 1).all()
    longer = api.sweep(raw, tmp_path / "sweep", more=2).table
    assert len(longer) == 6
    pd.testing.assert_frame_equal(longer.loc[:3, ["trial", "accuracy"]], table[["trial", "accuracy"]])
    study = optuna.load_study(storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}", study_name="sweep")
    assert len(study.get_trials(states=(optuna.trial.TrialState.RUNNING,))) == 0
    assert len(study.best_trials) >= 1
    with pytest.raises(ConfigError, match=r"^--more: .* is a sweep of another config: sweep\.budgets differ"):
        api.sweep({**raw, "sweep": {**raw["sweep"], "budgets": [0.5]}}, tmp_path / "sweep", more=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.budgets=[0.999]", "sweep.budgets.0: no rank vector meets 0.999"),
        ("sweep.methods={haloc: {}}", "sweep.methods.haloc.scheme: haloc factorises by tucker2"),
        ("sweep.storage=ftp://nowhere/x", "sweep.storage: 'ftp://nowhere/x/run' is no place to store"),
        ("sweep.storage=/proc/none", "sweep.storage: /proc/none/"),
        ("sweep.ranks_from=mbss", "sweep.ranks_from: 'mbss' is neither a search nor a run directory"),
        ("model.arguments={classes: 5}", "model"),
    ],
)
def test_a_mistake_ends_it_before_ray_starts(
    digits_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    monkeypatch.setattr(running, "connect", lambda _: pytest.fail("Ray was started"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(sweep_config(digits_checkpoint)))
    arguments = ["rankray", "sweep", str(path), "--run-dir", str(tmp_path / "run"), "--set", override]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    _, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.startswith(f"rankray: {message}"), err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "sweep.yaml").exists()


def test_a_grid_has_no_more_trials(finished: api.Sweep, digits_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--more: a grid has all its trials"):
        api.sweep(wide(digits_checkpoint), finished.location, more=2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twice_nothing_finished_is_trained_again(digits_checkpoint: Path, tmp_path: Path) -> None:
    place, path = tmp_path / "sweep", tmp_path / "config.yaml"
    methods = {"fine_tuning": {"epochs": 4, "learning_rate": {"choice": [0.001, 0.01, 0.1]}, **QUICK}}
    path.write_text(yaml.safe_dump(sweep_config(digits_checkpoint, methods=methods, seeds=[0, 1], concurrency=2)))
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
    arguments = ["sweep", str(path), "--run-dir", str(place)]
    before: dict[str, int] = {}
    for _ in range(2):
        child = subprocess.Popen([*command, *arguments], start_new_session=True, cwd=Path(cli.__file__).parents[1])
        wanted = len(before) + 2
        while len(list(place.glob("trials/*/result.json"))) < wanted:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGKILL)  # the driver and all its workers
        child.wait()
        now = {one.parent.name: one.stat().st_mtime_ns for one in place.glob("trials/*/result.json")}
        assert before.items() <= now.items()
        before, arguments = now, ["resume", str(place)]
    subprocess.run([*command, *arguments], check=True, cwd=Path(cli.__file__).parents[1])
    table = pd.read_parquet(place / "trials.parquet")
    assert table["status"].tolist() == ["finished"] * 6
    assert table["epochs"].tolist() == [4] * 6
    for name, written in before.items():
        assert (place / "trials" / name / "result.json").stat().st_mtime_ns == written
