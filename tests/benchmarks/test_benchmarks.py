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


def quick(project: Path, name: str, file: Path, *arguments: str, data: str | None = None) -> dict[str, Any]:
    """What `benchmarks/bench_<name>.py --quick` writes, on random images and weights where there are no `data`."""
    environment = {key: value for key, value in os.environ.items() if key != "RANKRAY_DATA"}
    if data is not None:
        environment["RANKRAY_DATA"] = data
    script = project / "benchmarks" / f"bench_{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(file), *arguments],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(project)},
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


@pytest.fixture(scope="module")
def allocations(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quick(project, "allocations", tmp_path_factory.mktemp("allocations") / "allocations.json")


def test_every_benchmark_says_on_what_it_ran_and_not_where(
    pool: dict[str, Any], memory: dict[str, Any], allocations: dict[str, Any]
) -> None:
    for content in (pool, memory, allocations):
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


def test_the_error_table_is_the_plain_ways(allocations: dict[str, Any]) -> None:
    found = allocations["results"]["table"]["networks"]["resnet20"]
    assert found["layers"] == allocations["settings"]["table"]["layers"] == 8
    difference = found["difference"]
    assert difference["entries"] == 586
    assert difference["ours_to_float64"] < 1e-7
    assert 0 < difference["ours_to_float32"] < 1e-5
    medians = {name: one["median"] for name, one in found["seconds"].items()}
    assert found["plain_over_ours"]["table"]["ratio"] == pytest.approx(medians["plain"] / medians["ours"])
    assert set(found["tasks"]) == {"seconds", "one_over_two", "in_process_over_two"}


def test_the_global_step_is_certified_and_no_worse_than_the_published_heuristic(allocations: dict[str, Any]) -> None:
    found = allocations["results"]["global"]["networks"]["resnet20"]
    assert found["trained"] is False
    assert found["ranks"] > found["offered"] > found["layers"] == 20
    assert set(found["targets"]) == {"0.3", "0.8"}
    for target in found["targets"].values():
        assert target["certificate"] is True
        assert target["weights"] <= target["budget"]
        assert target["error_with_sliced_linear"] <= target["error"]
        assert target["error_at_heuristics_size"] <= target["heuristic"]["error"]
        assert target["published"] is None  # that of other weights


def test_the_heuristic_comes_to_the_authors_own_figures(project: Path, tmp_path: Path, data_dir: Path) -> None:
    file = tmp_path / "allocations.json"
    content = quick(project, "allocations", file, "--part", "global", data=str(data_dir))
    assert set(content["results"]) == {"global"}
    targets = content["results"]["global"]["networks"]["resnet20"]["targets"]
    for removed, torchprune, exact in (("0.3", 0.1629, 0.1558), ("0.8", 0.3482, 0.3435)):
        assert targets[removed]["published"] == {"torchprune": torchprune, "exact": exact}
        assert targets[removed]["heuristic"]["error"] == pytest.approx(torchprune, abs=5e-5)
        assert targets[removed]["error"] == pytest.approx(exact, abs=5e-5)


def test_a_part_for_one_network_keeps_the_others(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "allocations.json"
    for name in ("resnet8", "resnet14"):
        content = quick(project, "allocations", file, "--part", "seconds", "--networks", name)
    found = content["results"]["seconds"]
    assert set(found["networks"]) == {"resnet8", "resnet14"}
    assert found["finished"] is False  # resnet20 is missing


def test_every_allocation_search_is_timed(allocations: dict[str, Any]) -> None:
    found = allocations["results"]["seconds"]
    assert found["finished"] is True
    assert [one["layers"] for one in found["networks"].values()] == [8, 20]
    for one in found["networks"].values():
        assert set(one["curve_seconds"]) == {"channel_svd", "sliced_svd"}
        assert set(one["decision_seconds"]) == {
            *("uniform", "energy", "energy_product", "energy_product_exact", "vbmf", "lc_rule", "alds")
        }
        assert all(seconds["lowest"] > 0 for seconds in one["decision_seconds"].values())


def test_quality_judges_every_search_at_every_budget_beside_the_dense_network(project: Path, tmp_path: Path) -> None:
    content = quick(project, "quality", tmp_path / "quality.json")
    (part,) = content["settings"]["digits"]
    found = content["results"]["digits"]
    assert set(found) == {"dense", "asked", "searches"}
    assert 0.9 < found["dense"] <= 1.0
    assert set(found["searches"]) == set(part["searches"])
    for cells in found["searches"].values():
        assert list(cells) == list(found["asked"])
        for target, cell in cells.items():
            assert cell["seeds"] == len(part["seeds"])
            assert cell["compression"] >= float(target) - 1e-9
            assert 0 <= cell["accuracy"]["lowest"] <= cell["accuracy"]["median"] <= cell["accuracy"]["highest"] <= 1
