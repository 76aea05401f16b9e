"""Which marks of a dense scatter to draw: one for each cell of a grid, so that nothing visible is lost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_MARKS", "one_per_cell"]

MOST_MARKS = 1500
"""Marks in one scatter: about 40 kB of SVG."""

_FINEST = 300


def one_per_cell(x: npt.ArrayLike, y: npt.ArrayLike, *, limit: int = MOST_MARKS) -> npt.NDArray[np.intp]:
    """Indices of at most `limit` points that stand for all: the first in each occupied cell of a grid.

    The grid spans the points with 300 x 300 cells, about a pixel each, and is made coarser until the limit holds.
    No chance is involved: the same points give the same marks.

    Args:
        x, y: `(n,)` finite floats.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) <= limit:
        return np.arange(len(xs))
    cells = _FINEST
    while True:
        index = _cell(xs, cells) * cells + _cell(ys, cells)
        first = np.unique(index, return_index=True)[1]
        if len(first) <= limit or cells == 1:
            return np.sort(first)
        cells = max(1, int(cells * 0.8))


def _cell(values: npt.NDArray[np.float64], cells: int) -> npt.NDArray[np.intp]:
    """Cell number of every value, of `cells` equal ones over their range."""
    low, span = values.min(), np.ptp(values)
    scaled = (values - low) / (span if span > 0 else 1.0)
    cell: npt.NDArray[np.intp] = np.minimum((scaled * cells).astype(np.intp), cells - 1)
    return cell
