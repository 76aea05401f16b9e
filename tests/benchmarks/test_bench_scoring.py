"""The scoring benchmark in its short form: it runs to its end, records what it says, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def run(project: Path, *arguments: str, data: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "RANKRAY_DATA"}
    if data is not None:
        environment["RANKRAY_DATA"] = data
    script = project / "benchmarks" / "bench_scoring.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", *arguments],
        capture_output=True,
        text=True,
        cwd=project,
        env={**environment, "PYTHONPATH": str(project)},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(file: Path) -> Any:
    return json.loads(file.read_text())["results"]


def test_every_part_but_screened_runs_without_data_and_records_what_it_documents(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "scoring.json"
    assert "RANKRAY_DATA names no folder" in run(project, "--json", str(file))
    content = json.loads(file.read_text())
    assert content["benchmark"] == "scoring"
    assert content["quick"] is True
    found = content["results"]
    documented = {
        "exact": {"search", "levels", "whole_search", "largest_difference"},
        "floor": {"rates", "best_rate", "fast_seconds", "floor", "profile"},
        "evaluators": {"per_second", "two_over_one", "one_over_in_process"},
        "interleaved": {"one_by_one", "interleaved", "one_by_one_over_interleaved", "scoring_ratio", "answers"},
        "growth": {"layers", "beam", "batch"},
    }
    assert set(found) == set(documented)
    for part, keys in documented.items():
        assert keys | {"finished", "machine", "git_commit", "seconds"} <= set(found[part])
        assert found[part]["finished"] is True
    assert found["exact"]["largest_difference"] < 1e-4
    assert found["interleaved"]["answers"] is True
    assert found["interleaved"]["interleaved"]["scored"] < found["interleaved"]["one_by_one"]["scored"]
    assert found["exact"]["whole_search"]["candidates"] == found["exact"]["search"]["candidates"]
    assert sum(found["floor"]["profile"]["shares"].values()) == pytest.approx(1.0, abs=0.02)
    assert all(floor["seconds"] > 0 for name, floor in found["floor"]["floor"].items() if not name.endswith("_macs"))


def test_screened_searches_are_compared_with_exact_ones(project: Path, tmp_path: Path, data_dir: Path) -> None:
    file = tmp_path / "scoring.json"
    run(project, "--part", "screened", "--json", str(file), data=str(data_dir))
    (cell,) = results(file)["screened"]["cells"].values()
    assert cell["exact"]["skipped"] == 0
    assert cell["screened"]["skipped"] > 0
    assert cell["screened"]["candidates"] < cell["exact"]["candidates"]
    assert cell["exact"]["in_bfloat16"] == cell["screened"]["in_bfloat16"] == 0
    rough = cell["screened_bfloat16"]
    assert 0 < rough["in_bfloat16"] < rough["candidates"]  # the best were scored again
    for way in ("exact", "screened", "screened_bfloat16"):
        assert cell[way]["in_window"]
        assert {"seconds", "plain_seconds", "plain_over_this", "validation_loss", "test_accuracy"} <= set(cell[way])
    (row,) = results(file)["screened"]["summary"]
    assert row["exact"]["plain_over_this"] == pytest.approx(cell["exact"]["plain_over_this"])


def test_a_search_that_was_cut_short_goes_on_to_the_same_end(project: Path, tmp_path: Path) -> None:
    file, courses = tmp_path / "scoring.json", tmp_path / "courses"
    arguments = ("--part", "exact", "--json", str(file), "--courses", str(courses))
    run(project, *arguments)
    whole = results(file)["exact"]["search"]
    (course,) = courses.glob("*.jsonl")
    levels = course.read_text()
    course.write_text(levels[: 2 * len(levels) // 3])  # a kill in the middle of a line
    run(project, *arguments)
    resumed = results(file)["exact"]["search"]
    assert resumed["level_candidates"] == whole["level_candidates"]
    assert [_ranks(line) for line in course.read_text().splitlines()] == [_ranks(line) for line in levels.splitlines()]


def _ranks(line: str) -> Any:
    """A level's candidates, without times and the calls that these decide: each as its parent and its change."""
    groups = json.loads(line).get("groups", ())
    return sorted(json.dumps([parent, change]) for parent, changes, *_ in groups for change in changes)


def test_searches_to_two_targets_share_what_they_have_in_common(project: Path, tmp_path: Path, data_dir: Path) -> None:
    def course(folder: str, *targets: str) -> list[str]:
        where = ("--json", str(tmp_path / f"{folder}.json"), "--courses", str(tmp_path / folder))
        for target in targets:
            run(project, "--part", "screened", "--targets", target, *where, data=str(data_dir))
        (file,) = (tmp_path / folder).glob(f"*-c{targets[-1]}-*-exact.jsonl")
        return file.read_text().splitlines()[1:]

    alone, longer, beside = course("alone", "0.05"), course("beside", "0.06"), course("beside", "0.06", "0.05")
    assert [_ranks(line) for line in beside] == [_ranks(line) for line in alone]
    shared = [line for line in beside if line in longer]
    assert 0 < len(shared) < len(beside)
