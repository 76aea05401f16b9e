"""What enters the table while another process loads the core, or its neighbour; a plain timing loop beside it.

The plain loop is what anyone would write first: one call to warm up, then the mean of some calls by the wall clock.
Rules are a run's own, but that a busy core is not refused beforehand: blocks decide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from _hardware_device import compared, cores, label, on_core, timed
from _hardware_load import loaded
from _hardware_networks import sample
from _hardware_repeatability import rejected
from _record import show

from workers.timing.backends import backends
from workers.timing.child import alive, call_in_child
from workers.timing.contract import Device, Workload

__all__ = ["QUICK", "LoadedSize", "measure", "show_found"]


@dataclass(frozen=True)
class LoadedSize:
    """How much is measured.

    Attributes:
        workloads: layers, dense and factorised.
        networks: that they are of.
        calls: of the plain loop.
        time_limit_s: for one workload.
        retries: of a workload whose measurement was noisy.
        rules: of the protocol that differ from a run's own, in every session.
    """

    workloads: int = 40
    networks: tuple[str, ...] = ("resnet20", "resnet18")
    calls: int = 30
    time_limit_s: float = 30.0
    retries: int = 1
    rules: Mapping[str, float] | None = None


QUICK = LoadedSize(
    workloads=3,
    networks=("resnet20",),
    calls=10,
    time_limit_s=5.0,
    retries=0,
    rules={"half_width": 0.05, "warm_up_s": 0.05},
)


def measure(size: LoadedSize, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """A quiet session, and one under each load; goes on with those that a former run has not."""
    usable = cores()
    loads: dict[str, int | None] = {"quiet": None, "same_core": usable[0]}
    if len(usable) > 1:
        loads["other_core"] = usable[1]
    found: dict[str, Any] = {"asked": size.workloads, "sessions": dict(former.get("sessions", {}))}
    if set(loads) <= set(found["sessions"]):
        found["sessions"] = {}
    workloads = sample(size.workloads, size.networks)
    for name, core in loads.items():
        if name not in found["sessions"]:
            found["sessions"][name] = _under(size, workloads, usable[0], core)
            keep(found)
    quiet = found["sessions"]["quiet"]["ms"]
    for session in found["sessions"].values():
        session["table"] = compared(session["ms"], quiet)
        session["plain_loop"] = compared(session["plain_ms"], quiet)
    return found


def _under(size: LoadedSize, workloads: Sequence[Workload], core: int, busy: int | None) -> dict[str, Any]:
    load: AbstractContextManager[None] = nullcontext() if busy is None else loaded(busy)
    device = on_core(core, time_limit_s=size.time_limit_s)
    with load:
        session = timed(device, workloads, {"load": 1.0, **(size.rules or {})}, retries=size.retries)
        plain: list[float] = call_in_child(
            _plain_loop,
            (device, list(workloads), size.calls),
            device=device.name,
            silence_s=300.0,
            environment={"OMP_NUM_THREADS": "1"},
        )
    return {**session.record(), "plain_ms": dict(zip(map(label, workloads), plain, strict=True))}


def _plain_loop(device: Device, workloads: Sequence[Workload], calls: int) -> list[float]:
    """In a child: ms per call of every workload, the mean of some calls."""
    os.sched_setaffinity(0, device.cores)
    torch.set_num_threads(device.threads)
    backend = backends().get(device.backend, "backend")
    found = []
    for workload in workloads:
        alive()
        run, _ = backend.build(workload.program(), device)
        run()
        started = time.perf_counter()
        for _ in range(calls):
            run()
        found.append((time.perf_counter() - started) * 1e3 / calls)
    return found


def show_found(found: Mapping[str, Any]) -> None:
    """Prints what each session let in, and how far that and the plain loop are from the quiet session."""
    rows = [[name, *rejected(one, found["asked"])] for name, one in found["sessions"].items()]
    show("Under load: what was let in", ["load", "entries", "refused", "blocks", "rejected", "by CPU time", "s"], rows)
    rows = []
    for name, session in found["sessions"].items():
        for kind in ("table", "plain_loop"):
            it = session[kind]
            if it["median"] is None or (name, kind) == ("quiet", "table"):
                continue
            numbers = [f"{it['median']:.1%}", f"{it['largest']:.1%}", f"{it['above_tenth']}", f"{it['spearman']:.4f}"]
            rows.append([f"{name}, {kind.replace('_', ' ')}", str(it["entries"]), *numbers])
    show("Against the quiet table", ["", "entries", "median off", "largest", "off by > 10 %", "Spearman"], rows)
    if "other_core" not in found["sessions"]:
        print("this process may use one core alone: no load on another one was tried")
