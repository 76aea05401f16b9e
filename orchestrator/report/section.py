"""What a section of the report consists of: sentences, key facts, tables, and pictures with their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup

from orchestrator.report.run_data import RunData

__all__ = ["Block", "Column", "Fact", "LegendEntry", "Picture", "Section", "SectionBuilder", "Table", "table"]


@dataclass(frozen=True)
class Column:
    """A column's heading; numbers are set flush right in figures of equal width."""

    title: str
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """A table of text, ready to print; every row is as long as `columns`.

    Attributes:
        note: what a reader must know of the rows: how many were left out, and where they are.
        folded: behind a line to click on.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class LegendEntry:
    """A key of a picture.

    Attributes:
        mark: `bar`, `tick`, `ring`; a symbol of `theme.SYMBOLS`; a line of `theme.LINES` or `thin`; or a line and a
            symbol (`dashed square`). The page draws it.
        colour: a name of `theme.COLOURS`.
    """

    label: str
    mark: str
    colour: str


@dataclass(frozen=True)
class Picture:
    """A figure and the table behind it: there is no picture without one.

    Attributes:
        svg: inline SVG that carries its own text alternative.
        caption: what to see in it, and what it leaves out.
    """

    title: str
    svg: Markup
    caption: str
    legend: tuple[LegendEntry, ...]
    table: Table


@dataclass(frozen=True)
class Fact:
    """One number worth a large type size, with what it is and what it compares to."""

    label: str
    value: str
    note: str = ""


Block: TypeAlias = Table | Picture


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        sentences: plain text, one paragraph each; escaped by the page.
        blocks: in reading order, after the sentences.
        warning: a sentence the reader must not miss (the window was missed; the run is unfinished).
        facts: the few numbers one looks for first.
    """

    title: str
    sentences: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    warning: str = ""
    facts: tuple[Fact, ...] = ()


SectionBuilder: TypeAlias = Callable[[Sequence[RunData]], Section | None]
"""Builds one section from one run or several; None where it has nothing to show."""


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    limit: int = 200,
    order: str = "the first",
    total: int | None = None,
    folded: bool = False,
) -> Table:
    """A table of at most `limit` rows that says how many it leaves out.

    Args:
        order: which rows come first, for that sentence (`the best`).
        total: rows there are, where `rows` holds only the first of them.
    """
    kept = tuple(tuple(row) for row in rows[:limit])
    total = len(rows) if total is None else total
    left_out = total - len(kept)
    note = ""
    if left_out:
        note = f"Shown: {order} {len(kept):,} of {total:,} rows. {left_out:,} rows were left out of this page; "
        note += "the run directory has them all."
    return Table(caption, tuple(columns), kept, note, folded)
