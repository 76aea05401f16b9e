"""Measurements that nobody took, and workloads that nothing runs: for tables and queues."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from workers.timing.contract import Measurement, Program, Spread, State, Status

__all__ = ["MadeUpWork", "measurement"]


@dataclass(frozen=True)
class MadeUpWork:
    subject: str
    macs: int = 1
    batch_size: int = 1
    kind: Literal["layer", "network"] = "layer"

    def program(self) -> Program:
        raise AssertionError("nothing is run here")


def measurement(
    ms: float, subject: str = "a layer", *, status: Status = "ok", at: float = 0.0, width: float = 0.01, **other: object
) -> Measurement:
    """Of `ms`, with a 10th and a 90th percentile so far from it, relative to it."""
    spread = Spread(
        median_ms=ms,
        low_ms=ms * (1 - width / 2),
        high_ms=ms * (1 + width / 2),
        p10_ms=ms * (1 - width),
        p90_ms=ms * (1 + width),
        min_ms=ms * (1 - width),
        blocks=11,
        rejected=2,
        calls=7,
    )
    plain = Measurement(
        kind="layer",
        subject=subject,
        batch_size=1,
        precision="float32",
        backend="torch",
        threads=1,
        device="cpu0",
        device_model="A Processor",
        power_mode="performance",
        versions={"torch": "2", "driver": "1"},
        status=status,
        reason="" if status == "ok" else "was not good",
        spread=spread,
        before=State(clock_mhz=2000.0, temperature_c=None, load=0.25, power_mode="performance"),
        after=State(throttled=True),
        drift=1.01,
        node="here",
        taken_at=at,
        seconds=0.5,
    )
    return replace(plain, **other)  # type: ignore[arg-type]
