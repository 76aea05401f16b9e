"""The table of a comparison: a row for every run, and the best told by validation data."""

from __future__ import annotations

import io
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest

from orchestrator.comparison.outcomes import SCHEMA, Outcome, costs_of, parquet_bytes, table_of
from tests.orchestrator.comparison.conftest import outcome, planned, timed_table

THREE = {"budgets": [0.5], "searches": {"alds": {}, "mbs": {}, "uniform": {}}}


def best_of(ends: list[Outcome], objective: str) -> list[str]:
    table = table_of(list(zip(planned(THREE, objective=objective), ends, strict=True)))
    return table.loc[table["best"], "search"].tolist()


@pytest.mark.parametrize(("objective", "best"), [("accuracy", "alds"), ("cross_entropy", "mbs"), ("kl", "mbs")])
def test_the_best_is_told_by_the_validation_data_and_the_objective(objective: str, best: str) -> None:
    """`uniform` is far ahead on the test data."""
    assert best_of([outcome(0.9, 0.5), outcome(0.8, 0.4), outcome(0.1, 9.0)], objective) == [best]


def test_a_run_outside_its_window_is_never_the_best() -> None:
    assert best_of([outcome(0.9, 0.1, in_window=False), outcome(0.8, 0.4), outcome(0.8, 0.5)], "accuracy") == [
        "mbs",
        "uniform",
    ]


def test_a_score_that_is_no_number_and_a_run_without_result_are_never_the_best() -> None:
    failed = Outcome("failed", "no room", "runs/x")
    assert best_of([outcome(math.nan, math.nan), failed, outcome(0.1, 9.0)], "accuracy") == ["uniform"]
    assert best_of([failed] * 3, "accuracy") == []


def test_each_budget_and_seed_has_its_best() -> None:
    runs = planned({"budgets": [0.5, 0.7], "seeds": [0, 1], "searches": {"alds": {}, "mbs": {}}})
    losses = [1, 2, 4, 3, 5, 6, 8, 7]
    table = table_of([(run, outcome(0.5, loss)) for run, loss in zip(runs, losses, strict=True)])
    assert table["best"].tolist() == [True, False, False, True, True, False, False, True]


def test_the_file_holds_the_table_and_needs_nobody_to_read_it(table: pd.DataFrame) -> None:
    written = pq.read_table(io.BytesIO(parquet_bytes(table)))
    assert written.schema.remove_metadata() == SCHEMA
    rows = written.to_pylist()
    assert [row["status"] for row in rows] == ["finished", "finished", "infeasible", "failed"]
    assert rows[0] | {"search": "alds", "compression_macs": 0.51, "macs": 49.0, "validation_loss": 0.4} == rows[0]
    assert rows[0] | {"budget_cost": "parameters", "budget_value": 0.5, "evaluations": 1200, "best": True} == rows[0]
    assert rows[0] | {"dense_test_accuracy": 0.9, "test_accuracy": pytest.approx(0.2)} == rows[0]
    assert rows[1]["method"] == "uniform"
    for row in rows[2:]:
        assert row["evaluations"] is row["in_window"] is row["test_loss"] is row["parameters"] is None
        assert row["reason"]


def test_of_a_limited_device_it_has_what_was_measured() -> None:
    written = pq.read_table(io.BytesIO(parquet_bytes(timed_table()))).to_pylist()
    assert [row["compression_latency@cpu"] for row in written] == [0.625, None]
    assert costs_of(timed_table()) == ["parameters", "macs", "volume", "latency@cpu"]
