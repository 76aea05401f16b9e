"""Another process that loads one core: convolutions, as another user's training would, until it is ended.

`python _hardware_load.py CORE` runs until its standard input is closed, so that it never outlives who started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loaded"]


@contextmanager
def loaded(core: int) -> Iterator[None]:
    """Loads a core for as long as the block lasts."""
    command = [sys.executable, __file__, str(core)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"busy\n":
                raise RuntimeError(f"core {core} could not be loaded")
            yield
        finally:
            process.kill()


def _work(core: int) -> None:
    os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    layer, inputs = torch.nn.Conv2d(128, 128, 3, padding=1), torch.randn(8, 128, 28, 28)
    with torch.no_grad():
        layer(inputs)
        print("busy", flush=True)
        while True:
            layer(inputs)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    _work(int(sys.argv[1]))
