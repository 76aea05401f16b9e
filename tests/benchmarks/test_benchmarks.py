"""The benchmarks in their short form: they run to their end and write what they document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def quick(project: Path, name: str, file: Path) -> dict[str, Any]:
    """What `benchmarks/bench_<name>.py --quick` writes, on random images."""
    done = subprocess.run(
        [sys.executable, str(project / "benchmarks" / f"bench_{name}.py"), "--quick", "--json", str(file)],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "RANKRAY_DATA"} | {"PYTHONPATH": str(project)},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(file.read_text())
    assert content["benchmark"] == name
    assert content["quick"] is True
    return content


@pytest.fixture(scope="module")
def pool(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quick(project, "pool", tmp_path_factory.mktemp("pool") / "made" / "pool.json")


@pytest.fixture(scope="module")
def memory(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quick(project, "memory", tmp_path_factory.mktemp("memory") / "memory.json")


def test_every_benchmark_says_on_what_it_ran_and_not_where(pool: dict[str, Any], memory: dict[str, Any]) -> None:
    for content in (pool, memory):
        assert set(content) == {
            *("benchmark", "quick", "machine", "versions", "git_commit", "seconds", "settings", "results")
        }
        assert set(content["machine"]) == {"cpu", "cores", "memory_gb", "system", "gpu", "load"}
        assert content["versions"]["torch"]
        written = json.dumps(content)
        assert os.uname().nodename not in written
        assert str(Path.home()) not in written


def test_throughput_is_that_of_one_and_of_two_evaluators(pool: dict[str, Any]) -> None:
    found = pool["results"]["throughput"]
    assert set(found) == {"candidates", "per_second", "two_over_one", "evaluator_seconds"}
    assert set(found["per_second"]) == set(found["evaluator_seconds"]) == {"1", "2"}
    medians = {count: one["median"] for count, one in found["per_second"].items()}
    assert found["two_over_one"]["ratio"] == pytest.approx(medians["2"] / medians["1"])


def test_the_drivers_own_time_is_the_sum_of_its_sections(pool: dict[str, Any]) -> None:
    found = pool["results"]["driver"]["resnet20"]
    assert found["candidates"] > 100
    for calls in ("one_a_call", "grouped"):
        sections = found[calls]["by_section"]
        assert set(sections) == {"search", "log", "pool", "level_end", "loop", "waiting"}
        assert all(microseconds > 0 for microseconds in sections.values())
        own = sum(microseconds for section, microseconds in sections.items() if section != "waiting")
        assert found[calls]["own"]["lowest"] <= own <= found[calls]["own"]["highest"]  # of two repeats, so medians add
        assert found[calls]["share"] == pytest.approx(found[calls]["own"]["median"] / (1e6 * found["real_seconds"]))


def test_memory_is_that_of_every_evaluator_beyond_an_idle_actor(memory: dict[str, Any]) -> None:
    found = memory["results"]["networks"]["ResNet-18"]
    assert found["weights_mb"] == pytest.approx(46.76, abs=0.01)
    assert found["factors_mb"] > 40
    assert found["idle_mb"] > 10
    assert len(found["evaluators"]) == memory["settings"]["evaluators"] == 2
    for one in found["evaluators"]:
        assert one["peak"] >= one["scored"] >= one["level_end"] > 0
        for moment in ("scored", "level_end"):
            assert one[f"{moment}_ratio"] == pytest.approx(one[moment] / found["factors_mb"])
            assert found[f"largest_{moment}_ratio"] >= one[f"{moment}_ratio"]
