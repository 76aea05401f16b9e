"""Ray nodes as processes of their own, on loopback, with a token; each can be ended without touching another Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

__all__ = ["end_session", "environ", "free_port", "start_node"]


def start_node(folder: Path, name: str, options: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a node and waits until it is up.

    Args:
        folder: where it writes `name.log`.
        options: of `ray start`.
        environment: of `environ`.
    """
    path = folder / f"{name}.log"
    # A session of its own, so that all of it can be ended, and nothing else: `ray stop` would end every Ray here.
    with open(path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options.split(), "--disable-usage-stats"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(process, path)
    except BaseException:
        end_session(process)
        raise
    return process


def end_session(process: subprocess.Popen[bytes], at_once: bool = False) -> None:
    """Ends every process of the session that `process` leads: Ray puts its workers into process groups of their own.

    Args:
        at_once: with SIGKILL, as if the power were cut.
    """
    members = [other for other in psutil.process_iter() if _session_of(other.pid) == process.pid]
    if not at_once:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=0 if at_once else 10)
    for other in alive:
        other.kill()
    process.wait(10)


def free_port() -> int:
    """A free port outside the range (10002 to 19999) that Ray keeps for its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := probe.getsockname()[1]) > 20000:
                return port


def environ(folder: Path, **more: str) -> dict[str, str]:
    """This process's environment with another home and without its token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**kept, "HOME": str(folder), "PYTHONPATH": path, **more}


def _wait_until_up(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while "will now block" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
