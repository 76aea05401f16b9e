"""Reading the table of scored candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator.report import RunData
from orchestrator.report.evaluations import beam_sizes, evaluations_of, objective_of, rank_list, scored


def run_with(rows: list[dict[str, Any]], **search: Any) -> RunData:
    """A run of these evaluations."""
    return RunData("run", {"search": search}, {"layers": []}, None, pd.DataFrame(rows))


def test_a_run_without_evaluations_has_all_columns() -> None:
    assert {"search", "level", "accuracy", "status", "ranks"} <= set(evaluations_of(run_with([])).columns)
    assert scored(run_with([])).empty


def test_only_ok_and_finite_candidates_have_a_score() -> None:
    run = run_with(
        [
            {"status": "ok", "accuracy": 0.5},
            {"status": "ok", "accuracy": float("nan")},
            {"status": "error", "accuracy": 0.9},
            {"status": "ok", "accuracy": None},
        ]
    )
    assert scored(run)["accuracy"].tolist() == [0.5]


@pytest.mark.parametrize(("objective", "best"), [("accuracy", 0.9), ("kl", 0.5), ("loss", 0.5), ("cross_entropy", 0.5)])
def test_more_accuracy_is_better_and_less_loss(objective: str, best: float) -> None:
    rows = [{"status": "ok", "accuracy": a, "kl": k, "loss": k} for a, k in ((0.5, 0.1), (0.9, 0.7))]
    run = run_with(rows, objective=objective)
    assert objective_of(run).best_first(scored(run))["accuracy"].iloc[0] == best


def test_the_beam_size_is_the_settings_or_in_the_name() -> None:
    run = run_with([], settings=[{"step": 3, "beam_size": 7}])
    assert beam_sizes(run, ["s3-k7", "s5-k2", "uniform"]) == {"s3-k7": 7, "s5-k2": 2}


def test_a_rank_vector_from_parquet_has_nan_where_a_layer_is_dense() -> None:
    assert rank_list(np.array([3.0, np.nan])) == rank_list([3, None]) == [3, None]
    assert rank_list(None) == rank_list(float("nan")) == []


def test_ranks_of_several_numbers_come_from_parquet_as_arrays() -> None:
    pairs = np.empty(3, dtype=object)
    pairs[:] = [np.array([8, 6], dtype=np.int32), None, np.array([4], dtype=np.int32)]
    assert rank_list(pairs) == [(8, 6), None, 4]
