"""Where programs are built and run, as a session sees it, and the bench that is this process."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from search_spaces.errors import ConfigError
from workers.timing.backends import backends
from workers.timing.contract import Backend, Device, Program, State
from workers.timing.processor import Sensors
from workers.timing.protocol import Block
from workers.timing.rounds import Observe
from workers.timing.versions import versions_of

__all__ = ["Bench", "Here", "pinned"]

FRESH_SLICE_S = 0.001
"""Slept before a block after one that was interrupted. Who sleeps is owed time: Linux then lets it run for a slice
(some 3 ms) undisturbed, which makes blocks that count many times as frequent on a busy processor. Never on an idle one,
where sleeping lowers the clock."""
UNDISTURBED = 0.97
"""Share of a block's wall time that the process had its processor, where nobody else ran in between."""


class Bench(Protocol):
    """Where programs are built and run: this machine (`Here`), or a board behind ssh (`board.py`)."""

    @property
    def model(self) -> str:
        """What the device physically is."""

    @property
    def node(self) -> str:
        """Host name of the device."""

    @property
    def versions(self) -> Mapping[str, str]:
        """As a measurement has them."""

    def read(self) -> State:
        """The device's state, while nothing of ours runs on it."""

    def pinned(self) -> AbstractContextManager[None]:
        """Holds whatever has to be in force while programs run."""

    def build(self, program: Program) -> tuple[Observe, Callable[[], torch.Tensor]]:
        """What times blocks of a program, and what gives its outputs."""


class Here:
    """This process: its backends, its cores, this machine's sensors."""

    def __init__(self, device: Device, sensors: Sensors) -> None:
        self._device, self._sensors = device, sensors
        self._backend: Backend = backends().get(device.backend, f"devices.{device.name}.backend")
        self.model, self.node, self.versions = sensors.model, platform.node(), versions_of(device)

    def read(self) -> State:
        """Everything that the sensors say."""
        return self._sensors.read()

    def pinned(self) -> AbstractContextManager[None]:
        """Cores and threads."""
        return pinned(self._device)

    def build(self, program: Program) -> tuple[Observe, Callable[[], torch.Tensor]]:
        """Builds with the backend; blocks of the program's calls are observed as its device is glanced at."""
        run, outputs = self._backend.build(program, self._device)
        timer, on_cpu = self._backend.timer(self._device), self._device.accelerator == "cpu"
        several = on_cpu and self._device.threads > 1
        interrupted = False

        def observe(calls: int) -> Block:
            nonlocal interrupted
            if interrupted:
                time.sleep(FRESH_SLICE_S)
            before = self._sensors.glance()
            timer(run, 1)  # whoever was timed before has left its own data in the caches
            waited, worked = _waited_s() if several else None, time.process_time()
            wall = timer(run, calls)
            cpu = time.process_time() - worked
            waited = None if waited is None else (_waited_s() or waited) - waited
            interrupted = on_cpu and (cpu < UNDISTURBED * wall or (waited or 0.0) > (1.0 - UNDISTURBED) * wall)
            return Block(calls, wall, cpu if on_cpu else None, waited, before, self._sensors.glance())

        return observe, outputs


@contextmanager
def pinned(device: Device) -> Iterator[None]:
    """Keeps this thread, and those that it starts, on the device's cores, with the device's number of threads.

    Raises:
        ConfigError: this process may not use one of the cores.
    """
    usable, threads = os.sched_getaffinity(0), torch.get_num_threads()
    absent = sorted(set(device.cores) - usable)
    if absent:
        shown = ", ".join(map(str, sorted(usable)))
        raise ConfigError(f"devices.{device.name}.cores", f"core {absent[0]} is not among those usable here: {shown}")
    os.sched_setaffinity(0, device.cores or usable)
    torch.set_num_threads(device.threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, usable)


def _waited_s() -> float | None:
    """Seconds that this process' threads were ready to run and did not; None where the system does not say."""
    waited = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            waited += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e9
