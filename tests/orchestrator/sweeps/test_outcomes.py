"""The table of trials: a row for each, and the front over held-out accuracy alone."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd

from orchestrator.sweeps.outcomes import parquet_bytes, row_of, table_of
from orchestrator.sweeps.page import sweep_page
from orchestrator.sweeps.trials import Trial

DENSE = {"held_out": 0.98, "test": 0.97}


def trial(number: int, budget: float = 0.5) -> Trial:
    return Trial(number, "lc", "lc", "channel_svd", {"epochs": 1}, {"macs": budget}, 0)


def finished(
    number: int, compression: float, accuracy: float, test: float = 0.5, budget: float = 0.5
) -> dict[str, Any]:
    epoch = {"epoch": 1, "seconds": 1.5, "accuracy": accuracy, "accuracy_before": 0.1}
    result = {
        "status": "finished",
        "reason": "",
        "accuracy": accuracy,
        "accuracy_before": 0.1,
        "test_accuracy": test,
        "compression": {"macs": compression},
        "costs": {"macs": 1000 * (1 - compression)},
        "history": [epoch, epoch],
    }
    return row_of(trial(number, budget), result, [], DENSE)


def test_the_front_is_told_by_held_out_accuracy_alone() -> None:
    rows = [finished(0, 0.5, 0.9, test=0.1), finished(1, 0.5, 0.8, test=0.99), finished(2, 0.6, 0.85, budget=0.6)]
    table = table_of(rows)
    assert table["pareto"].tolist() == [True, False, True]
    assert table["epochs"].tolist() == [2, 2, 2]
    assert table["seconds"].tolist() == [3.0] * 3


def test_compressing_more_than_asked_is_no_merit() -> None:
    table = table_of([finished(0, 0.5, 0.9), finished(1, 0.51, 0.8)])
    assert table["pareto"].tolist() == [True, False]


def test_trials_that_did_not_finish_have_rows_but_no_place_on_the_front() -> None:
    failed = row_of(trial(1), {"status": "failed", "reason": "nan", "history": []}, [], DENSE)
    running = row_of(trial(2), None, [{"epoch": 1, "seconds": 2.0, "accuracy": 1.0}], DENSE)
    table = table_of([running, failed, finished(0, 0.5, 0.9)])
    assert table["status"].tolist() == ["finished", "failed", "unfinished"]
    assert table["pareto"].tolist() == [True, False, False]
    assert pd.isna(table["accuracy"][1])
    assert table["accuracy"][2] == 1.0


def test_the_file_holds_the_table_and_the_page_its_trials() -> None:
    table = table_of([finished(0, 0.5, 0.9), finished(1, 0.6, 0.8, budget=0.6)])
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(parquet_bytes(table))), table)
    page = sweep_page(table)
    assert "Pareto front" in page
    assert all(name in page for name in table["trial"])


def test_a_sweep_in_which_nothing_finished_has_a_page() -> None:
    failed = row_of(trial(0), {"status": "failed", "reason": "<nan>", "history": []}, [], DENSE)
    page = sweep_page(table_of([failed]))
    assert "&lt;nan&gt;" in page
