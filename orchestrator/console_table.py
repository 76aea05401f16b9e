"""A table of texts on the console: framed on a terminal; elsewhere plain aligned lines, as wide as they are."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Line", "print_framed", "print_line", "print_plain"]

Line = Sequence[str]


def print_framed(title: str, heads: Line, lines: Sequence[Line], console: Console) -> None:
    """For a terminal; a line whose first cell has a star is bold."""
    framed = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for place, head in enumerate(heads):
        framed.add_column(head, justify="right" if place else "left", overflow="fold")
    for line in lines:
        framed.add_row(*(Text(cell, style="bold" if " *" in line[0] else "") for cell in line))
    console.print(framed)


def print_plain(heads: Line, groups: Sequence[tuple[str, Sequence[Line]]], console: Console) -> None:
    """For files and pipes: the heads once, then the groups under their titles, all of one width."""
    rows = [heads, *(line for _, lines in groups for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for title, lines in [("", [heads]), *groups]:
        if title:
            print_line(f"{title}:", console)
        for first, *others in lines:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            print_line("  ".join([first.ljust(widths[0]), *cells]).rstrip(), console)


def print_line(text: str, console: Console) -> None:
    """A line as it is: no markup, no highlighting, not wrapped."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
