"""Fills a budget with whole units - ranks, filters - in the order of what training found them worth. Pure Python.

What is learned under a budget is soft: rounded, it costs something else. So rounding starts from the least and adds
units, the most valuable first, each if it still fits; what little is left over goes to the exchange that comes closest.
The result is never above the budget.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

__all__ = ["Price", "fill_budget"]

Usage = tuple[float, ...]
"""By limit, how much of what the limit allows is used: at most 1 fits."""

_LOWERED = (1, 2, 3, 4, 5, 6, 8, 11, 15, 21, 30, 42)
"""Levels by which an exchange lowers one variable: the first three of them where there are many variables."""

_FEW = 12
"""Variables up to which exchanges are of three."""


class Price(Protocol):
    """What levels cost; one level per variable, from 0 on."""

    def used(self, levels: Sequence[int]) -> Usage:
        """The usage at these levels."""

    def used_after(self, levels: Sequence[int], used: Usage, variable: int, level: int) -> Usage:
        """The usage once one variable has changed, given the usage before."""


def fill_budget(
    worths: Sequence[Sequence[float]], price: Price, tolerance: float = 0.01, start: Sequence[int] | None = None
) -> tuple[int, ...] | None:
    """Levels that use as much of the budget as fits.

    Args:
        worths: by variable, what each of its levels from 1 on is worth, compared across variables. A level above a dear
            one is worth no more than that one: levels are added in order.
        price: of levels; one more level usually costs more, but need not (a measured latency).
        tolerance: share of the budget that may be left over before levels are exchanged for a closer fit.
        start: levels to begin from; the lowest where left out.

    Returns:
        One level per variable, or None where even the start does not fit.
    """
    levels = [0] * len(worths) if start is None else list(start)
    used = price.used(levels)
    if not _fits(used):
        return None
    _add_in_order(levels, worths, price)
    for _ in range(len(levels) + 8):
        used = price.used(levels)  # afresh: differences of floats add up
        if max(used) >= 1 - tolerance:
            break
        closer = _closer(levels, used, worths, price, 1 - tolerance)
        if closer is None:
            break
        levels = closer
    return tuple(levels)


def _fits(used: Usage) -> bool:
    return max(used) <= 1


def _add_in_order(levels: list[int], worths: Sequence[Sequence[float]], price: Price) -> None:
    """Adds every unit that fits, the most valuable first; a variable one of whose units does not fit stays."""
    units = []
    for variable, values in enumerate(worths):
        least = float("inf")
        for level, worth in enumerate(values, start=1):
            least = min(least, worth)
            if level > levels[variable]:
                units.append((-least, variable, level))
    full: set[int] = set()
    used = price.used(levels)
    for _, variable, level in sorted(units):
        if variable in full:
            continue
        after = price.used_after(levels, used, variable, level)
        if _fits(after):
            levels[variable], used = level, after
        else:
            full.add(variable)
    while not _fits(price.used(levels)):  # by a rounding error of the differences
        variable = max(range(len(levels)), key=lambda one: levels[one])
        levels[variable] -= 1


def _closer(
    levels: Sequence[int], used: Usage, worths: Sequence[Sequence[float]], price: Price, enough: float
) -> list[int] | None:
    """An exchange that uses `enough`, else the one that comes closest; None if none comes closer than `levels`.

    Lowers one variable or none, then raises another as far as fits. Few variables have few exchanges, and coarse ones:
    where those are not enough, a third is raised after the second went as far as fits or up to two levels less.
    """
    best, found = max(used), None
    for three in (False, True) if len(levels) <= _FEW else (False,):
        for end, usage in _exchanges(levels, used, worths, price, three):
            if best + 1e-12 < max(usage) <= 1:
                best, found = max(usage), end
                if best >= enough:
                    return found
        if found is not None:
            return found
    return found


def _exchanges(
    levels: Sequence[int], used: Usage, worths: Sequence[Sequence[float]], price: Price, three: bool
) -> Iterator[tuple[list[int], Usage]]:
    for start, between in _lowered(levels, used, price):
        for changed, after in _raised(start, between, levels, worths, price, spare=3 if three else 1):
            if three:
                yield from _raised(changed, after, changed, worths, price, spare=1)
            else:
                yield changed, after


def _lowered(levels: Sequence[int], used: Usage, price: Price) -> Iterator[tuple[list[int], Usage]]:
    """The levels themselves, and with each variable some levels lower."""
    yield list(levels), used
    for variable, level in enumerate(levels):
        for by in _LOWERED if len(levels) <= _FEW else _LOWERED[:3]:
            if by <= level:
                after = price.used_after(levels, used, variable, level - by)
                yield [*levels[:variable], level - by, *levels[variable + 1 :]], after


def _raised(
    levels: list[int],
    used: Usage,
    before: Sequence[int],
    worths: Sequence[Sequence[float]],
    price: Price,
    spare: int,
) -> Iterator[tuple[list[int], Usage]]:
    """With each variable raised as far as fits, or up to `spare` - 1 levels less; not one just lowered."""
    for variable, values in enumerate(worths):
        if levels[variable] < before[variable]:
            continue
        highest = _highest_that_fits(levels, used, variable, len(values), price)
        for level in range(max(levels[variable] + 1, highest - spare + 1), highest + 1):
            after = price.used_after(levels, used, variable, level)
            yield [*levels[:variable], level, *levels[variable + 1 :]], after


def _highest_that_fits(levels: Sequence[int], used: Usage, variable: int, most: int, price: Price) -> int:
    """By bisection: exact where more levels cost more."""
    above: Callable[[int], bool] = lambda level: not _fits(price.used_after(levels, used, variable, level))  # noqa: E731
    first = levels[variable] + 1
    return first - 1 + bisect.bisect_left(range(first, most + 1), True, key=above)
