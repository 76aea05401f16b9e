"""How numbers read: percentages, points, counts and durations as text of a fixed shape."""

from __future__ import annotations

import math
from typing import Any

from search_spaces.rank_space import Rank

__all__ = [
    "ABSENT",
    "cost_label",
    "count",
    "decimal",
    "difference",
    "duration",
    "metric",
    "metric_difference",
    "milliseconds",
    "number",
    "percent",
    "plural",
    "rank_text",
    "saved_what",
    "saving",
]

ABSENT = "–"
"""Stands where there is no number."""

_COST_LABELS = {"parameters": "Parameters", "macs": "Multiply-accumulates", "volume": "Activation volume"}
_SAVINGS = {"parameters": "fewer parameters", "macs": "fewer multiply-accumulates"}


def number(value: Any) -> float | None:
    """A finite float, or None for what is missing, NaN or no number at all."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: Any, digits: int = 2) -> str:
    """A ratio as a percentage: 0.4983 is `49.83%`."""
    known = number(value)
    return ABSENT if known is None else _minus(f"{known:.{digits}%}")


def decimal(value: Any, digits: int = 4) -> str:
    """A number with a fixed count of decimals."""
    known = number(value)
    return ABSENT if known is None else _minus(f"{known:,.{digits}f}")


def count(value: Any) -> str:
    """A whole number with thousands separators; a broken one keeps two decimals."""
    known = number(value)
    if known is None:
        return ABSENT
    return _minus(f"{known:,.0f}" if known == int(known) else f"{known:,.2f}")


def metric(name: str, value: Any) -> str:
    """A score: an accuracy in [0, 1] as a percentage, anything else with four decimals."""
    known = number(value)
    is_ratio = name == "accuracy" and known is not None and 0 <= known <= 1
    return percent(value) if is_ratio else decimal(value)


def difference(before: Any, after: Any) -> str:
    """The relative change from `before` to `after`: `−49.83%`."""
    first, second = number(before), number(after)
    if first is None or second is None or first == 0:
        return ABSENT
    return _minus(f"{second / first - 1:+.2%}")


def metric_difference(name: str, before: Any, after: Any) -> str:
    """The change of a score: percentage points for an accuracy, else a plain difference."""
    first, second = number(before), number(after)
    if first is None or second is None:
        return ABSENT
    if name == "accuracy" and 0 <= first <= 1 and 0 <= second <= 1:
        return _minus(f"{100 * (second - first):+.2f}\N{NO-BREAK SPACE}points")
    return _minus(f"{second - first:+.4f}")


def milliseconds(value: Any) -> str:
    """A latency in ms as text of three digits: `12.3 ms`, `482 µs`."""
    known = number(value)
    if known is None:
        return ABSENT
    if known == 0 or abs(known) >= 0.9995:
        return _minus(f"{known:.3g}\N{NO-BREAK SPACE}ms" if abs(known) < 999.5 else f"{known:,.0f}\N{NO-BREAK SPACE}ms")
    return _minus(f"{1000 * known:.3g}\N{NO-BREAK SPACE}µs")


def duration(seconds: Any) -> str:
    """Seconds as text of two units at most: `12 ms`, `3.4 s`, `2 min 3 s`, `1 h 5 min`."""
    known = number(seconds)
    if known is None:
        return ABSENT
    if known < 1:
        return f"{1000 * known:.3g} ms"
    if known < 60:
        return f"{known:.1f} s"
    if known < 3600:
        return f"{int(known // 60)} min {int(known % 60)} s"
    return f"{int(known // 3600):,} h {int(known % 3600 // 60)} min"


def plural(amount: int, noun: str) -> str:
    """`1 layer`, `20 layers`."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def rank_text(rank: Rank | None) -> str:
    """A layer's rank: `12`; `8 × 6`, slices times the rank in each, where it is sliced; `dense`."""
    if rank is None:
        return "dense"
    return str(rank) if isinstance(rank, int) else " × ".join(str(one) for one in rank)


def cost_label(name: str) -> str:
    """A cost's name as a heading: `latency@orin` is `Latency on orin`."""
    if "@" in name:
        return " on ".join((name.partition("@")[0].capitalize(), name.partition("@")[2]))
    return _COST_LABELS.get(name, name.replace("_", " ").capitalize())


def saving(name: str, value: Any) -> str:
    """A compression in words: `49.83% fewer parameters`."""
    return f"{percent(value)} {saved_what(name)}"


def saved_what(name: str) -> str:
    """What a compression saves: `fewer parameters`, `less activation volume`."""
    return _SAVINGS.get(name, f"less {cost_label(name).lower()}")


def _minus(text: str) -> str:
    """With the minus sign that is as wide as a plus."""
    return text.replace("-", "−")
