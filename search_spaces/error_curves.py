"""Error curves: how much of a layer is lost at each of its ranks. Allocations decide by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from search_spaces.rank_space import Rank

__all__ = ["MEASURES", "ErrorCurve", "relative_errors"]

MEASURES: Mapping[str, str] = MappingProxyType(
    {
        "max_slice": "the largest first omitted singular value of a slice over the whole weight's largest (ALDS' code)",
        "operator": "the operator norm of the error over that of the weight",
        "bound": "sqrt(k) times `max_slice`: what ALDS' lemma guarantees",
        "frobenius": "the Frobenius norm of the error over that of the weight",
    }
)
"""Measures of a truncation's relative error, each 0 for the dense layer; with a moment, of the whitened one."""


@dataclass(frozen=True)
class ErrorCurve:
    """The error of one layer at every rank.

    Attributes:
        ranks: of the layer, in the scheme's order.
        errors: aligned with `ranks`; relative, so that layers compare.
        singular_values: of the whole (whitened) weight, descending, for methods that look at the spectrum itself.
    """

    ranks: Sequence[Rank]
    errors: Sequence[float]
    singular_values: Sequence[float] = field(default=())


def relative_errors(singular_values: Sequence[float], measure: str) -> list[float]:
    """The errors of one matrix truncated to the ranks 0 to q, by its q singular values; a zero matrix has none.

    Args:
        singular_values: descending.
        measure: of `MEASURES`; for a single matrix all but `frobenius` are the same.
    """
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}; there are {', '.join(MEASURES)}")
    if measure != "frobenius":
        largest = singular_values[0] if singular_values else 0.0
        return [value / largest if largest > 0 else 0.0 for value in (*singular_values, 0.0)]
    tails = [0.0]
    for value in reversed(singular_values):
        tails.append(tails[-1] + value * value)
    tails.reverse()
    return [math.sqrt(tail / tails[0]) if tails[0] > 0 else 0.0 for tail in tails]
