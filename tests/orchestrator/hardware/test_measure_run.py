"""`rankray measure` and `rankray devices` on real Ray, real processes and a real network.

Numbers are not looked at: the protocol is told to take what a machine busy with tests gives.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml

from orchestrator import api
from orchestrator.config.loading import check_config
from orchestrator.hardware import sessions, stations
from orchestrator.hardware.devices import devices_of
from orchestrator.hardware.latency_table import Conditions, LatencyTable, Work
from orchestrator.hardware.measuring import Unwatched, measurer_on
from orchestrator.ray_cluster import Cluster
from search_spaces.errors import ConfigError, MeasurementError
from tests.orchestrator.digits_run import digits_config
from tests.workers.timing import odd_backends
from workers.timing.lease import lease
from workers.timing.session import REFERENCE

RANKRAY = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
CORES = sorted(os.sched_getaffinity(0))
ANYHOW = {"load": 1.0, "wait_s": 0.0, "blocks": 6, "drift": 9.0, "warm_up_s": 0.0}


@pytest.fixture
def config(digits_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    timing = {"table": str(tmp_path / "table"), "ranks": 1000, "confidence": 0.9, "protocol": ANYHOW}
    return {
        **digits_config(digits_checkpoint),
        "devices": {"here": {"cores": [CORES[0]]}},
        "timing": timing,
    }


def rankray(*arguments: str, folder: Path, project: Path, **environment: str) -> subprocess.Popen[str]:
    """`rankray ...` as a process of its own, where the package of odd backends is installed."""
    path = os.pathsep.join([str(project), str(folder)])
    return subprocess.Popen(
        [*RANKRAY, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": path, "RANKRAY_LEASES": str(folder / "leases")},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def written(config: dict[str, Any], path: Path) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_the_second_time_nothing_is_measured(ray_cluster: Cluster, config: dict[str, Any], tmp_path: Path) -> None:
    first = api.measure(config, tmp_path / "first")
    assert first.outcome.measured == first.entries > 4
    assert (first.outcome.known, first.unmeasured, first.outcome.rejected) == (0, 0, [])
    assert all(one is not None and one.ok and one.device == "here" for one in first.outcome.measurements["here"])
    kept = pd.read_parquet(tmp_path / "first" / "measurements")
    assert sorted(kept["subject"]) == sorted(LatencyTable(config["timing"]["table"]).frame()["subject"])

    config["devices"] = {"other_name": config["devices"]["here"]}  # of the same kind
    second = api.measure(config, tmp_path / "second")
    assert (second.outcome.measured, second.outcome.known) == (0, first.entries)
    assert second.entries == first.entries
    assert not (tmp_path / "second" / "measurements").exists()

    table = LatencyTable(config["timing"]["table"])
    doubted = first.outcome.measurements["here"][0]
    assert doubted is not None
    assert doubted.spread is not None
    far = replace(doubted.spread, **{name: 1e3 for name in ("median_ms", "low_ms", "high_ms", "p10_ms", "p90_ms")})
    table.add([replace(doubted, spread=far)])
    assert len(table.contradictions()) == 1
    third = api.measure(config, tmp_path / "third", check=True)
    assert third.outcome.measured == 1, "only what was set aside, and the share to check"
    assert len(third.outcome.differences) == 1
    assert third.contradictions == ()
    found = LatencyTable(config["timing"]["table"]).find(Conditions.of(doubted), Work("layer", doubted.subject, 1))
    assert found is not None
    assert found.spread is not None
    assert found.spread.median_ms < 1e3


def test_a_resource_that_no_node_offers(ray_cluster: Cluster, config: dict[str, Any], tmp_path: Path) -> None:
    config["devices"]["orin"] = {"resource": "jetson_orin"}
    with pytest.raises(ConfigError, match=r"^devices\.orin\.resource: no node offers 'jetson_orin'; .* offers .*4 CPU"):
        api.measure(config, tmp_path / "run")
    assert not Path(config["timing"]["table"]).exists()
    listed = {one.device.name: one for one in api.devices(config)}
    assert listed["orin"].unfit.startswith("resource: no node offers 'jetson_orin'")  # its name stands beside it
    assert listed["here"].identity is not None, "one that is missing does not hide the others"
    assert listed["here"].holder is None


def test_a_label_that_no_node_has(ray_cluster: Cluster, config: dict[str, Any], tmp_path: Path) -> None:
    config["devices"]["here"]["labels"] = {"rack": "seven"}
    with pytest.raises(ConfigError, match=r"^devices\.here\.labels: no node has rack=seven; .* has "):
        api.measure(config, tmp_path / "run")


def test_a_device_that_the_config_does_not_have(ray_cluster: Cluster, config: dict[str, Any]) -> None:
    checked = check_config(config, "config")
    with (
        measurer_on(ray_cluster, devices_of(checked.devices), checked.timing) as measurer,
        pytest.raises(MeasurementError, match="orin: there is no such device; the config has here"),
    ):
        measurer.measure("orin", [REFERENCE])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("protocol", {"blokcs": 3}, r"^timing\.protocol\.blokcs: unknown rule; did you mean 'blocks'"),
        ("table", "none://x", r"^timing\.table: 'none://x' is no place"),
    ],
)
def test_mistakes_are_found_before_ray_starts(
    config: dict[str, Any], tmp_path: Path, key: str, value: object, told: str
) -> None:
    config["timing"][key] = value
    with pytest.raises(ConfigError, match=told):
        api.measure(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_device_that_hangs_is_given_up_and_its_work_goes_to_another(
    config: dict[str, Any], tmp_path: Path, project: Path
) -> None:
    """As two processors, on two cores where there are two."""
    odd_backends.register(tmp_path)
    config["devices"] = {
        "first": {"backend": "hangs_first", "cores": [CORES[0]], "time_limit_s": 3},
        "second": {"backend": "hangs_first", "cores": [CORES[-1]]},
    }
    path = written(config, tmp_path / "config.yaml")
    process = rankray("measure", path, "--run-dir", "run", folder=tmp_path, project=project)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert "first is given up: hangs: no sign of life for 3 s; " in output
    assert "; its work goes to second" in output
    assert " 0 rejected" in output
    assert set(LatencyTable(str(tmp_path / "table")).frame()["device"]) == {"second"}


@pytest.mark.slow
def test_a_device_whose_actor_is_silent_is_given_up_and_its_work_goes_to_another(
    ray_cluster: Cluster, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor's process that stands still, as that of a node that was cut off seems to; others have news meanwhile."""
    monkeypatch.setattr(sessions, "_HEARTBEAT_S", 1.0)
    config["timing"]["session"] = 1
    config["devices"] = {name: {"cores": [core]} for name, core in (("first", CORES[0]), ("second", CORES[-1]))}
    checked, said = check_config(config, "config"), Said()
    workloads = [replace(REFERENCE, height=height) for height in (5, 6, 7)]
    with measurer_on(ray_cluster, devices_of(checked.devices), checked.timing, watcher=said) as measurer:
        assert measurer.conditions("first") == measurer.conditions("second")
        monkeypatch.setattr(stations, "_ASK_S", 10.0)
        actor = measurer._stations.open(["first"])[0].actor
        pid = ray.get(actor.__ray_call__.remote(lambda _self: os.getpid()))
        os.kill(pid, signal.SIGSTOP)
        try:
            outcome = measurer.measure_all(dict.fromkeys(["first", "second"], workloads))
        finally:
            with suppress(ProcessLookupError):  # Ray ends it
                os.kill(pid, signal.SIGCONT)
    assert outcome.given_up == {"first": "its actor has not answered for 10 s"}
    assert "first is given up: its actor has not answered for 10 s; its work goes to second" in said.lines
    assert all(found is not None and found.ok for found in outcome.measurements["first"])


