"""Boards behind ssh: this process is their proxy. It keeps the protocol; the agent on the board does what it says."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.layers import Stage
from search_spaces.registry import nearest
from workers.timing import board_agent
from workers.timing.board import Board
from workers.timing.board_link import BoardError, ssh_command
from workers.timing.contract import Device, Measurement, Workload
from workers.timing.lease import Lease
from workers.timing.local_way import rules_from
from workers.timing.processor import preflight
from workers.timing.protocol import Rules
from workers.timing.session import REFERENCE, Session
from workers.timing.way import Identity
from workers.timing.workloads import LayerWorkload

__all__ = ["SshWay"]

_OPTIONS = ("ssh", "ssh_config", "python")
_SLOW_REFERENCE = LayerWorkload(Stage(2, 2, (3, 3), padding=(1, 1)), True, 6, 6)
"""For plain Python, that would take seconds over the usual one."""


class SshWay:
    """Boards that cannot be nodes of a cluster, but answer ssh.

    Options: `ssh`: the board, as your ssh knows it (`orin`, `user@10.0.0.7`, `ssh://user@10.0.0.7:2222`); it has to let
    you in without a password, and its host key has to be known. `ssh_config`: a file instead of your ssh's. `python`:
    the interpreter on the board (`python3`).
    """

    def backends(self) -> Sequence[str]:
        """The agent's; whether a board has one, only the board knows."""
        return tuple(board_agent.BACKENDS)

    def things(self, device: Device) -> Sequence[str]:
        """The board, by the address that ssh finds behind its name. It is one thing: its parts share power and heat."""
        command = _command(device)
        try:
            shown = subprocess.run([*command[:1], "-G", *command[1:]], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MeasurementError(device.name, f"ssh does not run here: {error}") from None
        if shown.returncode:
            raise ConfigError(_key(device, "ssh"), (shown.stderr.strip().splitlines() or ["ssh refuses it"])[-1])
        found = dict(line.split(" ", 1) for line in shown.stdout.splitlines() if " " in line)
        return (f"board-{found['hostname']}-{found['port']}",)

    def identify(self, device: Device) -> Identity:
        """Starts an agent, which looks, and ends it."""
        with _opened(device, leased=False) as board:
            return Identity(
                device_model=board.model,
                power_mode=board.state.power_mode or "",
                versions=board.versions,
                node=board.node,
                state=board.state,
                unfit=preflight(board.state, Rules(), device.accelerator),
            )

    def time(
        self, device: Device, workloads: Sequence[Workload], rules: Mapping[str, Any], held: Lease
    ) -> list[Measurement]:
        """Times workloads together; those that a lost connection cut off once more, each over one of its own."""
        checked = rules_from(rules)
        found, cut_off = _timed(device, workloads, checked)
        with suppress(MeasurementError):  # nobody answers any more: what is known stands
            for place in cut_off:
                [found[place]], _ = _timed(device, [workloads[place]], checked)
        return found


def _timed(device: Device, workloads: Sequence[Workload], rules: Rules) -> tuple[list[Measurement], list[int]]:
    """Measurements over one connection, and the places of those that it ended under."""
    reference = _SLOW_REFERENCE if device.backend == "python" else REFERENCE
    with _opened(device, leased=True) as board:
        found = Session(device, rules, bench=board, reference=reference).measure(workloads)
        if board.lost is None:
            return found, []
    ended = [place for place, one in enumerate(found) if one.status in ("error", "timeout")]
    for place in ended:
        found[place] = replace(found[place], status=board.lost.status, reason=str(board.lost))
    return found, ended


def _opened(device: Device, *, leased: bool) -> Board:
    """An agent on the board.

    Raises:
        ConfigError: an option is missing, unknown or of a wrong kind.
        MeasurementError: there is no connection, the board lacks the backend, or somebody else times on it.
    """
    command = _command(device)
    try:
        return Board(device, command, device.options.get("python", "python3"), leased=leased)
    except BoardError as error:
        raise MeasurementError(device.name, f"{device.options['ssh']}: {error}") from error


def _command(device: Device) -> list[str]:
    """The ssh command of the device's options."""
    for name, value in device.options.items():
        if name not in _OPTIONS:
            raise ConfigError(_key(device, name), f"unknown option of a board{nearest(name, list(_OPTIONS))}")
        if not isinstance(value, str) or not value or value.startswith("-"):
            raise ConfigError(_key(device, name), f"must be a text that does not start with `-`, not {value!r}")
    if "ssh" not in device.options:
        raise ConfigError(_key(device, "ssh"), "is missing: the board as your ssh knows it, such as user@orin")
    return ssh_command(device.options["ssh"], device.options.get("ssh_config"))


def _key(device: Device, option: str) -> str:
    return f"devices.{device.name}.options.{option}"
