"""Progress: what a long search shows, as a live table on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

__all__ = ["Observer", "Silent", "Snapshot", "show_progress"]

_PLAIN_EVERY_S = 10.0


@dataclass(frozen=True)
class Snapshot:
    """Where a search stands.

    Attributes:
        level: levels finished.
        scored: candidates scored in this process, and before in the same run.
        stopped: candidates whose scoring was stopped early in this process; not in `scored`.
        per_second: candidates per second in this process, stopped ones included.
        best: name and value of the objective's best, or None before the first score.
        compression: C(r) of the best under the budget's first cost; `target` is C_d.
        alive: evaluators that are ready.
        left_s: rough estimate of the seconds left; None while there is no ground for one.
    """

    level: int
    scored: int
    stopped: int
    recorded: int
    per_second: float
    best: float | None
    objective: str
    compression: float
    target: float
    alive: int
    left_s: float | None


class Observer(Protocol):
    """Who watches a search."""

    def update(self, snapshot: Snapshot) -> None:
        """Called whenever scores came in."""

    def say(self, line: str) -> None:
        """Something a person should know: a lost evaluator, a fallback."""


class Silent:
    """Watches nothing: for use from Python."""

    def update(self, snapshot: Snapshot) -> None:
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
        if self._live is not None:
            self._live.update(_table(snapshot))
        elif time.monotonic() - self._last >= _PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._console.print(_line(snapshot), highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_progress(console: Console) -> _Shown:
    """An observer for a console, to be used as a context manager."""
    return _Shown(console)


def _table(snapshot: Snapshot) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    for name, value in _facts(snapshot).items():
        table.add_row(name, value)
    return table


def _line(snapshot: Snapshot) -> str:
    return ", ".join(f"{name} {value}" for name, value in _facts(snapshot).items())


def _facts(snapshot: Snapshot) -> dict[str, str]:
    recorded = f" (+ {snapshot.recorded:,} recorded before)" if snapshot.recorded else ""
    stopped = {"stopped early": f"{snapshot.stopped:,}"} if snapshot.stopped else {}
    return {
        "level": f"{snapshot.level}",
        "scored": f"{snapshot.scored:,}{recorded}",
        **stopped,
        "per second": f"{snapshot.per_second:.1f}",
        f"best {snapshot.objective}": "-" if snapshot.best is None else f"{snapshot.best:.4f}",
        "compression": f"{snapshot.compression:.4f} of {snapshot.target:.4f}",
        "evaluators": f"{snapshot.alive}",
        "time left": "-" if snapshot.left_s is None else f"about {duration(snapshot.left_s)}",
    }


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 20 s`, `5 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
