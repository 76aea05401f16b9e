"""The levels of a search, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from orchestrator.report import RunData
from orchestrator.report.sections.search_course import levels, search_course


def run_of(rows: list[tuple[str, int, float, float, str]], objective: str = "accuracy") -> RunData:
    """A run from (search, level, score, compression, status)."""
    frame = pd.DataFrame(rows, columns=["search", "level", objective, "compression", "status"])
    search = {"objective": objective, "settings": [{"step": 1, "beam_size": 2}]}
    return RunData("run", {"search": search}, {"layers": []}, None, frame)


ROWS = [
    ("s1-k2", 0, 0.7, 0.01, "ok"),
    ("s1-k2", 0, 0.9, 0.02, "ok"),
    ("s1-k2", 0, 0.8, 0.03, "ok"),
    ("s1-k2", 0, np.nan, 0.04, "nan"),
    ("s1-k2", 1, 0.6, 0.05, "ok"),
]


def test_best_and_kth_score_of_a_level() -> None:
    first, second = levels(run_of(ROWS)).to_dict("records")
    assert first == {
        "search": "s1-k2",
        "level": 0,
        "candidates": 4,
        "scored": 3,
        "best": 0.9,
        "kth": 0.8,
        "compression": 0.02,
    }
    # Fewer than K candidates have no K-th best.
    assert (second["best"], second["candidates"]) == (0.6, 1)
    assert np.isnan(second["kth"])


def test_the_least_loss_is_the_best() -> None:
    first = levels(run_of(ROWS, "loss")).to_dict("records")[0]
    assert (first["best"], first["kth"]) == (0.7, 0.8)


@pytest.mark.parametrize("rows", [[], ROWS[:4]])
def test_a_search_of_one_level_has_no_course(rows: list[tuple[str, int, float, float, str]]) -> None:
    assert search_course([run_of(rows)]) is None


def test_a_level_where_all_failed_is_kept() -> None:
    course = levels(run_of([*ROWS, ("s1-k2", 2, np.nan, 0.06, "error")]))
    assert course["scored"].tolist() == [3, 1, 0]
    assert search_course([run_of([*ROWS, ("s1-k2", 2, np.nan, 0.06, "error")])]) is not None