class Said(Unwatched):
    """Keeps what a person should know."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_it_measured_frees_the_device_and_goes_on(
    config: dict[str, Any], tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config["timing"]["session"] = 2
    path, table = written(config, tmp_path / "config.yaml"), str(tmp_path / "table")
    process = rankray("measure", path, "--run-dir", "run", folder=tmp_path, project=project)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "table").glob("*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "interrupted; what was measured is in" in errors
    assert "Traceback" not in errors

    measured = pd.read_parquet(tmp_path / "run" / "measurements")
    assert len(measured) >= 2
    assert set(measured["subject"]) == set(LatencyTable(table).frame()["subject"])
    monkeypatch.setenv("RANKRAY_LEASES", str(tmp_path / "leases"))
    with lease([f"core-{CORES[0]}"], "here", wait_s=30):  # its processes may still be ending
        pass

    again = rankray("measure", path, "--run-dir", "again", folder=tmp_path, project=project)
    output, errors = again.communicate(timeout=400)
    assert again.returncode == 0, errors
    assert f" {len(measured)} known before, 0 rejected" in output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_and_two_devices_at_once_never_overlap(config: dict[str, Any], tmp_path: Path, project: Path) -> None:
    odd_backends.register(tmp_path)
    config["devices"] = {
        f"core{core}": {"backend": "records", "cores": [core], "options": {"core": core}} for core in CORES[:2]
    }
    config["timing"]["session"] = 3
    path, record = written(config, tmp_path / "config.yaml"), tmp_path / "record"
    runs = [
        rankray("measure", path, "--run-dir", name, folder=tmp_path, project=project, RANKRAY_TEST_RECORD=str(record))
        for name in ("one", "two")
    ]
    for run in runs:
        _, errors = run.communicate(timeout=600)
        assert run.returncode == 0, errors
    sessions: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in record.read_text().splitlines():
        pid, cores, began, ended = line.split()
        sessions[cores][pid] += [float(began), float(ended)]
    assert set(sessions) == {str(core) for core in CORES[:2]}
    for on_core in sessions.values():
        assert len(on_core) >= 2
        held = sorted((min(times), max(times)) for times in on_core.values())
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(held))
    table = LatencyTable(str(tmp_path / "table"))
    kept = [pd.read_parquet(tmp_path / name / "measurements") for name in ("one", "two")]
    good = sum(int((one["status"] == "ok").sum()) for one in kept if len(one))
    assert len(table) == good, json.dumps([len(one) for one in kept])
