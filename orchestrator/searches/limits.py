"""The `budget` block: limits as users write them, brought to one flat form, and what they mean."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces.budgets import Limit
from search_spaces.latency import latency_name, limited_device

__all__ = ["Bound", "limit_of", "normalised"]

Bound = float | str
"""A limit in the flat form: a number (a compression in (0, 1), or an absolute whole number), or text with a unit."""

_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3}
_TIME = re.compile(r"([0-9.eE+-]+)\s*(s|ms|us|µs)")
_RATE = re.compile(r"([0-9.eE+-]+)\s*(/\s*s|x)")
_TIMED = ("latency", "throughput")


def normalised(budget: Mapping[str, Any]) -> dict[str, Bound]:
    """A budget with one entry per limit: `parameters: 0.5`, `latency@orin: 10 ms`, `throughput@v100: 500/s`.

    It reads as itself. `latency`, `latency_ms` and `throughput` hold a mapping from devices to limits.

    Raises:
        ValueError: a limit is none, or a cost or device is limited twice.
    """
    flat: dict[str, Bound] = {}
    for name, value in _entries(budget):
        cost = _cost(name)
        if cost in map(_cost, flat):
            device = limited_device(cost)
            raise ValueError(
                "a cost is limited twice"
                if device is None
                else f"{device} is limited twice; give the tighter limit alone"
            )
        flat[name] = _bound(name, value)
    if not flat:
        raise ValueError("is empty; give at least one limit, as in {parameters: 0.5}")
    return flat


def _entries(budget: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Entries with a device in their names where there is one."""
    for name, value in budget.items():
        kind = "latency" if name == "latency_ms" else name
        if kind not in _TIMED:
            yield name, value
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} needs the device that it is measured on, as in {{{name}: {{cpu0: {value}}}}}")
        for device, bound in value.items():
            number = name == "latency_ms" and isinstance(bound, int | float)
            yield f"{kind}@{device}", f"{bound} ms" if number else bound


def _cost(name: str) -> str:
    """The cost that an entry limits: a throughput is a latency."""
    kind, _, device = name.partition("@")
    return latency_name(device) if device and kind in _TIMED else name


def _bound(name: str, value: Any) -> Bound:
    """A limit's value, checked."""
    kind, _, device = name.partition("@")
    if not device or kind not in _TIMED:
        return _static_bound(name, value)
    number = _float(value)
    if kind == "latency" and (_time_ms(value) or (number is not None and 0 < number < 1)):
        return str(value).strip() if number is None else number
    if kind == "throughput" and (rate := _rate(value)) and (rate[1] != "x" or rate[0] > 1):
        return str(value).strip()
    right = {
        "latency": "write a time with its unit (10 ms, 800 us), or in (0, 1) the share of the dense network's to save",
        "throughput": "write samples per second (500/s), or a multiple of the dense network's above 1 (2x)",
    }
    raise ValueError(f"{name} = {value} is no limit; {right[kind]}")


def _static_bound(name: str, value: Any) -> float:
    """C_d lies in (0, 1); an absolute limit is a whole number above 1."""
    number = _float(value)
    if number is None or not math.isfinite(number):
        raise ValueError(
            f"{name} = {value} is no number; give a compression C_d in (0, 1) or a whole number of {name} above 1"
        )
    if not (0 < number < 1 or (number > 1 and number == int(number))):
        raise ValueError(
            f"{name} = {number:g} is neither a compression C_d in (0, 1) nor a whole number of {name} above 1"
        )
    return number


def _float(value: Any) -> float | None:
    """A number, also as text; None for what is none."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _time_ms(value: Any) -> float | None:
    """ms of text such as `10 ms`; None for what is no time above 0."""
    found = _TIME.fullmatch(str(value).strip())
    number = _float(found[1]) if found else None
    return number * _MS[found[2]] if found and number is not None and 0 < number < float("inf") else None


def _rate(value: Any) -> tuple[float, str] | None:
    """Number and unit, `/s` or `x`, of text such as `500/s`; None for what is no rate above 0."""
    found = _RATE.fullmatch(str(value).strip())
    number = _float(found[1]) if found else None
    if not found or number is None or not 0 < number < float("inf"):
        return None
    return number, "x" if found[2] == "x" else "/s"


def limit_of(name: str, bound: Bound, batch_size: int) -> Limit:
    """What an entry of the flat form asks for.

    A latency is that of the whole network for one batch, and a ratio of it is one of the whole dense network's: half
    of its latency is twice its throughput.

    Args:
        batch_size: samples of a batch, by which a throughput becomes a latency.
    """
    kind, _, device = name.partition("@")
    if not device or kind not in _TIMED:
        return Limit(name, float(bound), "ratio" if float(bound) < 1 else "absolute")
    cost = latency_name(device)
    if kind == "throughput":
        rate = _rate(bound)
        assert rate is not None, "checked by `normalised`"
        number, unit = rate
        if unit == "x":
            return Limit(cost, 1.0 - 1.0 / number, "ratio", "ms", exact=True)
        return Limit(cost, 1e3 * batch_size / number, "absolute", "ms", exact=True)
    time_ms = _time_ms(bound)
    if time_ms is None:
        return Limit(cost, float(bound), "ratio", "ms", exact=True)
    return Limit(cost, time_ms, "absolute", "ms", exact=True)
