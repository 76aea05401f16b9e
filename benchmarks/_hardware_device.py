"""Times workloads as a run does, without its cluster: the same actor, lease, child processes, protocol and retries."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import spearmanr

from orchestrator.hardware.devices import TimingSettings
from orchestrator.hardware.work_queue import WorkQueue
from search_spaces.errors import MeasurementError
from workers.timing.contract import Device, Measurement, Workload
from workers.timing.hardware_actor import HardwareActor

__all__ = ["ANYHOW", "Session", "compared", "cores", "label", "on_core", "rank_correlation", "timed"]

_LEASE_S = 600.0

ANYHOW: Mapping[str, float] = {
    "load": 1.0,
    "drift": 9.0,
    "half_width": 0.25,
    "patience": 11,
    "slice_s": 0.0,
    "warm_up_s": 0.02,
    "warm_up_limit_s": 0.2,
}
"""Rules of the short forms, by which a busy machine is fit as well: processor time stands in for wall time at once."""


def cores() -> list[int]:
    """The processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def on_core(core: int, backend: str = "onnxruntime", time_limit_s: float = 60.0) -> Device:
    """One core under a backend."""
    return Device("cpu", backend, cores=(core,), time_limit_s=time_limit_s)


@dataclass
class Session:
    """What came of timing some workloads.

    Attributes:
        final: by workload, its last measurement: what a run goes by.
        tried: every measurement, those that were tried again included.
    """

    final: dict[Workload, Measurement] = field(default_factory=dict)
    tried: list[Measurement] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    @property
    def ms(self) -> dict[str, float]:
        """What enters the table: the medians, by label."""
        good = {one: told for one, told in self.final.items() if told.ok}
        return {label(one): told.spread.median_ms for one, told in good.items() if told.spread is not None}

    def record(self) -> dict[str, Any]:
        """As JSON: `ms`, statuses of workloads and of all tries, blocks that counted and that were rejected."""
        spreads = [one.spread for one in self.tried if one.spread is not None]
        return {
            "began": self.began,
            "seconds": round(self.ended - self.began, 1),
            "ms": self.ms,
            "workloads": Counter(one.status for one in self.final.values()),
            "tries": Counter(one.status for one in self.tried),
            "by_cpu_time": sum(one.ok and one.spread is not None and one.spread.clock == "cpu" for one in self.tried),
            "blocks": {"kept": sum(one.blocks for one in spreads), "rejected": sum(one.rejected for one in spreads)},
            "refused": {label(one): f"{it.status}: {it.reason}" for one, it in self.final.items() if not it.ok},
        }


def timed(device: Device, workloads: Sequence[Workload], rules: Mapping[str, float], *, retries: int = 2) -> Session:
    """Times workloads, the cheapest first, sixteen to a child process.

    Args:
        rules: of the protocol, that differ from a run's own.
        retries: of a workload whose measurement was noisy or throttled.
    """
    settings = TimingSettings(protocol=dict(rules), retries=retries)
    actor = HardwareActor(device, "benchmark", settings.rules)
    queue = WorkQueue(dict.fromkeys(workloads), settings.session, settings.retries)
    session = Session(began=time.time())
    while pieces := queue.take():
        try:
            found = actor.time([piece.workload for piece in pieces], _LEASE_S)
        except MeasurementError as error:  # the child hung or broke
            if queue.lost(pieces, moved=False):
                raise RuntimeError(f"{pieces[0].workload.subject} cannot be timed: {error}") from error
            continue
        session.tried += found
        for piece, one in zip(pieces, found, strict=True):
            if queue.measured(piece, one):
                session.final[piece.workload] = one
    session.ended = time.time()
    return session


def label(workload: Workload) -> str:
    """A workload in the JSON file."""
    return f"{workload.subject} x {workload.batch_size}"


def compared(ms: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, Any]:
    """How far the entries of `ms` are from a reference's, over those that both have.

    Returns:
        `entries`, and of |ms / reference - 1| the `median`, the `largest` and of which entry; `above_tenth`, how many
        are off by more than 10 %; `spearman`. None where there are no two entries.
    """
    both = [one for one in ms if one in reference]
    if len(both) < 2:
        return {"entries": len(both), **dict.fromkeys(("median", "largest", "largest_of", "above_tenth", "spearman"))}
    off = {one: abs(ms[one] / reference[one] - 1.0) for one in both}
    worst = max(both, key=lambda one: off[one])
    return {
        "entries": len(both),
        "median": statistics.median(off.values()),
        "largest": off[worst],
        "largest_of": worst,
        "above_tenth": sum(one > 0.1 for one in off.values()),
        "spearman": rank_correlation([ms[one] for one in both], [reference[one] for one in both]),
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; None where either is constant."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)
