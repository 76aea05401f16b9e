"""Search spaces inside a method's settings: where a value would stand, a mapping says what it may be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from search_spaces.errors import ConfigError

__all__ = ["Choice", "Number", "Range", "filled", "grid", "ranges_in"]

_KINDS = ("uniform", "loguniform", "integer", "choice")


class Suggesting(Protocol):
    """The part of an Optuna trial that ranges use."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of several."""


@dataclass(frozen=True)
class Number:
    """`{uniform: [0.01, 0.1]}`, `{loguniform: [1e-4, 1e-1]}` or `{integer: [2, 8]}`, both ends included."""

    kind: Literal["uniform", "loguniform", "integer"]
    low: float
    high: float

    def suggest(self, trial: Suggesting, name: str) -> Any:
        """A value that Optuna proposes."""
        if self.kind == "integer":
            return trial.suggest_int(name, int(self.low), int(self.high))
        return trial.suggest_float(name, self.low, self.high, log=self.kind == "loguniform")

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that settings must accept if they are to accept all."""
        ends = (self.low, self.high)
        return tuple(map(int, ends)) if self.kind == "integer" else ends


@dataclass(frozen=True)
class Choice:
    """`{choice: [a, b, c]}`: numbers, text, booleans or none."""

    values: tuple[Any, ...]

    def suggest(self, trial: Suggesting, name: str) -> Any:
        """A value that Optuna proposes."""
        return trial.suggest_categorical(name, list(self.values))

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values


Range = Number | Choice


def ranges_in(settings: Mapping[str, Any], key: str) -> dict[str, Range]:
    """The ranges in a method's settings, by dotted name.

    Args:
        settings: blocks within blocks; a mapping whose one key is a kind of range is a range.
        key: where the settings stand in the config.

    Raises:
        ConfigError: a range is none.
    """
    return {".".join(place): _range(value, f"{key}.{'.'.join(place)}") for place, value in _leaves(settings)}


def filled(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with values in the places of ranges.

    Args:
        values: by dotted name, one for every range.
    """

    def fill(block: Mapping[str, Any], before: tuple[str, ...]) -> dict[str, Any]:
        return {
            name: values[".".join((*before, name))]
            if _is_range(value)
            else fill(value, (*before, name))
            if isinstance(value, Mapping)
            else value
            for name, value in block.items()
        }

    return fill(settings, ())


def grid(ranges: Mapping[str, Range], key: str) -> list[dict[str, Any]]:
    """All combinations of choices, the last name's changing fastest; one empty combination without any range.

    Raises:
        ConfigError: a range has no end of values.
    """
    for name, one in ranges.items():
        if isinstance(one, Number):
            raise ConfigError(
                f"{key}.{name}",
                f"{one.kind} has too many values for a grid; list them as {{choice: [...]}}, or give "
                "sweep.optuna: {trials: ...}",
            )
    values = [one.extremes for one in ranges.values()]
    return [dict(zip(ranges, combination, strict=True)) for combination in itertools.product(*values)]


def _leaves(block: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in block.items():
        if _is_range(value):
            yield (*before, str(name)), value
        elif isinstance(value, Mapping):
            yield from _leaves(value, (*before, str(name)))


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in _KINDS


def _range(value: Mapping[str, Any], key: str) -> Range:
    ((kind, given),) = value.items()
    key = f"{key}.{kind}"
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(key, "needs a list, such as {choice: [0.01, 0.1]} or {uniform: [0.01, 0.1]}")
    if kind == "choice":
        if any(one is not None and not isinstance(one, bool | int | float | str) for one in given):
            raise ConfigError(key, "holds something else than numbers, text, booleans and null; Optuna keeps no others")
        if len({repr(one) for one in given}) < len(given):
            raise ConfigError(key, "holds a value twice")
        return Choice(tuple(given))
    ends = [_number(one, key) for one in given]
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ConfigError(key, f"needs its two ends in order, as in [0.01, 0.1], not {list(given)}")
    if kind == "loguniform" and ends[0] <= 0:
        raise ConfigError(key, f"must begin above 0, not at {ends[0]:g}")
    if kind == "integer" and any(one != int(one) for one in ends):
        raise ConfigError(key, f"needs whole numbers, not {list(given)}")
    return Number(kind, ends[0], ends[1])  # type: ignore[arg-type]  # one of the other three kinds


def _number(value: Any, key: str) -> float:
    """A number, also one that YAML reads as text (`1e-4`)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ConfigError(key, f"needs two numbers, not {value!r}")
    return number
