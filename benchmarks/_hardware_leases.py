"""Two runs and two devices at once: that no lease of a device overlaps another one, by what the timing saw itself.

The devices are two cores; both runs (`rankray measure`, processes of their own) time all their work on both, in small
sessions, so that leases go to and fro. A lease is witnessed from inside (`_hardware_witness.py`): it lasts from when
its holder wrote down that it has it to the end of the last block that was timed under it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import _hardware_witness
import yaml
from _hardware_device import ANYHOW, cores
from _hardware_networks import config
from _record import show

__all__ = ["QUICK", "LeasesSize", "measure", "show_found"]

_CLI = "from orchestrator.cli import main; main()"
_CLUSTER = """
import sys, ray
from orchestrator.config.schema import ClusterSettings
from orchestrator.ray_cluster import connect
with connect(ClusterSettings()):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class LeasesSize:
    """How much is timed.

    Attributes:
        runs: at once.
        ranks: multiples of which each run times.
        session: workloads under one lease.
        timeout_s: for one case.
    """

    runs: int = 2
    ranks: int = 4
    session: int = 2
    timeout_s: float = 1800.0


QUICK = LeasesSize(ranks=32, session=3, timeout_s=600.0)


def measure(size: LeasesSize, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """On one cluster, and with a cluster for each run."""
    usable = cores()[:2]
    found: dict[str, Any] = {"cores": len(usable), "runs": size.runs, "cases": {}}
    for name in ("one_cluster", "own_clusters"):
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _prepare(size, folder, usable)
            with _cluster(folder) if name == "one_cluster" else nullcontext() as address:
                _run_all(size, folder, address)
            found["cases"][name] = _judged(_witnessed(folder))
        keep(found)
    return found


def _prepare(size: LeasesSize, folder: Path, usable: Sequence[int]) -> None:
    """A config per run, each with a table of its own, so that all of them time the same."""
    _hardware_witness.install(folder / "installed")
    (folder / "seen").mkdir()
    options = {"folder": str(folder / "seen")}
    for run in range(size.runs):
        raw = config("resnet20", {"method": "alds", "budget": {"macs": 0.5}}, count=1)
        raw["devices"] = {f"core{core}": {"backend": "witness", "cores": [core], "options": options} for core in usable}
        raw["timing"] = {
            "table": f"table{run}",
            "ranks": size.ranks,
            "session": size.session,
            "retries": 0,
            "protocol": dict(ANYHOW),  # leases are in question, not times
        }
        (folder / f"run{run}.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")


def _environment(folder: Path) -> dict[str, str]:
    here = Path(__file__).parent
    path = [str(here.parent), str(here), str(folder / "installed")]
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    """Ray in a process of its own; its address."""
    command = [sys.executable, "-c", _CLUSTER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(folder)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            address = next((line.strip() for line in lines if line.startswith("127.0.0.1:")), None)
            if address is None:
                raise RuntimeError("Ray did not start")
            yield address
        finally:
            process.stdin.close()
            process.wait(60)


def _run_all(size: LeasesSize, folder: Path, address: str | None) -> None:
    """All runs at once, to their ends."""
    joined = [] if address is None else ["--set", f"cluster.address={address}"]
    started = []
    for run in range(size.runs):
        said = (folder / f"said{run}").open("w+")
        command = [sys.executable, "-c", _CLI, "measure", f"run{run}.yaml", "--run-dir", f"run{run}", *joined]
        process = subprocess.Popen(command, cwd=folder, env=_environment(folder), stdout=said, stderr=said)
        started.append((process, said))
    try:
        for process, said in started:
            status = process.wait(size.timeout_s)
            said.seek(0)
            if status:
                raise RuntimeError(f"rankray measure ended with {status}: {said.read()[-2000:]}")
    finally:
        for process, said in started:
            process.kill()
            said.close()


def _witnessed(folder: Path) -> list[dict[str, Any]]:
    lines = [line for file in sorted((folder / "seen").iterdir()) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def _judged(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was seen, by device.

    Returns:
        `blocks`, and those that were timed `without_lease`; by core the number of `leases`, by run, and how often the
        next lease was the other run's (`handed_over`); `overlaps` of leases of one core, the `least_gap_s` between two.
    """
    without = sum(not one["held"] for one in blocks)
    found: dict[str, Any] = {"blocks": len(blocks), "without_lease": without, "overlaps": 0, "devices": {}}
    gaps: list[float] = []
    for core in sorted({one["core"] for one in blocks}):
        leases = _leases([one for one in blocks if one["core"] == core])
        between = [later[0] - sooner[1] for sooner, later in pairwise(leases)]
        gaps += between
        found["devices"][f"core {core}"] = {
            "leases": len(leases),
            "by_run": Counter(run for _, _, run in leases),
            "handed_over": sum(sooner[2] != later[2] for sooner, later in pairwise(leases)),
            "seconds": sum(ended - began for began, ended, _ in leases),
        }
    found["overlaps"] = sum(gap < 0 for gap in gaps)
    found["least_gap_s"] = min(gaps, default=None)
    return found


def _leases(blocks: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, str]]:
    """(began, ended, run) of every lease of one core, in the order of their beginnings."""
    spans: dict[tuple[int, str, float], tuple[float, float]] = {}
    for one in blocks:
        key = (one["process"], one["run"], one["since"])
        began, ended = spans.get(key, (one["since"] or one["began"], one["ended"]))
        spans[key] = (min(began, one["began"]), max(ended, one["ended"]))
    return sorted((began, ended, key[1]) for key, (began, ended) in spans.items())


def show_found(found: Mapping[str, Any]) -> None:
    """Prints the counts."""
    rows = []
    for name, case in found["cases"].items():
        for device, one in case["devices"].items():
            runs = " + ".join(str(count) for count in one["by_run"].values())
            rows.append([f"{name.replace('_', ' ')}, {device}", runs, str(one["handed_over"]), f"{one['seconds']:.1f}"])
    show(f"Leases of {found['runs']} runs at once", ["", "leases by run", "handed over", "held, s"], rows)
    for name, case in found["cases"].items():
        print(
            f"{name.replace('_', ' ')}: {case['overlaps']} overlaps, {case['without_lease']} of {case['blocks']} "
            "blocks timed without the lease"
        )
    if found["cores"] < 2:
        print("this process may use one core alone: there was one device")
