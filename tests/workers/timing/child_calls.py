"""Calls for child processes that are tested: they live in a module, because a child imports what it calls."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from search_spaces.errors import ConfigError
from workers.timing.child import alive, call_in_child


def where_it_runs(inherited: str) -> tuple[int, int, str | None, list[str]]:
    return os.getpid(), os.getpgid(0), os.environ.get(inherited), sys.path


def divide(one: float, other: float) -> float:
    return one / other


def mistake() -> None:
    raise ConfigError("devices.x.options", "is wrong; write it right")


def die(how: int) -> None:
    print("a line before")
    print("the last words", file=sys.stderr)
    sys.stderr.flush()
    os.kill(os.getpid(), how)


def leave(status: int) -> None:
    os._exit(status)


def sleep(seconds: float, record: str = "") -> None:
    if record:
        inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(record).write_text(f"{os.getpid()} {inner.pid}")
    time.sleep(seconds)


def work(seconds: float) -> str:
    """Longer than its silence may be, with signs of life."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.05)
        alive()
    return "done"


def parent(record: str) -> None:
    """Has a child of its own."""
    call_in_child(sleep, (600, record), device="inner", silence_s=600)
