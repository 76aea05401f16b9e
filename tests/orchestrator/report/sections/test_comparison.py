"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.report import RunData
from orchestrator.report.quantities import percent
from orchestrator.report.section import Picture, Section, Table
from orchestrator.report.sections.comparison import comparison


def table_of(section: Section, caption: str) -> Table:
    """The section's table with this caption."""
    (found,) = [block for block in section.blocks if isinstance(block, Table) and block.caption == caption]
    return found


def test_every_run_is_a_row_with_what_it_reached(sample_run: Callable[..., RunData]) -> None:
    runs = [sample_run("a"), sample_run("b", in_window=False), sample_run("c", finished=False)]
    rows = table_of(comparison(runs), "What was reached").rows
    assert [row[:2] for row in rows] == [("a", "met"), ("b", "missed"), ("c", "unfinished")]
    assert runs[0].result is not None
    assert rows[0][2] == percent(runs[0].result["costs"]["parameters"]["compression"])
    assert rows[2][2] == "–"


def test_the_ranks_stand_beside_each_other(sample_run: Callable[..., RunData]) -> None:
    runs = [sample_run("a"), sample_run("b", seed=1)]
    ranks = table_of(comparison(runs), "Ranks per layer")
    assert [column.title for column in ranks.columns] == ["Layer", "a", "b"]
    for layer, *chosen in ranks.rows:
        expected = [run.result["ranks"][layer] for run in runs if run.result is not None]
        assert chosen == ["dense" if rank is None else str(rank) for rank in expected]


def test_runs_on_other_data_are_not_compared_without_a_word(sample_run: Callable[..., RunData]) -> None:
    one, other = sample_run("a"), sample_run("b")
    assert comparison([one, other]).warning == ""
    moved = replace(other, space={**other.space, "fingerprints": {"model": "5f1d0c2ab9e7", "data": "other"}})
    assert "different data" in comparison([one, moved]).warning


def test_more_runs_than_colours_still_differ_in_mark_or_line(sample_run: Callable[..., RunData]) -> None:
    runs = [replace(sample_run(), name=f"run {index}") for index in range(12)]
    (picture,) = [block for block in comparison(runs).blocks if isinstance(block, Picture)]
    keys = [(entry.mark, entry.colour) for entry in picture.legend]
    assert len(keys) == len(set(keys)) == 13
