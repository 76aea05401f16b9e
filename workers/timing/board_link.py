"""A connection to the agent on a board, through the system's ssh: one request, one answer, within a time limit."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from workers.timing import board_agent
from workers.timing.contract import Status

__all__ = ["BoardError", "BoardLink", "LinkLostError", "ssh_command"]

_SSH = {  # a host key that is not known, or a password that is asked for, is an error at once
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlMaster": "no",  # a connection of its own, that ends when this one is to end
    "ControlPath": "none",
}
_START = "import sys; exec(compile(sys.stdin.buffer.read({size}), 'board_agent.py', 'exec'))"
_LONGEST_LINE = 1 << 16
_LINES_KEPT = 20


class BoardError(Exception):
    """A board did not do what was asked; the message is one line.

    Attributes:
        status: of the measurement that it was asked for.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


class LinkLostError(BoardError):
    """The connection is gone, or was given up; another one may work."""


def ssh_command(board: str, config: str | None = None) -> list[str]:
    """The command that runs a line of shell on a board; the host's key is checked as your ssh does it.

    Args:
        board: as your ssh knows it: `user@orin`, `ssh://user@orin:2222`.
        config: a file to use instead of your ssh's.
    """
    settings = [word for name, value in _SSH.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", "-T", *settings, *(["-F", config] if config else []), "--", board]


class BoardLink:
    """Starts an agent on a board and speaks with it; nothing is installed there, and the agent ends with the link.

    Args:
        command: what runs a line of shell on the board: `ssh_command(...)`; `["sh", "-c"]` on this machine.
        python: the interpreter there.
        limit_s: for the connection to stand and the agent to greet.
        silence_s: after so long without a request, the agent takes the connection for dead.

    Raises:
        LinkLostError: there is no connection, or no agent at its end.
    """

    def __init__(self, command: Sequence[str], python: str, *, limit_s: float, silence_s: float) -> None:
        source = resources.files("workers.timing").joinpath("board_agent.py").read_bytes()
        token = secrets.token_hex(8)
        words = ["-c", _START.format(size=len(source)), token, str(silence_s)]
        try:
            self._process = subprocess.Popen(
                [*command, f"{python} {shlex.join(words)}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the run, that ends its links itself
            )
        except OSError as error:
            raise LinkLostError("error", f"{command[0]} does not start: {error.strerror}") from error
        self._said: deque[str] = deque(maxlen=_LINES_KEPT)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        with self._limited(limit_s, "no agent answered"):
            self._input.write(source)
            self._input.flush()
            self._await_greeting(f"rankray-agent {board_agent.VERSION} {token}".encode())

    def ask(
        self, do: str, header: Mapping[str, Any] | None = None, blobs: Sequence[bytes] = (), *, limit_s: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Sends a request and waits for its answer.

        Raises:
            BoardError: the agent refuses, in its words.
            LinkLostError: no answer came; the link is closed, and with it ends whatever the board does.
        """
        with self._limited(limit_s, f"no answer to `{do}`"):
            board_agent.send(self._input, {**(header or {}), "do": do}, blobs)
            answer = board_agent.receive(self._output)
            if answer is None:
                raise EOFError
        if answer[0]["status"] != "ok":
            raise BoardError(answer[0]["status"], answer[0]["reason"])
        return answer

    def close(self) -> None:
        """Ends the connection, and with it the agent."""
        self._kill()
        self._process.wait()
        self._listener.join(timeout=1.0)  # for its last words; what it started here may hold the pipe longer
        for stream in (self._input, self._output):
            with contextlib.suppress(OSError):  # what it still held has nowhere to go
                stream.close()

    def _kill(self) -> None:
        """Ssh, and what it has started here: a proxy command may hold the streams."""
        if self._process.returncode is None:  # its number is not another's yet
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def _input(self) -> Any:
        return self._process.stdin

    @property
    def _output(self) -> Any:
        return self._process.stdout

    @contextlib.contextmanager
    def _limited(self, limit_s: float, silence: str) -> Iterator[None]:
        """Kills ssh at the limit, which ends every read and write; what then fails is told as one error."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._kill()

        timer = threading.Timer(limit_s, give_up)
        timer.start()
        try:
            yield
        except (OSError, EOFError, ValueError, KeyError) as error:
            self.close()
            if late.is_set():
                raise LinkLostError("timeout", f"{silence} within {limit_s:g} s") from error
            raise LinkLostError("error", f"the connection ended: {self._last_words()}") from error
        finally:
            timer.cancel()

    def _await_greeting(self, greeting: bytes) -> None:
        """Passes over whatever a login shell prints."""
        while (line := self._output.readline(_LONGEST_LINE)).strip() != greeting:
            if not line:
                raise EOFError

    def _listen(self) -> None:
        """Keeps the last lines that ssh and the board's libraries say, and so the pipe from filling up."""
        stream: Any = self._process.stderr
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                self._said.append(line.decode(errors="replace").strip())

    def _last_words(self) -> str:
        said = [line for line in self._said if line]
        return said[-1] if said else f"ssh ended with status {self._process.returncode}"
