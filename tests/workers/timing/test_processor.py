"""The state of processors, from a made-up file system, and what makes a device unfit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.timing.contract import Device, State
from workers.timing.jetson import Jetson
from workers.timing.nvidia import NvidiaCard
from workers.timing.processor import Processor, preflight, sensors_of
from workers.timing.protocol import Rules

CORE = min(os.sched_getaffinity(0))


def write(root: Path, files: dict[str, object]) -> None:
    """Writes small files, as Linux would have them."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with two cores, a governor, turbo and two temperature sensors."""
    cpus = "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU 9000\n",
            f"{cpus}/cpu0/cpufreq/scaling_cur_freq": 2_000_000,
            f"{cpus}/cpu1/cpufreq/scaling_cur_freq": 3_000_000,
            f"{cpus}/cpu0/cpufreq/scaling_governor": "performance",
            f"{cpus}/cpu1/cpufreq/scaling_governor": "powersave",
            f"{cpus}/cpu0/thermal_throttle/core_throttle_count": 7,
            f"{cpus}/cpu1/thermal_throttle/core_throttle_count": 1,
            f"{cpus}/cpufreq/boost": 1,
            "sys/class/hwmon/hwmon0/name": "coretemp",
            "sys/class/hwmon/hwmon0/temp1_input": 41_000,
            "sys/class/hwmon/hwmon0/temp2_input": 55_500,
            "sys/class/hwmon/hwmon1/name": "nvme",
            "sys/class/hwmon/hwmon1/temp1_input": 80_000,
        },
    )
    return tmp_path


class TestProcessor:
    """What is read of the cores in use."""

    def test_model(self, root: Path) -> None:
        assert Processor((0,), root).model == "Fast CPU 9000"

    def test_clock_is_the_mean_of_the_cores(self, root: Path) -> None:
        assert Processor((0,), root).glance().clock_mhz == 2000.0
        assert Processor((0, 1), root).glance().clock_mhz == 2500.0

    def test_temperature_is_the_hottest_sensor_of_the_processor(self, root: Path) -> None:
        assert Processor((0,), root).glance().temperature_c == 55.5

    def test_power_mode_is_governor_and_turbo(self, root: Path) -> None:
        assert Processor((0,), root).read().power_mode == "performance, turbo on"
        assert Processor((0, 1), root).read().power_mode == "performance, powersave, turbo on"

    def test_intel_s_switch_counts_the_other_way(self, root: Path) -> None:
        write(root, {"sys/devices/system/cpu/intel_pstate/no_turbo": 1})
        assert Processor((0,), root).read().power_mode == "performance, turbo off"

    def test_is_throttled_when_its_counters_rise_and_not_for_what_was_before(self, root: Path) -> None:
        processor = Processor((0,), root)
        assert not processor.glance().throttled
        write(root, {"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 8})
        assert processor.glance().throttled
        assert not processor.glance().throttled

    def test_that_says_nothing_has_an_unknown_state(self, tmp_path: Path) -> None:
        processor = Processor((0,), tmp_path)
        assert processor.glance() == State()
        assert processor.model

    def test_this_machine_has_a_load(self) -> None:
        load = Processor((CORE,)).read().load
        assert load is not None
        assert 0.0 <= load <= 1.0


class TestPreflight:
    """Why a device should not be timed now."""

    def test_a_device_that_says_nothing_bad_is_fit(self) -> None:
        assert preflight(State(2000.0, 50.0, 0.1, "performance"), Rules()) == ""
        assert preflight(State(), Rules()) == ""

    @pytest.mark.parametrize(
        ("state", "why"),
        [
            (State(load=0.9), "others use 90% of it, more than 75%; stop them or choose other cores"),
            (State(temperature_c=96.0), "it is at 96 °C, above 95 °C; let it cool"),
            (State(throttled=True), "the device says that it is held back"),
        ],
    )
    def test_one_that_is_busy_hot_or_held_back_is_not(self, state: State, why: str) -> None:
        assert preflight(state, Rules()).startswith(why)

    def test_cards_have_another_limit(self) -> None:
        assert preflight(State(temperature_c=90.0), Rules()) == ""
        assert "above 85 °C" in preflight(State(temperature_c=90.0), Rules(), "cuda:0")


class TestSensorsOfADevice:
    """Which sensors a device has."""

    def test_a_processor(self, root: Path) -> None:
        sensors = sensors_of(Device("cpu0", "torch", cores=(0,)), root)
        assert isinstance(sensors, Processor)

    def test_a_card(self, root: Path) -> None:
        assert isinstance(sensors_of(Device("v100", "torch", accelerator="cuda:0"), root), NvidiaCard)

    def test_a_board(self, root: Path) -> None:
        write(root, {"proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0"})
        sensors = sensors_of(Device("orin", "torch", accelerator="cuda:0"), root)
        assert isinstance(sensors, Jetson)
        assert sensors.model == "NVIDIA Jetson AGX Orin Developer Kit"
