"""Backends that do what no backend should; tests register them as another package would, through an entry point."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from workers.timing.backends.torch_eager import TorchEager
from workers.timing.contract import Device, Program, Run

ENTRY_POINTS = """[rankray.backends]
hangs_first = tests.workers.timing.odd_backends:hangs_first
crashes = tests.workers.timing.odd_backends:crashes
records = tests.workers.timing.odd_backends:records
"""


def register(folder: Path) -> None:
    """Makes `folder` hold an installed package that offers these backends; it has to be on the path."""
    info = folder / "odd_backends-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-backends\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


class HangsOnFirst(TorchEager):
    """Never comes back from building on the device `first`."""

    name = "hangs_first"

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        while device.name == "first":
            time.sleep(1)
        return super().build(program, device)


class Crashes(TorchEager):
    """Takes its process with it, as a driver may."""

    name = "crashes"

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        os.write(2, b"driver: unrecoverable\n")
        os.abort()


class Records(TorchEager):
    """Writes down when it had which cores, a line for every block."""

    name = "records"

    def timer(self, device: Device) -> Callable[[Run, int], float]:
        inner = super().timer(device)

        def timer(run: Run, calls: int) -> float:
            began = time.monotonic()
            seconds = inner(run, calls)
            with open(os.environ["RANKRAY_TEST_RECORD"], "a") as stream:
                cores = ",".join(map(str, device.cores))
                stream.write(f"{os.getpid()} {cores} {began} {time.monotonic()}\n")
            return seconds

        return timer


hangs_first, crashes, records = HangsOnFirst(), Crashes(), Records()
