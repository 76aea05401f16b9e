"""A comparison's table on the console: framed on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.comparison.outcomes import judged_by

__all__ = ["cells_of", "show_table"]

_HEADS = ("search", "parameters", "macs", "volume", "accuracy", "loss", "test accuracy", "candidates", "seconds")
_COLUMNS = (
    ("compression_parameters", ".4f"),
    ("compression_macs", ".4f"),
    ("compression_volume", ".4f"),
    ("validation_accuracy", ".4f"),
    ("validation_loss", ".4f"),
    ("test_accuracy", ".4f"),
    ("evaluations", ",.0f"),
    ("seconds", ",.1f"),
)


def show_table(table: pd.DataFrame, console: Console) -> None:
    """Prints the runs, budget by budget.

    Args:
        table: as `outcomes.table_of` makes it.
    """
    groups = list(table.groupby(["budget", "seed"], sort=False))
    titles = [f"{budget}" + (f", seed {seed}" if table["seed"].nunique() > 1 else "") for (budget, seed), _ in groups]
    cells = [[cells_of(row) for row in rows.to_dict("records")] for _, rows in groups]
    if console.is_terminal:
        for title, lines in zip(titles, cells, strict=True):
            console.print(_framed(title, lines))
    else:
        _plain(titles, cells, console)
    for line in _notes(table):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def cells_of(row: Any) -> tuple[str, ...]:
    """A run's cells; the best of its budget and seed has a star."""
    numbers = tuple("-" if pd.isna(row[name]) else format(row[name], shape) for name, shape in _COLUMNS)
    status = {"finished": "" if row["in_window"] else " (missed)"}.get(row["status"], f" ({row['status']})")
    return (f"{row['search']}{' *' if row['best'] else ''}{status}", *numbers)


def _framed(title: str, lines: Sequence[tuple[str, ...]]) -> Table:
    framed = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for place, head in enumerate(_HEADS):
        framed.add_column(head, justify="right" if place else "left", overflow="fold")
    for line in lines:
        best = " *" in line[0]
        framed.add_row(*(Text(cell, style="bold" if best else "") for cell in line))
    return framed


def _plain(titles: Sequence[str], cells: Sequence[Sequence[tuple[str, ...]]], console: Console) -> None:
    rows = [line for lines in cells for line in lines]
    widths = [max(map(len, column)) for column in zip(_HEADS, *rows, strict=True)]

    def say(line: Sequence[str]) -> None:
        padded = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        console.print("  ".join(padded).rstrip(), highlight=False, markup=False, soft_wrap=True)

    say(_HEADS)
    for title, lines in zip(titles, cells, strict=True):
        console.print(f"{title}:", highlight=False, markup=False, soft_wrap=True)
        for line in lines:
            say(line)


def _notes(table: pd.DataFrame) -> list[str]:
    """What the table's signs mean, and why runs did not finish."""
    notes = ["parameters, macs, volume: compression C(r); accuracy, loss: on the validation data"]
    if table["taken_over"].gt(0).any():
        notes.append("searches on the same evaluators share scores: each is shown its part of the seconds that passed")
    if table["best"].any():
        by = judged_by(table.attrs["objective"]).replace("_", " ")
        notes.append(f"*: the best within the budget by {by}; test data choose nothing")
    for row in table[table["reason"] != ""].to_dict("records"):
        notes.append(f"{row['search']}, {row['budget']}, seed {row['seed']}: {row['status']}: {row['reason']}")
    return notes
