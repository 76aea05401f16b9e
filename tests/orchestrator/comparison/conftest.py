"""A comparison's config, the runs that it asks for, and results of any kind for them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from orchestrator.comparison.outcomes import Outcome, table_of
from orchestrator.comparison.settings import PlannedRun, complete, planned_runs


def raw_config(compare: Any, **search: Any) -> dict[str, Any]:
    """A config that names nothing that is opened."""
    return {
        "model": {"build": "workers.models:digits_cnn"},
        "data": {"train": {"dataset": "workers.digits:digits"}},
        "search": {"method": "mbs", "budget": {"parameters": 0.5}, "objective": "cross_entropy", **search},
        "compare": compare,
    }


def planned(compare: Any, **search: Any) -> list[PlannedRun]:
    return planned_runs(complete(raw_config(compare, **search), "config"))


def result(accuracy: float, loss: float, *, saved: float = 0.5, in_window: bool = True) -> dict[str, Any]:
    """`result.json` as far as a comparison reads it; on test data whoever loses elsewhere is ahead."""
    costs = {
        cost: {"compression": saved, "network": {"dense": 100.0, "compressed": 100 * (1 - saved)}}
        for cost in ("parameters", "macs", "volume")
    }
    dense = {split: {"accuracy": 0.9, "loss": 0.3} for split in ("validation", "test")}
    compressed = {
        "validation": {"accuracy": accuracy, "loss": loss},
        "test": {"accuracy": 1 - accuracy, "loss": 1 / loss},
    }
    scores = {"dense": dense, "compressed": compressed}
    return {"in_window": in_window, "costs": costs, "scores": scores, "evaluations": 1200, "seconds": 3.25}


def outcome(*values: Any, **options: Any) -> Outcome:
    return Outcome("finished", "", "runs/x", result(*values, **options))


@pytest.fixture
def table() -> pd.DataFrame:
    """Two searches under two budgets: two finished, one infeasible, one failed."""
    runs = planned({"budgets": [0.5, 0.7], "searches": {"alds": {}, "uni_form": {"method": "uniform"}}})
    ends = [
        outcome(0.8, 0.4, saved=0.51),
        outcome(0.7, 0.6, saved=0.5),
        Outcome("infeasible", "no rank vector meets 0.7", "runs/x"),
        Outcome("failed", "<b>disk</b> [red]full[/red]", "runs/x"),
    ]
    return table_of(list(zip(runs, ends, strict=True)))


def timed_table() -> pd.DataFrame:
    """Two searches with twice a device's throughput as their budget: one finished, one failed."""
    runs = planned({"budgets": [{"throughput": {"cpu": "2x"}}], "searches": {"alds": {}, "uniform": {}}})
    latency = {"latency": {"cpu": {"measured_ms": 3.0, "dense_ms": 8.0}}}
    ends = [Outcome("finished", "", "runs/x", result(0.8, 0.4) | latency), Outcome("failed", "it hung", "runs/x")]
    return table_of(list(zip(runs, ends, strict=True)))
