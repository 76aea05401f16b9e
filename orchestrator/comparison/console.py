"""A comparison's table on the console: framed on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console

from orchestrator.comparison.outcomes import costs_of, judged_by
from orchestrator.console_table import print_framed, print_line, print_plain

__all__ = ["show_table"]

_SCORES = (
    ("accuracy", "validation_accuracy", ".4f"),
    ("loss", "validation_loss", ".4f"),
    ("test accuracy", "test_accuracy", ".4f"),
    ("candidates", "evaluations", ",.0f"),
    ("seconds", "seconds", ",.1f"),
)
_Columns = Sequence[tuple[str, str, str]]
"""Heads, columns of the table, and how their numbers are written."""


def show_table(table: pd.DataFrame, console: Console) -> None:
    """Prints the runs, budget by budget.

    Args:
        table: as `outcomes.table_of` makes it.
    """
    groups = list(table.groupby(["budget", "seed"], sort=False))
    titles = [f"{budget}" + (f", seed {seed}" if table["seed"].nunique() > 1 else "") for (budget, seed), _ in groups]
    columns: _Columns = [*((cost, f"compression_{cost}", ".4f") for cost in costs_of(table)), *_SCORES]
    heads = ("search", *(head for head, _, _ in columns))
    cells = [[_cells(row, columns) for row in rows.to_dict("records")] for _, rows in groups]
    if console.is_terminal:
        for title, lines in zip(titles, cells, strict=True):
            print_framed(title, heads, lines, console)
    else:
        print_plain(heads, list(zip(titles, cells, strict=True)), console)
    for line in _notes(table):
        print_line(line, console)


def _cells(row: Any, columns: _Columns) -> tuple[str, ...]:
    """A run's cells; the best of its budget and seed has a star."""
    numbers = tuple("-" if pd.isna(row[name]) else format(row[name], shape) for _, name, shape in columns)
    status = {"finished": "" if row["in_window"] else " (missed)"}.get(row["status"], f" ({row['status']})")
    return (f"{row['search']}{' *' if row['best'] else ''}{status}", *numbers)


def _notes(table: pd.DataFrame) -> list[str]:
    """What the table's signs mean, and why runs did not finish."""
    notes = [f"{', '.join(costs_of(table))}: compression C(r); accuracy, loss: on the validation data"]
    if table["taken_over"].gt(0).any():
        notes.append("searches on the same evaluators share scores: each is shown its part of the seconds that passed")
    if table["best"].any():
        by = judged_by(table.attrs["objective"]).replace("_", " ")
        notes.append(f"*: the best within the budget by {by}; test data choose nothing")
    for row in table[table["reason"] != ""].to_dict("records"):
        notes.append(f"{row['search']}, {row['budget']}, seed {row['seed']}: {row['status']}: {row['reason']}")
    return notes
