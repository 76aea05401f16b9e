"""A sweep's end on the console: its Pareto table, then what did not finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from orchestrator.console_table import print_framed, print_line, print_plain
from orchestrator.progress import duration
from orchestrator.sweeps.outcomes import devices_of_table
from orchestrator.sweeps.trials import LATENCY
from search_spaces.latency import limited_device

__all__ = ["show_trials"]

_HEADS = ("trial", "C", "before", "accuracy", "test", "epochs", "time")
_MOST_REASONS = 10


def show_trials(table: pd.DataFrame, console: Console) -> None:
    """Prints the front of every budgeted cost, best first within a budget, and the rest in numbers.

    Args:
        table: as `outcomes.table_of` makes it.
    """
    finished, devices = table[table["status"] == "finished"], devices_of_table(table.columns)
    timed = [head for device in devices for head in (f"{device} ms", "predicted")]
    heads = (*_HEADS[:-2], *timed, *_HEADS[-2:])
    groups = []
    for budget, rows in finished.groupby("budget", sort=False):
        ordered = rows.sort_values("accuracy", ascending=False)
        lines = [_cells(row, devices) for row in ordered.to_dict("records")]
        groups.append((f"{budget} ({_terms(ordered)})", lines))
    if console.is_terminal:
        for title, lines in groups:
            print_framed(title, heads, lines, console)
    else:
        print_plain(heads, groups, console)
    for line in _notes(table):
        print_line(line, console)


def _terms(rows: pd.DataFrame) -> str:
    """The dense network's accuracy, and what a limit in ms or samples per second asks for as C."""
    dense = f"dense {rows['dense_accuracy'].iloc[0]:.4f}"
    asked = rows["budget_value"].max() if limited_device(rows["budget_cost"].iloc[0]) else math.nan
    return dense if math.isnan(asked) else f"{dense}; C asked for: {asked:.4f}"


def _cells(row: Any, devices: Sequence[str]) -> tuple[str, ...]:
    compression = row[f"compression_{row['budget_cost']}"]
    scores = (compression, *(row[name] for name in ("accuracy_before", "accuracy", "test_accuracy")))
    shown = ("-" if pd.isna(one) else f"{one:.4f}" for one in scores)
    times = [row[name] for device in devices for name in (f"{LATENCY}{device}", f"predicted_ms@{device}")]
    timed = ("-" if pd.isna(one) else f"{one:.4g}" for one in times)
    name = f"{row['trial']}{' *' if row['pareto'] else ''}"
    return (name, *shown, *timed, str(row["epochs"]), duration(row["seconds"]))


def _notes(table: pd.DataFrame) -> list[str]:
    status = table["status"]
    notes = ["accuracy: on the held-out samples; *: on the Pareto front; C: compression in the budget's cost"]
    if devices_of_table(table.columns):
        notes.append("ms: of the whole network as measured; C of a latency: the share of the dense network's it saves")
    notes += [f"{number} {one}" for one in ("stopped", "unfinished") if (number := int((status == one).sum()))]
    failed = table[status == "failed"].to_dict("records")
    notes += [f"{row['trial']}: failed: {row['reason']}" for row in failed[:_MOST_REASONS]]
    if len(failed) > _MOST_REASONS:
        notes.append(f"and {len(failed) - _MOST_REASONS} more that failed; trials.parquet has the reasons")
    untimed = table[(status == "finished") & (table["reason"] != "")].to_dict("records")
    notes += [f"{row['trial']}: not timed: {row['reason']}" for row in untimed[:_MOST_REASONS]]
    return notes
