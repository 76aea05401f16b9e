"""How a block of calls is timed: by the wall clock, or by a GPU's own events."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from workers.timing.contract import Run

__all__ = ["event_timer", "wall_timer"]


def wall_timer(run: Run, calls: int) -> float:
    """Seconds of a block, by the wall clock; the garbage collector waits meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - started
    finally:
        if collecting:
            gc.enable()


def event_timer(accelerator: str) -> Callable[[Run, int], float]:
    """Seconds of a block between two CUDA events, which the device itself notes; the block begins on an idle device."""
    device = torch.device(accelerator)

    def timer(run: Run, calls: int) -> float:
        with torch.cuda.device(device):
            first = torch.cuda.Event(enable_timing=True)
            last = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(device)
            first.record()
            for _ in range(calls):
                run()
            last.record()
            torch.cuda.synchronize(device)
            return float(first.elapsed_time(last)) / 1e3

    return timer
