"""Estimates: the record of a measurement, without a clock. ZigZag itself is asked where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from search_spaces.errors import ConfigError
from search_spaces.layers import Stage
from workers.timing.backends.estimators import estimators
from workers.timing.backends.zigzag import Loops, ZigZag, loops
from workers.timing.contract import Device, Program, Spread
from workers.timing.estimate_way import EstimateWay, estimate_workloads
from workers.timing.lease import Lease
from workers.timing.way import way_to
from workers.timing.workloads import LayerWorkload, NetworkWorkload

installed = pytest.mark.skipif(
    importlib.util.find_spec("zigzag") is None, reason='ZigZag is not installed (pip install "rankray[asic]")'
)
LINEAR = LayerWorkload(Stage(64, 10, linear=True), True, 1, 1)


def eyeriss(**options: Any) -> Device:
    return Device("eyeriss", "zigzag", options=options, time_limit_s=300.0)


def program_of(module: nn.Module, *shape: int) -> Program:
    return Program(module.eval(), torch.randn(*shape), torch.zeros(()))


class TestLoops:
    @settings(max_examples=30)
    @given(
        groups=st.integers(1, 3),
        deep=st.integers(1, 3),
        wide=st.integers(1, 3),
        stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
        dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        samples=st.integers(1, 2),
    )
    def test_they_count_a_convolution_s_multiplications(
        self, groups: int, deep: int, wide: int, stride: tuple[int, int], dilation: tuple[int, int], samples: int
    ) -> None:
        layer = nn.Conv2d(groups * deep, groups * wide, (3, 2), stride, (1, 0), dilation, groups)
        program = program_of(layer, samples, groups * deep, 9, 7)
        [found] = loops(program)
        outputs = layer(program.inputs)
        assert (found.stride, found.dilation, found.kernel) == (stride, dilation, (3, 2))
        assert multiplications(found) == outputs.numel() * deep * 6

    @pytest.mark.parametrize("shape", [(64,), (3, 64), (3, 7, 64), (3, 2, 7, 64)])
    def test_a_linear_layer_is_a_point_at_every_position(self, shape: tuple[int, ...]) -> None:
        program = program_of(nn.Linear(64, 10), *shape)
        [found] = loops(program)
        assert multiplications(found) == program.inputs.numel() * 10
        assert found.kernel == (1, 1)

    def test_a_network_s_are_those_of_every_call_in_order(self) -> None:
        shared = nn.Conv2d(4, 4, 1)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), shared, shared, nn.Flatten(), nn.Linear(36, 2))
        program = program_of(network, 1, 3, 5, 5)
        point = Loops(1, 4, 4, 3, 3)
        assert loops(program) == [Loops(1, 4, 3, 3, 3, (3, 3)), point, point, Loops(1, 2, 36, 1, 1)]
        assert loops(program) == loops(program)  # no hook stays behind


def multiplications(one: Loops) -> int:
    places = one.samples * one.height * one.width * one.kernel[0] * one.kernel[1]
    return places * one.filters * one.channels * one.groups


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"clock_mhz": 0}, "options.clock_mhz: must be a positive number, not 0"),
            ({"clock_mhz": float("nan")}, "options.clock_mhz: must be a positive number"),
            ({"clock_mhz": "fast"}, "options.clock_mhz: must be a positive number, not 'fast'"),
            ({"clock_mhz": True}, "options.clock_mhz: must be a positive number"),
            ({"lpf_limit": 4.5}, "options.lpf_limit: must be a whole number, not 4.5"),
            ({"lpf": 4}, "options.lpf: unknown option of zigzag; known: clock_mhz, lpf_limit"),
        ],
    )
    def test_a_wrong_one_is_named(self, options: Mapping[str, Any], message: str) -> None:
        device, program = eyeriss(**options), program_of(nn.Linear(2, 2), 1, 2)
        for ask in (ZigZag().device_model, ZigZag().versions, lambda one: ZigZag().estimate(program, one)):
            with pytest.raises(ConfigError) as wrong:
                ask(device)
            assert message in str(wrong.value)

    def test_the_clock_is_part_of_what_the_device_is(self) -> None:
        assert ZigZag().device_model(eyeriss(clock_mhz=250)) == "Eyeriss-like 14x12 array at 250 MHz"

    def test_the_backend_chooses_the_way(self) -> None:
        assert isinstance(way_to(eyeriss()), EstimateWay)
        assert "zigzag" in way_to(eyeriss()).backends()
        assert not isinstance(way_to(Device("cpu", "torch")), EstimateWay)


class TestLeases:
    def test_without_cores_it_leases_nothing(self) -> None:
        assert EstimateWay().things(eyeriss()) == ()

    def test_cores_that_it_is_given_are_its_own(self) -> None:
        core = min(os.sched_getaffinity(0))
        assert EstimateWay().things(replace(eyeriss(), cores=(core,))) == (f"core-{core}",)
        with pytest.raises(ConfigError, match=r"^devices\.eyeriss\.cores: core 9999 is not among"):
            EstimateWay().things(replace(eyeriss(), cores=(9999,)))


def test_without_zigzag_it_says_what_to_install() -> None:
    """In a process that cannot import it."""
    code = (
        "import sys; sys.modules['zigzag'] = None\n"
        "from workers.timing.backends.zigzag import ZigZag\n"
        "from workers.timing.contract import Device\n"
        "try: ZigZag().versions(Device('eyeriss', 'zigzag'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("ConfigError backend zigzag: needs ")
    assert 'pip install "rankray[asic]"' in done.stdout
    assert done.stdout.count("\n") == 1


@installed
class TestEstimates:
    def test_an_estimate_is_a_measurement_without_width(self) -> None:
        [found] = EstimateWay().time(eyeriss(), [LINEAR], {}, Lease((), ()))
        assert (found.status, found.reason) == ("ok", "")
        assert (found.subject, found.backend, found.power_mode) == (LINEAR.subject, "zigzag", "")
        assert found.spread is not None
        ms = found.spread.median_ms
        assert found.spread == Spread(ms, ms, ms, ms, ms, ms, blocks=1, rejected=0, calls=1)
        assert 640 / 168 <= ms * 200e3 <= 640  # cycles: at best all elements work, at worst one
        assert "lpf_limit 4" in found.versions["mapping"]
        assert found.device_model == EstimateWay().identify(eyeriss()).device_model
        assert found.versions == EstimateWay().identify(eyeriss()).versions

    def test_it_is_the_same_every_time_and_follows_the_clock(self) -> None:
        slow, again, fast = (estimate_workloads(eyeriss(clock_mhz=mhz), [LINEAR])[0] for mhz in (100, 100, 200))
        assert slow.spread == again.spread
        assert slow.spread is not None
        assert fast.spread is not None
        assert slow.spread.median_ms == 2.0 * fast.spread.median_ms

    def test_a_network_is_the_sum_of_its_layers(self) -> None:
        network = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 8))
        parts = [LINEAR, LayerWorkload(Stage(10, 8, linear=True), True, 1, 1)]
        whole, *layers = estimate_workloads(eyeriss(), [NetworkWorkload(network, (64,)), *parts])
        assert [one.status for one in (whole, *layers)] == ["ok"] * 3
        assert whole.spread is not None
        total = sum(one.spread.median_ms for one in layers if one.spread is not None)
        assert whole.spread.median_ms == pytest.approx(total)

    def test_what_has_nothing_to_estimate_is_an_error_and_the_others_go_on(self) -> None:
        nothing, found = estimate_workloads(eyeriss(), [NetworkWorkload(nn.ReLU(), (4,)), LINEAR])
        assert (nothing.status, nothing.spread, found.status) == ("error", None, "ok")
        assert "calls no Conv2d and no Linear" in nothing.reason

    @pytest.mark.slow
    def test_low_rank_pays_as_its_multiplications_say(self) -> None:
        """A 3 x 3 layer of 256 channels on 14 x 14 at rank 96: with a fixed row-stationary mapping it would not."""
        dense = LayerWorkload(Stage(256, 256, (3, 3), padding=(1, 1)), False, 14, 14)
        tucker = LayerWorkload(dense.dense, False, 14, 14, "tucker2", 96)
        sliced = LayerWorkload(dense.dense, False, 14, 14, "sliced_svd", (4, 24))
        found = estimate_workloads(eyeriss(), [dense, tucker, sliced])
        for workload, one in zip((dense, tucker, sliced), found, strict=True):
            assert one.spread is not None, one.reason
            used = workload.macs / (one.spread.median_ms * 200e3) / 168
            assert 0.9 < used <= 1.0


def test_estimators_are_no_timing_backends() -> None:
    assert estimators().names() == ["zigzag"]
