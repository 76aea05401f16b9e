"""Jetson boards, by a made-up file system; none is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.timing.jetson import Jetson, is_jetson, power_mode_of

NVPMODEL = "NVPM WARN: power mode is not set!\nNV Power Mode: MODE_30W\n2\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An Orin with its clocks pinned, a zone that is off, a fan at work and a cooling device at rest."""
    files = {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "sys/class/devfreq/17000000.gpu/cur_freq": 1_300_500_000,
        "sys/class/devfreq/17000000.gpu/min_freq": 1_300_500_000,
        "sys/class/devfreq/17000000.gpu/max_freq": 1_300_500_000,
        "sys/class/devfreq/15340000.vic/cur_freq": 700_000_000,
        "sys/devices/gpu.0/load": 125,
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 2_201_600,
        "sys/class/thermal/thermal_zone0/temp": 48_500,
        "sys/class/thermal/thermal_zone1/temp": 52_000,
        "sys/class/thermal/thermal_zone2/temp": -256_000,
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": 2,
        "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
        "sys/class/thermal/cooling_device1/cur_state": 0,
    }
    for name, value in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return tmp_path


def test_a_board_is_known_by_its_device_tree_or_release_file(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    assert is_jetson(root)
    assert not is_jetson(other)
    (other / "etc").mkdir()
    (other / "etc/nv_tegra_release").touch()
    assert is_jetson(other)


def test_its_gpu(root: Path) -> None:
    state = Jetson("cuda:0", root, ask=lambda: NVPMODEL).read()
    assert (state.clock_mhz, state.temperature_c, state.load, state.throttled) == (1300.5, 52.0, 0.125, False)
    assert state.power_mode == "MODE_30W, clocks pinned"


def test_its_processor(root: Path) -> None:
    state = Jetson("cpu", root, ask=lambda: NVPMODEL).read()
    assert (state.clock_mhz, state.load) == (2201.6, None)


def test_clocks_that_are_free_to_move(root: Path) -> None:
    (root / "sys/class/devfreq/17000000.gpu/min_freq").write_text("306000000\n")
    assert Jetson("cuda:0", root, ask=lambda: NVPMODEL).read().power_mode == "MODE_30W, clocks free"


def test_a_cooling_device_at_work_means_it_is_held_back_and_a_fan_does_not(root: Path) -> None:
    (root / "sys/class/thermal/cooling_device1/cur_state").write_text("1\n")
    assert Jetson("cuda:0", root).glance().throttled


@pytest.mark.parametrize(("answer", "mode"), [(NVPMODEL, "MODE_30W"), ("NV Power Mode: MAXN\n0", "MAXN"), ("", None)])
def test_the_power_mode_in_nvpmodel_s_answer(answer: str, mode: str | None) -> None:
    assert power_mode_of(answer) == mode
