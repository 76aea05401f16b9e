"""The table of trials: a row for each, and the front over held-out accuracy alone."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from orchestrator.searches.limits import Bound
from orchestrator.sweeps.console import show_trials
from orchestrator.sweeps.outcomes import SCHEMA, parquet_bytes, row_of, table_of
from orchestrator.sweeps.page import sweep_page
from orchestrator.sweeps.trials import Trial

DENSE = {"held_out": 0.98, "test": 0.97}

EPOCH = {"epoch": 1, "seconds": 1.5, "accuracy": 0.8, "accuracy_before": 0.1}

RESULT: dict[str, Any] = {
    "status": "finished",
    "reason": "",
    "accuracy_before": 0.1,
    "test_accuracy": 0.5,
    "costs": {},
    "history": [EPOCH, EPOCH],
}


def trial(number: int, budget: float = 0.5) -> Trial:
    return Trial(number, "lc", "lc", "channel_svd", {"epochs": 1}, {"macs": budget}, 0)


def finished(
    number: int, compression: float, accuracy: float, test: float = 0.5, budget: float = 0.5
) -> dict[str, Any]:
    result = {
        **RESULT,
        "accuracy": accuracy,
        "test_accuracy": test,
        "compression": {"macs": compression},
        "costs": {"macs": 1000 * (1 - compression)},
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


def on_a_device(
    number: int, measured_ms: float | None, accuracy: float, *, limit: Bound = "6 ms", reason: str = ""
) -> dict[str, Any]:
    """A row of a trial whose budget is 6 of the dense network's 10 ms."""
    result = {
        **RESULT,
        "accuracy": accuracy,
        "compression": {"macs": 0.5, "latency@cpu": 0.44},
        "latency": {
            "cpu": {
                "limit_ms": 6.0,
                "predicted_ms": 5.6,
                "dense_ms": 10.0,
                "measured_ms": measured_ms,
                "low_ms": measured_ms,
                "high_ms": measured_ms,
                "reason": reason,
            }
        },
    }
    timed = Trial(number, "lc", "lc", "channel_svd", {"epochs": 1}, {"latency@cpu": limit}, 0)
    return row_of(timed, result, [], DENSE, ["cpu"])


@pytest.mark.parametrize("limit", ["6 ms", 0.4, "6000 us"])
def test_a_latency_counts_as_it_was_measured(limit: Bound) -> None:
    row = on_a_device(0, 5.5, 0.9, limit=limit)
    assert (row["latency_ms@cpu"], row["predicted_ms@cpu"]) == (5.5, 5.6)
    assert row["compression_latency@cpu"] == pytest.approx(0.45)
    assert row["budget_cost"] == "latency@cpu"
    assert row["budget_value"] == pytest.approx(0.4)


def test_a_throughput_is_a_latency() -> None:
    timed = Trial(0, "lc", "lc", "channel_svd", {}, {"throughput@cpu": "2x"}, 0)
    row = row_of(timed, None, [], DENSE, ["cpu"])
    assert (row["budget_cost"], row["budget_value"]) == ("latency@cpu", 0.5)
    assert row["latency_ms@cpu"] is None


def test_the_front_is_over_what_was_measured_and_no_faster_than_asked() -> None:
    over = on_a_device(0, 6.2, 0.95)
    just = on_a_device(1, 5.9, 0.9)
    faster = on_a_device(2, 5.0, 0.89)
    assert table_of([over, just, faster])["pareto"].tolist() == [True, True, False]


def test_a_network_that_could_not_be_timed_has_an_empty_cell_and_the_reason() -> None:
    table = table_of(
        [on_a_device(0, None, 0.99, reason="cpu: noisy: a block took twice as long"), on_a_device(1, 5.9, 0.9)]
    )
    assert pd.isna(table["latency_ms@cpu"][0])
    assert table["reason"].tolist() == ["cpu: noisy: a block took twice as long", ""]
    assert table["pareto"].tolist() == [False, True]
    page = sweep_page(table)
    assert "Networks that could not be timed" in page
    assert "Latency on cpu" in page
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(parquet_bytes(table))), table)


def test_without_devices_the_file_is_as_it_was() -> None:
    table = table_of([finished(0, 0.5, 0.9)])
    assert list(table.columns) == SCHEMA.names
    timed = table_of([on_a_device(0, 5.5, 0.9)])
    assert list(timed.columns) == [*SCHEMA.names, "latency_ms@cpu", "predicted_ms@cpu", "compression_latency@cpu"]


def test_the_console_shows_what_was_measured_beside_what_was_predicted() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    show_trials(table_of([on_a_device(0, 5.5, 0.9), on_a_device(1, None, 0.8, reason="cpu: noisy: why")]), console)
    text = console.export_text()
    assert "latency@cpu 6 ms (dense 0.9800; C asked for: 0.4000)" in text
    assert "cpu ms" in text
    assert "5.6" in text
    assert "0001-lc-latency@cpu6ms-s0: not timed: cpu: noisy: why" in text
