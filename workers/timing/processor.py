"""The state of the thing that is timed: what it is, its clocks and temperature, who else uses it, whether it is fit."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Protocol

import psutil

from workers.timing.contract import Device, State
from workers.timing.jetson import Jetson, is_jetson
from workers.timing.nvidia import NvidiaCard
from workers.timing.protocol import Rules
from workers.timing.sysfs import number, text

__all__ = ["Processor", "Sensors", "preflight", "sensors_of"]

LOAD_WINDOW_S = 0.2
"""Over which the load by others is counted: the system counts in hundredths of a second."""


class Sensors(Protocol):
    """Reads the state of one device.

    Attributes:
        model: what it physically is.
    """

    @property
    def model(self) -> str:
        """What it physically is."""

    def read(self) -> State:
        """Everything; may take a fraction of a second, in which this process should not use the device."""

    def glance(self) -> State:
        """What is read at once, or was read a moment ago: asked for around every block."""


def sensors_of(device: Device, root: Path = Path("/")) -> Sensors:
    """The sensors of a device on this machine.

    Args:
        root: of the file system, in tests another one.
    """
    if is_jetson(root):
        return Jetson(device.accelerator, root)
    if device.accelerator.startswith("cuda"):
        return NvidiaCard(device.accelerator)
    return Processor(device.cores, root)


def preflight(state: State, rules: Rules, accelerator: str = "cpu") -> str:
    """Why a device should not be timed now, in one line; empty if it may be."""
    if state.throttled:
        return "the device says that it is held back (power or heat); cool it or lower its clocks"
    limit = rules.limit_c(accelerator)
    if state.temperature_c is not None and state.temperature_c > limit:
        return f"it is at {state.temperature_c:.0f} °C, above {limit:.0f} °C; let it cool"
    if state.load is not None and state.load > rules.load:
        return f"others use {state.load:.0%} of it, more than {rules.load:.0%}; stop them or choose other cores"
    return ""


class Processor:
    """Cores of this machine's CPU.

    Args:
        cores: those in use; empty for all that this process may use.
        root: of the file system.
    """

    def __init__(self, cores: tuple[int, ...] = (), root: Path = Path("/")) -> None:
        self._root = root
        self._cores = cores or tuple(sorted(os.sched_getaffinity(0)))
        self._throttles = self._throttle_count()

    @property
    def model(self) -> str:
        """As /proc/cpuinfo has it."""
        for line in (text(self._root / "proc/cpuinfo") or "").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
        return platform.processor() or platform.machine()

    def read(self) -> State:
        """Waits `LOAD_WINDOW_S` to see who else is at work."""
        load = self._load()
        found = self.glance()
        return State(found.clock_mhz, found.temperature_c, load, self._power_mode(), found.throttled)

    def glance(self) -> State:
        """Clock and temperature from sysfs; `throttled` if the processor's throttle counters rose since last asked."""
        clocks = [number(self._cpu(core) / "cpufreq/scaling_cur_freq") for core in self._cores]
        known = [clock / 1e3 for clock in clocks if clock is not None]
        count = self._throttle_count()
        throttled, self._throttles = count > self._throttles, count
        return State(
            clock_mhz=sum(known) / len(known) if known else None,
            temperature_c=self._temperature(),
            throttled=throttled,
        )

    def _cpu(self, core: int) -> Path:
        return self._root / f"sys/devices/system/cpu/cpu{core}"

    def _throttle_count(self) -> int:
        counts = [number(self._cpu(core) / "thermal_throttle/core_throttle_count") for core in self._cores]
        return int(sum(count for count in counts if count is not None))

    def _power_mode(self) -> str | None:
        """Governor and turbo; clocks are free to move unless the governor is `performance` and there is no turbo."""
        governors = {text(self._cpu(core) / "cpufreq/scaling_governor") for core in self._cores} - {None}
        if not governors:
            return None
        cpus = self._root / "sys/devices/system/cpu"
        no_turbo, boost = text(cpus / "intel_pstate/no_turbo"), text(cpus / "cpufreq/boost")
        turbo = {"0": "on", "1": "off"}.get(no_turbo or "") or {"1": "on", "0": "off"}.get(boost or "")
        return ", ".join([*sorted(map(str, governors)), *([f"turbo {turbo}"] if turbo else [])])

    def _temperature(self) -> float | None:
        """The hottest sensor of the processor package."""
        hottest: list[float] = []
        for folder in sorted((self._root / "sys/class/hwmon").glob("hwmon*")):
            if text(folder / "name") in ("coretemp", "k10temp", "zenpower", "cpu_thermal"):
                hottest += [value / 1e3 for one in folder.glob("temp*_input") if (value := number(one)) is not None]
        return max(hottest, default=None)

    def _load(self) -> float:
        """Share of the cores' time that went to others, or that a hypervisor kept for itself."""
        before, own_before, started = self._busy_s(), time.process_time(), time.monotonic()
        time.sleep(LOAD_WINDOW_S)
        elapsed = time.monotonic() - started
        own = time.process_time() - own_before
        share = (self._busy_s() - before - own) / (elapsed * len(self._cores))
        return min(1.0, max(0.0, share))

    def _busy_s(self) -> float:
        """Seconds that the cores were not idle since the machine started."""
        times = psutil.cpu_times(percpu=True)
        return sum(
            sum(value for name, value in times[core]._asdict().items() if name not in _IDLE)
            for core in self._cores
            if core < len(times)
        )


_IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Not busy, or counted in `user` already."""
