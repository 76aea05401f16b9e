"""The comparison's page: a line for each search, and the table behind it."""

from __future__ import annotations

import pandas as pd
import pytest

from orchestrator.comparison.outcomes import Outcome, table_of
from orchestrator.comparison.page import comparison_page, curves_of, searches_section
from orchestrator.report.section import Picture, Table
from tests.orchestrator.comparison.conftest import outcome, planned, timed_table
from tests.orchestrator.report.test_page import Page


def test_a_line_per_search_and_a_row_per_run(table: pd.DataFrame) -> None:
    section = searches_section(table)
    picture, rows, reasons = section.blocks
    assert isinstance(picture, Picture)
    assert [entry.label for entry in picture.legend] == ["alds", "uni_form", "dense network"]
    assert isinstance(rows, Table)
    assert [row[3] for row in rows.rows] == ["best", "met", "infeasible", "failed"]
    assert isinstance(reasons, Table)
    assert len(reasons.rows) == 2
    assert "2 searches under 2 budgets: 2 of 4 runs finished" in section.sentences[0]


def test_a_line_goes_through_the_means_over_seeds_by_rising_compression() -> None:
    runs = planned({"budgets": [0.7, 0.5], "seeds": [0, 1], "searches": {"alds": {}}})
    values = [(0.6, 0.72), (0.4, 0.7), (0.9, 0.5), (0.8, 0.52)]
    table = table_of([(run, outcome(a, 1.0, saved=s)) for run, (a, s) in zip(runs, values, strict=True)])
    curve = curves_of(table, "alds", "parameters", "validation")
    assert curve["x"].tolist() == pytest.approx([0.51, 0.71])
    assert curve["accuracy"].tolist() == pytest.approx([0.85, 0.5])
    assert curves_of(table, "alds", "macs", "validation").empty


def test_a_limited_device_has_its_panel_over_measured_latency() -> None:
    picture, rows, _ = searches_section(timed_table()).blocks
    assert isinstance(picture, Picture)
    assert ("alds", "Latency on cpu", "validation", "62.50%", "80.00%") in picture.table.rows
    assert isinstance(rows, Table)
    assert rows.rows[0][4:8] == ("50.00%", "50.00%", "50.00%", "62.50%")


def test_the_page_is_whole_and_escapes_reasons(table: pd.DataFrame) -> None:
    html = comparison_page(table, [])
    page = Page(html)
    assert "<b>disk" not in html
    assert "<b>disk</b> [red]full[/red]" in "".join(page.text)
    assert all({"svg", "table"} <= tags for tags in page.within["figure"])


def test_there_is_a_page_even_if_nothing_finished() -> None:
    runs = planned({"budgets": [0.5], "searches": {"alds": {}}})
    table = table_of([(runs[0], Outcome("infeasible", "no rank vector meets 0.5", "runs/x"))])
    assert "no rank vector meets 0.5" in "".join(Page(comparison_page(table, [])).text)
