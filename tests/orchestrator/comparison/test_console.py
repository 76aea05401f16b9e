"""The table on the console: readable on a terminal, and plain lines where there is none."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from orchestrator.comparison.console import show_table


def shown(table: pd.DataFrame, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=110, no_color=True)
    show_table(table, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_every_run_is_there_and_the_best_has_a_star(table: pd.DataFrame, terminal: bool) -> None:
    text = shown(table, terminal)
    for part in ("alds *", "uni_form", "0.5100", "1,200", "parameters 0.5", "parameters 0.7", "alds (infeasible)"):
        assert part in text, part
    assert "uni_form *" not in text
    assert "by validation loss; test data choose nothing" in text
    assert "alds, parameters 0.7, seed 0: infeasible: no rank vector meets 0.7" in text
    assert "<b>disk</b> [red]full[/red]" in text, "reasons are no markup"


def test_without_a_terminal_columns_are_aligned_and_nothing_else_is_written(table: pd.DataFrame) -> None:
    text = shown(table, terminal=False)
    assert text.isascii()
    lines = [line for line in text.splitlines() if line.startswith(("search ", "alds *", "uni_form "))]
    assert len({len(line) for line in lines}) == 1
    assert "\x1b" not in text


def test_nothing_is_said_of_a_best_where_there_is_none(table: pd.DataFrame) -> None:
    assert "*" not in shown(table.assign(best=False), terminal=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_was_saved_of_a_limited_devices_latency_has_a_column(table: pd.DataFrame, terminal: bool) -> None:
    text = shown(table.assign(**{"compression_latency@cpu": 0.4137}), terminal)
    for part in ("latency@cpu", "0.4137", "volume, latency@cpu: compression C(r)"):
        assert part in text, part
    assert "latency" not in shown(table, terminal)
