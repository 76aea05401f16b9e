"""The report's colours, once for light and once for dark; pictures name them and the page resolves them.

A picture is painted in the light colours; the page then swaps each for a CSS variable, so that one picture is
right in light, in dark and on paper. The series colours keep apart for colour-blind readers (after Okabe and Ito,
darkened for white paper), and no picture tells things apart by colour alone: marks and dashes differ too.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COLOURS", "LINES", "SYMBOLS", "Colour", "line", "series_colour", "symbol"]


@dataclass(frozen=True)
class Colour:
    """One colour as `#rrggbb` for a light and for a dark page."""

    light: str
    dark: str


COLOURS = {
    "paper": Colour("#fefefe", "#15181c"),
    "panel": Colour("#f5f6f8", "#1c2026"),
    "ink": Colour("#1c2127", "#e7eaee"),
    "muted": Colour("#59636e", "#a3adb8"),
    "rule": Colour("#d9dee3", "#343b43"),
    "cloud": Colour("#a9b3bd", "#5d6873"),
    "bar": Colour("#e3e7eb", "#2c333b"),
    "warning": Colour("#9a3b00", "#ffb37a"),
    "warning-panel": Colour("#fff4ea", "#33231a"),
    "series-1": Colour("#0b69ad", "#62b5f2"),
    "series-2": Colour("#c44e08", "#f7935c"),
    "series-3": Colour("#007d5d", "#41d1a8"),
    "series-4": Colour("#97478f", "#dd9fd7"),
    "series-5": Colour("#8d6a00", "#e5bb45"),
    "series-6": Colour("#2f89ad", "#9adcf5"),
}
"""By the name of the CSS variable; no two have the same light value, which is how a picture's colours are found."""

_SERIES = ("series-1", "series-2", "series-3", "series-4", "series-5", "series-6")

SYMBOLS = {"dot": "o", "square": "s", "diamond": "D", "up": "^", "down": "v", "plus": "P", "cross": "X"}
"""matplotlib's marker by the legend's name for it."""

LINES = {"line": "-", "dashed": (0, (5, 2)), "dotted": (0, (1.5, 1.5)), "dashdot": (0, (6, 2, 1.5, 2))}
"""matplotlib's dash by the legend's name for it."""


def series_colour(index: int) -> str:
    """Name of the colour of the series with this index; they repeat after six, with other marks and dashes."""
    return _SERIES[index % len(_SERIES)]


def symbol(index: int) -> str:
    """Name of the symbol of the series with this index."""
    return list(SYMBOLS)[index % len(SYMBOLS)]


def line(index: int) -> str:
    """Name of the line of the series with this index."""
    return list(LINES)[index % len(LINES)]
