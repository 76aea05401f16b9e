"""A board as a session sees it: builds programs there and observes them, over one connection to its agent."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from search_spaces.errors import MeasurementError
from workers.timing import board_agent
from workers.timing.board_link import BoardError, BoardLink, LinkLostError
from workers.timing.board_program import READS_ONNX, packed
from workers.timing.contract import Device, Program, State
from workers.timing.protocol import Block
from workers.timing.rounds import Observe
from workers.timing.versions import digest_of_code

__all__ = ["Board"]

_HELLO_S = 120.0
"""For the agent to import the board's torch, from a slow card."""
_LEASE_WAIT_S = 5.0
"""For an agent whose connection has just ended to end as well."""
_SILENCE_MARGIN_S = 120.0
"""Beyond a device's time limit, in which a host may be at work itself: it builds, exports, times others."""


class Board:
    """An agent's end of things. Close it, or use it in a `with`.

    Args:
        device: whose backend is one of the agent's.
        command: what runs a line of shell on the board.
        python: the interpreter there.
        leased: whether to lock the board against agents of other hosts.

    Attributes:
        model: what the board physically is.
        node: its host name.
        versions: of its backend, Python and kernel, as a measurement has them.
        state: when the agent started.
        lost: why the connection is gone; None as long as it stands.

    Raises:
        LinkLostError: there is no connection.
        BoardError: the board has no such backend, or another host times something on it.
    """

    def __init__(self, device: Device, command: list[str], python: str, *, leased: bool) -> None:
        self.lost: LinkLostError | None = None
        self._unused: list[int] = []
        self._name, self._limit_s = device.name, device.time_limit_s
        silence_s = device.time_limit_s + _SILENCE_MARGIN_S
        self._link = BoardLink(command, python, limit_s=_HELLO_S, silence_s=silence_s)
        settings = {
            "backend": device.backend,
            "accelerator": device.accelerator,
            "precision": device.precision,
            "threads": device.threads,
            "cores": list(device.cores),
            **({"lease_wait_s": _LEASE_WAIT_S} if leased else {}),
        }
        try:
            hello, _ = self._link.ask("hello", settings, limit_s=_HELLO_S)
        except Exception:
            self.close()
            raise
        self._backend = device.backend
        self.model, self.node = str(hello["model"]), str(hello["node"])
        exporter = {"exporter": torch.__version__} if device.backend in READS_ONNX else {}
        timing = digest_of_code(board_agent.Agent)
        self.versions: Mapping[str, str] = {**hello["versions"], **exporter, "timing": timing}
        self.state = State(**hello["state"])

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and the agent."""
        self._link.close()

    def read(self) -> State:
        """The board's state, with its load while nothing of ours runs; nothing is known where nobody answers."""
        try:
            return State(**self._ask("state", {})[0]["state"])
        except LinkLostError:
            return State()

    def pinned(self) -> AbstractContextManager[None]:
        """Nothing to do: the agent has pinned itself."""
        return nullcontext()

    def build(self, program: Program) -> tuple[Observe, Callable[[], torch.Tensor]]:
        """Builds a program on the board.

        Returns:
            What times blocks of it, and what gives its outputs. The board forgets the program some time after the
            first is gone.

        Raises:
            MeasurementError: the board's backend refuses it.
            LinkLostError: the connection is gone.
        """
        spec, blobs = packed(program, self._backend)
        forget, self._unused = self._unused, []
        number = self._ask("build", {**spec, "forget": forget}, blobs)[0]["program"]

        def observe(calls: int) -> Block:
            seen, _ = self._ask("block", {"program": number, "calls": calls})
            before, after = State(**seen["before"]), State(**seen["after"])
            return Block(calls, seen["wall_s"], seen.get("cpu_s"), seen.get("waited_s"), before, after)

        def outputs() -> torch.Tensor:
            answer, [raw] = self._ask("outputs", {"program": number})
            values = board_agent.floats(raw)
            if len(values) != math.prod(answer["shape"]):
                return torch.tensor(values)  # of another shape than the reference's, which is told
            return torch.tensor(values).reshape(answer["shape"])

        weakref.finalize(observe, lambda: self._unused.append(number))
        return observe, outputs

    def _ask(self, do: str, header: Mapping[str, Any], blobs: Any = ()) -> tuple[dict[str, Any], list[bytes]]:
        """Asks over the connection, if it still stands."""
        if self.lost is not None:
            raise self.lost
        try:
            return self._link.ask(do, header, blobs, limit_s=self._limit_s)
        except LinkLostError as error:
            self.lost = error
            raise
        except BoardError as error:
            raise MeasurementError(self._name, str(error)) from error
