"""A child process that makes one call: what it pins, leaks, breaks or hangs in ends with it."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from search_spaces.errors import MeasurementError, RankRayError
from workers.causes import cause

__all__ = ["ChildFailedError", "ChildTimeoutError", "alive", "call_in_child"]

# The child finds modules where this process does; `-c` puts the current directory first, where a user's random.py may
# stand in for the real one.
_BOOTSTRAP = (
    "import sys; del sys.path[0]; import json; sys.path[:] = json.loads(sys.argv[1]); "
    "from workers.timing.child import _serve; _serve(*map(int, sys.argv[2:]))"
)
_START_S = 120.0
"""Seconds within which a child must have imported what it calls: torch, from a cold network disk."""
_PR_SET_PDEATHSIG = 1
_SIGN_EVERY_S = 0.2
_TAIL = 4096
"""Bytes of what a child said in which its last line is looked for."""


class ChildTimeoutError(MeasurementError):
    """The child gave no sign of life for too long, and was killed."""

    def __init__(self, device: str, silence_s: float) -> None:
        super().__init__(device, f"hangs: no sign of life for {silence_s:g} s; its process was killed")


class ChildFailedError(MeasurementError):
    """The child ended without an answer, or its call raised."""


def call_in_child(
    call: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    device: str,
    silence_s: float,
    environment: Mapping[str, str] | None = None,
    inherited: Sequence[int] = (),
) -> Any:
    """What `call(*arguments)` returns in a process of its own.

    Args:
        call: a function that can be pickled; so must its arguments be, and what it returns.
        device: for messages.
        silence_s: after which, without a sign of life (`alive`), the child is killed with all that it started.
        environment: variables beside this process's own.
        inherited: descriptors that the child keeps open: those of a lease.

    Raises:
        ChildTimeoutError: it was silent for longer.
        ChildFailedError: it died, or the call raised; with the last line that it said.
        RankRayError: the call raised one; the same is raised here.
    """
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said:
        pickle.dump((call, tuple(arguments)), request)
        request.seek(0)
        signs, sign = os.pipe()
        numbers = map(str, (answer.fileno(), sign, os.getpid()))
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), *numbers],
                stdin=request,
                stdout=said,
                stderr=said,
                env={**os.environ, **(environment or {})},
                pass_fds=(answer.fileno(), sign, *inherited),
                start_new_session=True,
            )
        finally:
            os.close(sign)
        try:
            status = _wait(process, signs, device, silence_s)
        finally:
            _end(process)
            os.close(signs)
        if status:
            raise ChildFailedError(device, f"its process ended with {_ending(status)}{_last_line(said)}")
        answer.seek(0)
        succeeded, value = pickle.load(answer)  # written by our own child, never by a user
    if succeeded:
        return value
    raise value if isinstance(value, RankRayError) else ChildFailedError(device, value)


def alive() -> None:
    """Called in a child: says that it is at work, so that a long call is no hanging one. Elsewhere it does nothing."""
    if _sign.descriptor is not None and time.monotonic() - _sign.given >= _SIGN_EVERY_S:
        os.write(_sign.descriptor, b".")
        _sign.given = time.monotonic()


@dataclass
class _Sign:
    """Where a child gives its signs of life, and when it gave the last one."""

    descriptor: int | None = None
    given: float = float("-inf")


_sign = _Sign()


def _wait(process: subprocess.Popen[bytes], signs: int, device: str, silence_s: float) -> int:
    """The child's exit status; its silence counts from when it begins its call."""
    allowed, deadline = _START_S, time.monotonic() + _START_S
    while (status := process.poll()) is None:
        readable, _, _ = select.select([signs], [], [], min(_SIGN_EVERY_S, max(0.0, deadline - time.monotonic())))
        if readable:
            if not os.read(signs, 4096):
                return process.wait(_START_S)
            allowed, deadline = silence_s, time.monotonic() + silence_s
        elif time.monotonic() >= deadline:
            raise ChildTimeoutError(device, allowed)
    return status


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the child's whole session: what it started may hold the device as well."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(status: int) -> str:
    if status > 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _last_line(said: IO[bytes]) -> str:
    said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL))
    lines = said.read().decode(errors="replace").split("\n")
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def _serve(answer: int, sign: int, parent: int) -> None:
    """The child's side: makes the call that standard input holds and leaves at once, whatever threads hang on."""
    with suppress(OSError, AttributeError):  # Linux only; elsewhere a child outlives a killed parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the child could ask to die with it
        os._exit(1)
    try:
        call, arguments = pickle.load(sys.stdin.buffer)
        _sign.descriptor = sign
        alive()
        outcome = (True, call(*arguments))
    except RankRayError as error:
        outcome = (False, error)
    except Exception as error:
        outcome = (False, cause(error))
    with open(answer, "wb") as stream:
        pickle.dump(outcome, stream)
    os._exit(0)
