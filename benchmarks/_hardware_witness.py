"""A backend that writes down who had the device's lease around every block that it times: eager torch otherwise.

Offered by the entry point that `install` makes, as another package would. Its processes are not those of the benchmark,
so what they saw goes to a file each.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from workers.timing.backends.torch_eager import TorchEager
from workers.timing.contract import Device, Program, Run
from workers.timing.lease import lease_holder

__all__ = ["install", "witness"]

_FOLDER = "folder"


def install(folder: Path) -> None:
    """Makes `folder` hold an installed package that offers the backend; it has to be on the path, with this module."""
    info = folder / "rankray_witness-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rankray-witness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rankray.backends]\nwitness = {__name__}:witness\n")


class Witness(TorchEager):
    """Eager torch. Option: `folder`, where a file is written for each process that times."""

    name = "witness"

    def build(self, program: Program, device: Device) -> tuple[Run, Callable[[], torch.Tensor]]:
        return super().build(program, _as_torch(device))

    def timer(self, device: Device) -> Callable[[Run, int], float]:
        """That of eager torch; writes down before which a block began, and after which it ended."""
        timed = super().timer(_as_torch(device))
        file = Path(str(device.options[_FOLDER]), f"{os.getpid()}.jsonl")
        (core,) = device.cores

        def witnessed(run: Run, calls: int) -> float:
            before, began = lease_holder(f"core-{core}"), time.time()
            seconds = timed(run, calls)
            ended, after = time.time(), lease_holder(f"core-{core}")
            line = {
                "core": core,
                "process": os.getpid(),
                # The lease is the actor's, which started this process.
                "held": before is not None and before == after and before.pid == os.getppid(),
                "run": "" if before is None else before.run,
                "since": None if before is None else before.since,
                "began": began,
                "ended": ended,
            }
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            return seconds

        return witnessed


def _as_torch(device: Device) -> Device:
    return replace(device, options={name: value for name, value in device.options.items() if name != _FOLDER})


witness = Witness()
