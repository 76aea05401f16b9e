"""A sweep's end on the console: its Pareto table, then what did not finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    for budget, rows in finished.groupby("budget", sort=False):
        ordered = rows.sort_values("accuracy", ascending=False)
        lines = [_cells(row, devices) for row in ordered.to_dict("records")]
        _show(f"{budget} ({_terms(ordered)})", devices, lines, console)
    for line in _notes(table):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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


def _show(title: str, devices: Sequence[str], lines: Sequence[tuple[str, ...]], console: Console) -> None:
    timed = [head for device in devices for head in (f"{device} ms", "predicted")]
    heads = (*_HEADS[:-2], *timed, *_HEADS[-2:])
    if not console.is_terminal:  # into a file a table is as wide as it is
        _print_plain(title, [heads, *lines], console)
        return
    framed = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for place, head in enumerate(heads):
        framed.add_column(head, justify="right" if place else "left")
    for line in lines:
        framed.add_row(*(Text(cell, style="bold" if line[0].endswith(" *") else "") for cell in line))
    console.print(framed)


def _print_plain(title: str, lines: Sequence[tuple[str, ...]], console: Console) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    for text in (title, *("  ".join(cells).rstrip() for cells in padded)):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


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
