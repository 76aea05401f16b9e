"""A comparison's table on the console: framed on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.comparison.outcomes import costs_of, judged_by

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
            console.print(_framed(title, heads, lines))
    else:
        _plain(titles, heads, cells, console)
    for line in _notes(table):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cells(row: Any, columns: _Columns) -> tuple[str, ...]:
    """A run's cells; the best of its budget and seed has a star."""
    numbers = tuple("-" if pd.isna(row[name]) else format(row[name], shape) for _, name, shape in columns)
    status = {"finished": "" if row["in_window"] else " (missed)"}.get(row["status"], f" ({row['status']})")
    return (f"{row['search']}{' *' if row['best'] else ''}{status}", *numbers)


def _framed(title: str, heads: Sequence[str], lines: Sequence[tuple[str, ...]]) -> Table:
    framed = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for place, head in enumerate(heads):
        framed.add_column(head, justify="right" if place else "left", overflow="fold")
    for line in lines:
        best = " *" in line[0]
        framed.add_row(*(Text(cell, style="bold" if best else "") for cell in line))
    return framed


def _plain(
    titles: Sequence[str], heads: Sequence[str], cells: Sequence[Sequence[tuple[str, ...]]], console: Console
) -> None:
    rows = [line for lines in cells for line in lines]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def say(line: Sequence[str]) -> None:
        padded = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        console.print("  ".join(padded).rstrip(), highlight=False, markup=False, soft_wrap=True)

    say(heads)
    for title, lines in zip(titles, cells, strict=True):
        console.print(f"{title}:", highlight=False, markup=False, soft_wrap=True)
        for line in lines:
            say(line)


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
