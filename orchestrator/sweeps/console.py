"""A sweep's end on the console: its Pareto table, then what did not finish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.progress import duration

__all__ = ["show_trials"]

_HEADS = ("trial", "C", "before", "accuracy", "test", "epochs", "time")
_MOST_REASONS = 10


def show_trials(table: pd.DataFrame, console: Console) -> None:
    """Prints the front of every budgeted cost, best first within a budget, and the rest in numbers.

    Args:
        table: as `outcomes.table_of` makes it.
    """
    finished = table[table["status"] == "finished"]
    for budget, rows in finished.groupby("budget", sort=False):
        ordered = rows.sort_values("accuracy", ascending=False)
        lines = [_cells(row) for row in ordered.to_dict("records")]
        dense = f"dense {ordered['dense_accuracy'].iloc[0]:.4f}"
        _show(f"{budget} ({dense})", lines, console)
    for line in _notes(table):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cells(row: Any) -> tuple[str, ...]:
    compression = row[f"compression_{row['budget_cost']}"]
    scores = (compression, *(row[name] for name in ("accuracy_before", "accuracy", "test_accuracy")))
    shown = ("-" if pd.isna(one) else f"{one:.4f}" for one in scores)
    return (f"{row['trial']}{' *' if row['pareto'] else ''}", *shown, str(row["epochs"]), duration(row["seconds"]))


def _show(title: str, lines: Sequence[tuple[str, ...]], console: Console) -> None:
    framed = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else None)
    for place, head in enumerate(_HEADS):
        framed.add_column(head, justify="right" if place else "left", no_wrap=not console.is_terminal)
    for line in lines:
        framed.add_row(*(Text(cell, style="bold" if line[0].endswith(" *") else "") for cell in line))
    console.print(framed, soft_wrap=not console.is_terminal)


def _notes(table: pd.DataFrame) -> list[str]:
    status = table["status"]
    notes = ["accuracy: on the held-out samples; *: on the Pareto front; C: compression in the budget's cost"]
    notes += [f"{number} {one}" for one in ("stopped", "unfinished") if (number := int((status == one).sum()))]
    failed = table[status == "failed"].to_dict("records")
    notes += [f"{row['trial']}: failed: {row['reason']}" for row in failed[:_MOST_REASONS]]
    if len(failed) > _MOST_REASONS:
        notes.append(f"and {len(failed) - _MOST_REASONS} more that failed; trials.parquet has the reasons")
    return notes
