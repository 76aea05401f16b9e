"""Devices and measurements on a console."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.hardware.device_list import Listed
from orchestrator.hardware.measure_run import Measured
from orchestrator.hardware.measuring import Course
from workers.timing.contract import Measurement, State

__all__ = ["show_devices", "show_measured", "watch_measuring"]

_PLAIN_EVERY_S = 10.0
_REASONS_SHOWN = 10


class _Shown:
    """Prints how a measuring goes: one live line on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._last = time.monotonic()

    def __enter__(self) -> _Shown:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, course: Course) -> None:
        if self._live is not None:
            self._live.update(_line(course))
        elif time.monotonic() - self._last >= _PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._console.print(_line(course), highlight=False, markup=False, soft_wrap=True)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def watch_measuring(console: Console) -> _Shown:
    """A watcher for a console, to be used as a context manager."""
    return _Shown(console)


def show_devices(listed: Sequence[Listed], console: Console) -> None:
    """A table of devices; where something is wrong with one, why, below it."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("device", "fit", "model", "node", "backend", "state", "leased by"):
        table.add_column(heading, overflow="fold")
    for one in listed:
        device, identity = one.device, one.identity
        setting = f"{device.backend}, {device.precision}, {device.threads} thread{'s' * (device.threads != 1)}"
        if identity is None:
            table.add_row(device.name, "no", "", "", setting, "", "")
            continue
        versions = ", ".join(f"{name} {value}" for name, value in identity.versions.items() if name != "timing")
        table.add_row(
            device.name,
            "no" if one.unfit else "yes",
            identity.device_model,
            identity.node,
            f"{setting}; {versions}",
            _state(identity.state),
            "" if one.holder is None else str(one.holder),
        )
    console.print(table)
    for one in listed:
        if one.unfit:
            console.print(f"{one.device.name}: {one.unfit}", highlight=False, markup=False, soft_wrap=True)


def show_measured(measured: Measured, console: Console) -> None:
    """A measuring in a few lines: how many, what was rejected and why, what contradicts."""
    outcome = measured.outcome
    lines = [
        f"{outcome.measured:,} measured, {outcome.known:,} known before, {len(outcome.rejected):,} rejected"
        + (f", {measured.unmeasured:,} not measured" if measured.unmeasured else "")
    ]
    if outcome.difference is not None:
        lines.append(
            f"{len(outcome.differences)} known entries measured again: median difference {outcome.difference:.1%}"
        )
    lines += [f"{name} was given up: {reason}" for name, reason in outcome.given_up.items()]
    lines += _cut([_rejection(one) for one in outcome.rejected])
    lines += _cut([f"contradiction: {one}" for one in measured.contradictions])
    lines.append(f"latency table: {measured.table} ({measured.entries:,} entries)")
    lines.append(f"run directory: {measured.location} (measurements/*.parquet has every measurement, with reasons)")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - _REASONS_SHOWN
    return lines if more <= 0 else [*lines[:_REASONS_SHOWN], f"... and {more:,} more"]


def _rejection(one: Measurement) -> str:
    return f"rejected ({one.status}) on {one.device}: {one.subject}: {one.reason}"


def _line(course: Course) -> str:
    timing = ", ".join(f"{name} times {count}" for name, count in course.timing.items()) or "nothing is timed"
    return (
        f"{course.measured:,} measured, {course.known:,} known, {course.rejected:,} rejected, "
        f"{course.waiting:,} waiting; {timing}"
    )


def _state(state: State) -> str:
    told = [
        state.power_mode or "",
        "" if state.clock_mhz is None else f"{state.clock_mhz:.0f} MHz",
        "" if state.temperature_c is None else f"{state.temperature_c:.0f} °C",
        "" if state.load is None else f"load {state.load:.0%}",
        "held back" if state.throttled else "",
    ]
    return ", ".join(filter(None, told))
