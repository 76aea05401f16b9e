"""Repeatability: the same layers timed in two sessions, an hour of other work between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from _hardware_device import ANYHOW, Session, compared, cores, on_core, timed
from _hardware_load import loaded
from _hardware_networks import sample
from _record import show

from workers.timing.contract import Device

__all__ = ["QUICK", "RepeatabilitySize", "measure", "rejected", "show_found"]


@dataclass(frozen=True)
class RepeatabilitySize:
    """How much is measured.

    Attributes:
        workloads: layers, dense and factorised.
        networks: that they are of.
        gap_minutes: between the end of the first session and the second.
        rules: of the protocol that differ from a run's own.
    """

    workloads: int = 40
    networks: tuple[str, ...] = ("resnet20", "resnet18")
    gap_minutes: float = 60.0
    rules: Mapping[str, float] | None = None


QUICK = RepeatabilitySize(
    workloads=4,
    networks=("resnet20",),
    gap_minutes=0.02,
    rules=ANYHOW,
)


def measure(
    size: RepeatabilitySize,
    keep: Callable[[dict[str, Any]], None],
    former: Mapping[str, Any],
    device: Device | None = None,
) -> dict[str, Any]:
    """Two sessions; goes on with the second where a former run kept only the first.

    Args:
        device: by default the first core, which the other work then loads.
    """
    device = device or on_core(cores()[0])
    workloads = sample(size.workloads, size.networks)
    found: dict[str, Any] = {"device": device.name, "backend": device.backend, "asked": len(workloads)}
    if "first" in former and "second" not in former:
        found["first"] = former["first"]
    else:
        found["first"] = _session(device, size, workloads)
        keep(found)
    _other_work(device, size, found["first"])
    found["second"] = _session(device, size, workloads)
    found["gap_minutes"] = round((found["second"]["began"] - _end(found["first"])) / 60.0, 2)
    found["difference"] = compared(found["second"]["ms"], found["first"]["ms"])
    return found


def _session(device: Device, size: RepeatabilitySize, workloads: list[Any]) -> dict[str, Any]:
    session: Session = timed(device, workloads, size.rules or {})
    return session.record()


def _end(session: Mapping[str, Any]) -> float:
    return float(session["began"]) + float(session["seconds"])


def _other_work(device: Device, size: RepeatabilitySize, first: Mapping[str, Any]) -> None:
    """Has the core do something else until the gap is over; all of it may have passed between two runs."""
    left = _end(first) + 60.0 * size.gap_minutes - time.time()
    if left <= 0:
        return
    print(f"repeatability: {left / 60:.0f} minutes of other work; if you stop it here, run the part again after them")
    work: AbstractContextManager[None] = loaded(device.cores[0]) if device.cores else nullcontext()
    with work:
        time.sleep(left)


def show_found(found: Mapping[str, Any]) -> None:
    """Prints both sessions and how far they are apart."""
    rows = [[which, *rejected(found[which], found["asked"])] for which in ("first", "second")]
    show("Repeatability", ["session", "entries", "refused", "blocks", "rejected", "by CPU time", "s"], rows)
    difference = found["difference"]
    if difference["median"] is None:
        print("too few entries to compare")
        return
    print(
        f"{found['gap_minutes']:g} minutes apart: {difference['median']:.2%} (median), {difference['largest']:.2%} "
        f"(largest: {difference['largest_of']}), Spearman {difference['spearman']:.4f}; the goal is below 3 % (median)"
    )


def rejected(session: Mapping[str, Any], asked: int) -> list[str]:
    """A session's columns: entries, workloads refused, blocks, those rejected, entries by CPU time, seconds."""
    blocks = session["blocks"]
    timed_blocks = blocks["kept"] + blocks["rejected"]
    share = blocks["rejected"] / timed_blocks if timed_blocks else 0.0
    entries = len(session["ms"])
    refused = ", ".join(f"{count} {status}" for status, count in session["workloads"].items() if status != "ok")
    return [
        f"{entries} of {asked}",
        refused or "0",
        f"{timed_blocks}",
        f"{share:.1%}",
        f"{session['by_cpu_time']}",
        f"{session['seconds']:.0f}",
    ]
