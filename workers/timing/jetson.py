"""The state of a Jetson board that is a node itself; nvidia-smi knows little of it, its own tools and sysfs more.

File names and the form of nvpmodel's answer are those of JetPack 4 to 7. No board was at hand when this was written.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from workers.timing.contract import State
from workers.timing.sysfs import number, text

__all__ = ["Jetson", "is_jetson", "nvpmodel", "power_mode_of"]


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this machine is a Jetson: NVIDIA's release file is there, or the device tree says so."""
    return (root / "etc/nv_tegra_release").exists() or "jetson" in (text(root / _MODEL) or "").lower()


def nvpmodel() -> str:
    """What `nvpmodel -q` says; empty where it is missing or fails."""
    try:
        done = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def power_mode_of(answer: str) -> str | None:
    """The mode in nvpmodel's answer (`NV Power Mode: MAXN`)."""
    found = re.search(r"NV Power Mode:\s*(\S+)", answer)
    return found.group(1) if found else None


class Jetson:
    """A board's GPU, or its processor.

    Args:
        accelerator: torch's name.
        root: of the file system.
        ask: gives nvpmodel's answer.
    """

    def __init__(self, accelerator: str, root: Path = Path("/"), ask: Callable[[], str] = nvpmodel) -> None:
        self._on_gpu, self._root, self._ask = accelerator.startswith("cuda"), root, ask

    @property
    def model(self) -> str:
        """As the device tree has it (`NVIDIA Jetson AGX Orin Developer Kit`)."""
        return text(self._root / _MODEL) or "NVIDIA Jetson"

    def read(self) -> State:
        """With the power mode and the GPU's load."""
        seen = self.glance()
        load = number(self._root / "sys/devices/gpu.0/load") if self._on_gpu else None
        return State(
            clock_mhz=seen.clock_mhz,
            temperature_c=seen.temperature_c,
            load=None if load is None else load / 1000.0,  # in tenths of a percent
            power_mode=self._power_mode(),
            throttled=seen.throttled,
        )

    def glance(self) -> State:
        """Clock, the hottest thermal zone, and whether a cooling device is at work."""
        return State(clock_mhz=self._clock(), temperature_c=self._temperature(), throttled=self._held_back())

    def _power_mode(self) -> str | None:
        """The mode, and whether clocks are pinned to its ceiling, which `jetson_clocks` does."""
        mode = power_mode_of(self._ask())
        if mode is None:
            return None
        low, high = (self._frequency(name) for name in ("min_freq", "max_freq"))
        return f"{mode}, clocks {'pinned' if low is not None and low == high else 'free'}"

    def _clock(self) -> float | None:
        frequency = self._frequency("cur_freq")
        if self._on_gpu:
            return None if frequency is None else frequency / 1e6
        kilohertz = number(self._root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
        return None if kilohertz is None else kilohertz / 1e3

    def _frequency(self, name: str) -> float | None:
        """Of the GPU, in Hz: its devfreq folder is named after its address (`17000000.gpu`), or `gpu-gpc-0`."""
        for folder in sorted((self._root / "sys/class/devfreq").glob("*")):
            if re.search(r"gpu|gv11b|gp10b|gm20b|ga10b", folder.name):
                return number(folder / name)
        return None

    def _temperature(self) -> float | None:
        zones = (self._root / "sys/class/thermal").glob("thermal_zone*/temp")
        found = [value / 1e3 for one in zones if (value := number(one)) is not None]
        return max((value for value in found if value > 0.0), default=None)  # sensors that are off say -256 degrees

    def _held_back(self) -> bool:
        """Whether a cooling device other than the fan is at work."""
        for folder in sorted((self._root / "sys/class/thermal").glob("cooling_device*")):
            if "fan" not in (text(folder / "type") or "fan") and (number(folder / "cur_state") or 0.0) > 0.0:
                return True
        return False


_MODEL = "proc/device-tree/model"
