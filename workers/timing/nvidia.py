"""The state of an NVIDIA card, as `nvidia-smi` tells it; everything is unknown where there is none."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping

import torch

from workers.timing.contract import State

__all__ = ["NvidiaCard", "parse_query", "query"]

FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "utilization.gpu",
    "clocks_event_reasons.active",
    "clocks.applications.graphics",
    "power.limit",
)

HELD_BACK = 0x08 | 0x20 | 0x40 | 0x80
"""Hardware slowdown, thermal slowdown by software and hardware, power brake. The power cap (0x04) is not among them: it
shows as a clock that moves, or as one that does not."""

AGE_S = 0.2
"""For which a glance may repeat what was read: nvidia-smi takes tens of milliseconds. No longer than a warm-up, at
whose end an idle clock must not be what was seen last."""


def query(card: str) -> Mapping[str, str]:
    """Asks nvidia-smi about one card; empty where it is missing or fails.

    Args:
        card: its index or UUID, as nvidia-smi counts.
    """
    for reasons in ("clocks_event_reasons", "clocks_throttle_reasons"):  # drivers before 535 know only the second name
        wanted = ",".join(FIELDS).replace("clocks_event_reasons", reasons)
        command = ["nvidia-smi", f"--id={card}", f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.SubprocessError):
            return {}
        if done.returncode == 0:
            return parse_query(done.stdout)
    return {}


def parse_query(answer: str) -> Mapping[str, str]:
    """Fields by name; those that the card does not have (`[N/A]`) left out."""
    lines = answer.strip().splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if len(values) != len(FIELDS):
        return {}
    return {name: value for name, value in zip(FIELDS, values, strict=True) if not value.startswith("[")}


class NvidiaCard:
    """One card.

    Args:
        accelerator: torch's name (`cuda:0`).
        ask: gives nvidia-smi's fields of a card.
        clock: seconds, for the age of what was read.
    """

    def __init__(
        self,
        accelerator: str,
        ask: Callable[[str], Mapping[str, str]] = query,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accelerator, self._ask, self._clock = accelerator, ask, clock
        self._card = _card_of(accelerator)
        self._seen: tuple[float, State] | None = None

    @property
    def model(self) -> str:
        """The card's name."""
        return self._ask(self._card).get("name") or _torch_name(self._accelerator)

    @property
    def driver(self) -> str:
        """Version of the driver; empty where nobody says."""
        return self._ask(self._card).get("driver_version", "")

    def read(self) -> State:
        """Asks nvidia-smi."""
        fields = self._ask(self._card)
        load = _float(fields, "utilization.gpu")
        state = State(
            clock_mhz=_float(fields, "clocks.sm"),
            temperature_c=_float(fields, "temperature.gpu"),
            load=None if load is None else load / 100.0,
            power_mode=_power_mode(fields),
            throttled=bool(int(fields.get("clocks_event_reasons.active", "0"), 0) & HELD_BACK),
        )
        self._seen = self._clock(), state
        return state

    def glance(self) -> State:
        """What was read within the last `AGE_S`."""
        if self._seen is not None and self._clock() - self._seen[0] < AGE_S:
            return self._seen[1]
        return self.read()


def _card_of(accelerator: str) -> str:
    """The card as nvidia-smi names it: torch counts among CUDA_VISIBLE_DEVICES, nvidia-smi among all."""
    index = torch.device(accelerator).index or 0
    if not torch.cuda.is_available():
        return str(index)
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return str(index) if uuid is None else f"GPU-{uuid}"


def _torch_name(accelerator: str) -> str:
    return torch.cuda.get_device_name(accelerator) if torch.cuda.is_available() else accelerator


def _power_mode(fields: Mapping[str, str]) -> str | None:
    """Application clocks and power limit: two settings of them are two devices."""
    clock, power = fields.get("clocks.applications.graphics"), fields.get("power.limit")
    told = [f"application clock {clock} MHz" if clock else "", f"power limit {power} W" if power else ""]
    return ", ".join(filter(None, told)) or None


def _float(fields: Mapping[str, str], name: str) -> float | None:
    try:
        return float(fields[name])
    except (KeyError, ValueError):
        return None
