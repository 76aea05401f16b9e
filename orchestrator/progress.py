"""Progress: what a long search shows, as a live table on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["Observer", "Silent", "Snapshot", "Standing", "duration", "show_progress"]

_PLAIN_EVERY_S = 10.0


@dataclass(frozen=True)
class Standing:
    """Where a search stands.

    Attributes:
        name: of its run, where there are several.
        level: levels finished.
        best: the objective's best value, or None before the first score.
        compression: C(r) of the best under the budget's first cost; `target` is C_d.
        left_s: rough estimate of the seconds left; None while there is no ground for one.
        done: whether it is followed no more.
    """

    name: str
    level: int
    best: float | None
    objective: str
    compression: float
    target: float
    left_s: float | None
    done: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Where the searches on a pool stand; mostly it is one.

    Attributes:
        scored: candidates scored in this process.
        stopped: candidates whose scoring was stopped early in this process; not in `scored`.
        recorded: candidates scored before in the same runs.
        per_second: candidates per second in this process, stopped ones included.
        alive: evaluators that are ready.
        searches: one or more.
    """

    scored: int
    stopped: int
    recorded: int
    per_second: float
    alive: int
    searches: tuple[Standing, ...]


class Observer(Protocol):
    """Who watches a search."""

    def update(self, snapshot: Snapshot) -> None:
        """Called whenever scores came in."""

    def stand(self, facts: Mapping[str, str]) -> None:
        """Where long work of another kind stands, in few words by name."""

    def say(self, line: str) -> None:
        """Something a person should know: a lost evaluator, a fallback."""


class Silent:
    """Watches nothing: for use from Python."""

    def update(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def stand(self, facts: Mapping[str, str]) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class _Shown:
    """Prints to a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._last = float("-inf")

    def __enter__(self) -> _Shown:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, snapshot: Snapshot) -> None:
        self._paint(lambda: _table(snapshot), lambda: _line(snapshot))

    def stand(self, facts: Mapping[str, str]) -> None:
        self._paint(lambda: _grid(facts), lambda: ", ".join(f"{name} {value}" for name, value in facts.items()))

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _paint(self, table: Callable[[], Table], line: Callable[[], str]) -> None:
        if self._live is not None:
            self._live.update(table())
        elif time.monotonic() - self._last >= _PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._console.print(line(), highlight=False, markup=False, soft_wrap=True)


def show_progress(console: Console) -> _Shown:
    """An observer for a console, to be used as a context manager."""
    return _Shown(console)


def _table(snapshot: Snapshot) -> Table:
    table = _grid(_facts(snapshot))
    if len(snapshot.searches) > 1:
        for one in snapshot.searches:
            table.add_row(one.name, "done" if one.done else _stands(one))
    return table


def _grid(facts: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    return table


def _line(snapshot: Snapshot) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in _facts(snapshot).items())
    if len(snapshot.searches) == 1:
        return facts
    last = min((one for one in snapshot.searches if not one.done), key=_progress, default=None)
    return facts if last is None else f"{facts}; furthest behind: {last.name}, {_stands(last)}"


def _facts(snapshot: Snapshot) -> dict[str, str]:
    one, *others = snapshot.searches
    recorded = f" (+ {snapshot.recorded:,} recorded before)" if snapshot.recorded else ""
    facts = {"scored": f"{snapshot.scored:,}{recorded}"}
    if snapshot.stopped:
        facts["stopped early"] = f"{snapshot.stopped:,}"
    facts["per second"] = f"{snapshot.per_second:.1f}"
    if others:
        done = sum(search.done for search in snapshot.searches)
        facts = {"searches done": f"{done} of {len(snapshot.searches)}", **facts}
    else:
        facts = {"level": f"{one.level}", **facts, **_best(one), "compression": _compression(one)}
    facts["evaluators"] = f"{snapshot.alive}"
    waited_for = [search.left_s for search in snapshot.searches if not search.done]
    known = [left for left in waited_for if left is not None]
    facts["time left"] = f"about {duration(max(known))}" if known and len(known) == len(waited_for) else "-"
    return facts


def _best(search: Standing) -> dict[str, str]:
    return {f"best {search.objective}": "-" if search.best is None else f"{search.best:.4f}"}


def _compression(search: Standing) -> str:
    return f"{search.compression:.4f} of {search.target:.4f}"


def _stands(search: Standing) -> str:
    best = ", ".join(f"{name} {value}" for name, value in _best(search).items())
    return f"level {search.level}, {best}, compression {_compression(search)}"


def _progress(search: Standing) -> float:
    return search.compression / search.target


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 20 s`, `5 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
