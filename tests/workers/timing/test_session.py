"""Sessions: whatever happens to one workload, every workload has its measurement, and it says how it came about."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from search_spaces.errors import ConfigError
from search_spaces.layers import Stage
from workers.timing.backends import registry
from workers.timing.contract import Device, Measurement, Program, State, Workload
from workers.timing.protocol import Rules
from workers.timing.session import REFERENCE, Session, time_workloads
from workers.timing.versions import digest_of_code, versions_of
from workers.timing.workloads import LayerWorkload

CONV = Stage(4, 6, (3, 3), padding=(1, 1))
CORE = min(os.sched_getaffinity(0))
CPU = Device("cpu0", "torch", cores=(CORE,))
ANYTHING = Rules(
    warm_up_s=0.0,
    warm_up_limit_s=0.005,
    undisturbed=0.0,
    clock_change=1.0,
    cpu_limit_c=1e3,
    blocks=6,
    half_width=math.inf,
    load=1.0,
    wait_s=0.0,
    drift=math.inf,
)
"""Lets a machine that is busy with other tests do: how good times are is tested on simulated ones."""

# A backend of another package: each kind of layer meets another fate.
FATEFUL = """
from search_spaces.errors import MeasurementError
from workers.timing.backends.torch_eager import TorchEager

class Fateful(TorchEager):
    name = "fateful"

    def build(self, program, device):
        run, outputs = super().build(program, device)
        stages = list(program.module.children())
        if stages[0].groups > 1:
            raise MeasurementError(device.name, "groups are not supported")
        if stages[0].dilation != (1, 1):
            return run, lambda: outputs() * 1.01
        if stages[0].stride != (1, 1):
            return run, lambda: outputs()[..., :-1]
        if stages[0].kernel_size == (1, 1):
            return run, lambda: outputs() * float("nan")
        if stages[0].in_channels == 5:
            return breaking(), outputs
        return run, outputs

def breaking():
    left = iter(range(30))
    def run():
        next(left)
    return run

FATEFUL = Fateful()
"""
GOOD = LayerWorkload(CONV, True, 7, 7, "channel_svd", 3)
FATES: dict[str, LayerWorkload] = {
    "groups": LayerWorkload(CONV, True, 7, 7, "sliced_svd", (2, 1)),
    "off by a percent": LayerWorkload(replace(CONV, dilation=(2, 2)), True, 7, 7),
    "of another shape": LayerWorkload(replace(CONV, stride=(2, 2)), True, 7, 7),
    "no numbers": LayerWorkload(Stage(4, 6), True, 7, 7),
    "breaks when timed": LayerWorkload(replace(CONV, in_channels=5), True, 7, 7),
}


@pytest.fixture
def fateful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """A device whose backend another distribution offers."""
    information = tmp_path / "elsewhere-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[rankray.backends]\nfateful = elsewhere_backend:FATEFUL\n")
    (tmp_path / "elsewhere_backend.py").write_text(FATEFUL)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.backends.cache_clear()
    yield replace(CPU, backend="fateful")
    registry.backends.cache_clear()


@dataclass
class Told:
    """Sensors that say what they are told to say."""

    state: State
    model: str = "made-up processor"

    def read(self) -> State:
        return self.state

    def glance(self) -> State:
        return self.state


@dataclass(frozen=True)
class Probe:
    """A workload that looks around where its program is made."""

    seen: list[object]
    kind: Literal["layer", "network"] = "layer"
    subject: str = "probe"
    batch_size: int = 1
    macs: int = 1

    def program(self) -> Program:
        self.seen.append((os.sched_getaffinity(0), torch.get_num_threads()))
        inputs = torch.zeros(1, 3)
        return Program(nn.Identity(), inputs, inputs)


class Unmakeable(Probe):
    """A workload whose program cannot be made."""

    def program(self) -> Program:
        raise RuntimeError("no such\nprogram")


def _time(workloads: list[Workload], device: Device = CPU) -> list[Measurement]:
    return time_workloads(device, workloads, rules=ANYTHING)


class TestAMeasurement:
    """What it holds."""

    @pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
    def test_of_a_layer(self, backend: str) -> None:
        if backend != "torch":
            pytest.importorskip(backend)
        device = replace(CPU, backend=backend)
        before = time.time()
        (found,) = _time([GOOD], device)
        assert (found.status, found.reason) == ("ok", "")
        assert (found.kind, found.subject, found.batch_size) == ("layer", GOOD.subject, 1)
        assert (found.backend, found.device, found.threads, found.precision) == (backend, "cpu0", 1, "float32")
        assert found.versions == versions_of(device)
        assert found.device_model
        assert found.node
        assert before <= found.taken_at <= time.time()
        assert found.seconds > 0.0
        assert found.spread is not None
        assert 0.0 < found.spread.min_ms <= found.spread.median_ms
        assert found.spread.blocks == 6
        assert found.drift > 0.0

    def test_more_work_takes_longer(self) -> None:
        large = LayerWorkload(Stage(64, 64, (3, 3), padding=(1, 1)), True, 28, 28)
        small, big = _time([GOOD, large])
        assert small.spread is not None
        assert big.spread is not None
        assert big.spread.min_ms > 3 * small.spread.min_ms

    def test_they_come_in_the_order_of_the_workloads(self) -> None:
        workloads = [LayerWorkload(CONV, True, 7, 7, "channel_svd", rank) for rank in (3, 1, 6, 2, 5, 4)]
        found = time_workloads(CPU, workloads, rules=replace(ANYTHING, together=4))
        assert [one.subject for one in found] == [one.subject for one in workloads]

    def test_nothing_gives_nothing(self) -> None:
        assert _time([]) == []


class TestFates:
    """A workload that fails says so, and the others are measured as if it were not there."""

    def test_each_has_its_own(self, fateful: Device) -> None:
        found = _time([GOOD, *FATES.values(), GOOD], fateful)
        assert [one.status for one in found] == ["ok", "error", "wrong", "wrong", "wrong", "error", "ok"]
        reasons = dict(zip(FATES, [one.reason for one in found[1:-1]], strict=True))
        assert reasons["groups"] == "cpu0: groups are not supported"
        assert (
            reasons["off by a percent"] == "outputs differ from the reference by 1.0e-02 of its scale; 1e-03 is allowed"
        )
        assert reasons["of another shape"] == "outputs are (1, 6, 4, 3), the reference's (1, 6, 4, 4)"
        assert "by nan" in reasons["no numbers"]
        assert reasons["breaks when timed"] == "StopIteration"

    def test_a_program_that_cannot_be_made_is_an_error(self) -> None:
        bad, good = _time([Unmakeable([]), GOOD])
        assert (bad.status, bad.reason, bad.spread) == ("error", "RuntimeError: no such program", None)
        assert good.ok

    def test_a_percent_off_is_right_in_half_precision(self, fateful: Device) -> None:
        (found,) = _time([FATES["off by a percent"]], replace(fateful, precision="float16"))
        assert found.status == "ok"

    def test_a_time_limit_of_nothing_is_a_timeout(self) -> None:
        (found,) = _time([GOOD], replace(CPU, time_limit_s=0.0))
        assert found.status == "timeout"

    def test_a_reference_that_the_backend_refuses_leaves_drift_unknown(self, fateful: Device) -> None:
        (found,) = Session(fateful, ANYTHING, reference=FATES["groups"]).measure([GOOD])
        assert found.ok
        assert math.isnan(found.drift)


class TestTheDevice:
    """How it is treated, and when it is left alone."""

    def test_programs_are_made_on_its_cores_with_its_threads_and_all_is_put_back(self) -> None:
        usable, threads, seen = os.sched_getaffinity(0), torch.get_num_threads(), list[object]()
        _time([Probe(seen)], replace(CPU, threads=2))
        assert seen == [({CORE}, 2)]
        assert (os.sched_getaffinity(0), torch.get_num_threads()) == (usable, threads)

    @pytest.mark.parametrize(
        ("state", "status", "reason"),
        [
            (State(load=0.9), "noisy", "others use 90% of it"),
            (State(throttled=True), "throttled", "held back"),
            (State(temperature_c=99.0), "throttled", "99 °C"),
        ],
    )
    def test_one_that_is_not_fit_is_not_timed(
        self, state: State, status: Literal["noisy", "throttled"], reason: str
    ) -> None:
        rules = replace(ANYTHING, load=0.5, cpu_limit_c=95.0)
        seen: list[object] = []
        (found,) = Session(CPU, rules, sensors=Told(state)).measure([Probe(seen)])
        assert (found.status, found.spread, seen) == (status, None, [])
        assert reason in found.reason
        assert found.before == state

    def test_its_state_and_power_mode_are_in_the_measurement(self) -> None:
        state = State(2000.0, 50.0, 0.1, "performance, turbo off")
        (found,) = Session(CPU, ANYTHING, sensors=Told(state)).measure([GOOD])
        assert (found.before, found.after, found.power_mode) == (state, state, "performance, turbo off")
        assert found.device_model == "made-up processor"

    def test_a_reference_that_drifts_spoils_what_was_timed_beside_it(self) -> None:
        session = Session(CPU, replace(ANYTHING, drift=100.0))
        session.measure([GOOD])
        session._first_ms = 1e-9  # as if the machine had been a million times as fast
        (found,) = session.measure([GOOD])
        assert found.status == "noisy"
        assert "the reference workload took" in found.reason
        assert found.spread is not None

    def test_the_reference_is_small(self) -> None:
        assert REFERENCE.macs < 10e6


class TestBadInput:
    """Mistakes that hold for every workload are raised."""

    def test_a_core_that_is_not_there(self) -> None:
        with pytest.raises(ConfigError, match=r"^devices\.cpu0\.cores: core 4096 is not among those usable here: \d"):
            _time([GOOD], replace(CPU, cores=(4096,)))

    def test_a_backend_that_is_not_there(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^devices\.cpu0\.backend: unknown timing backend 'torhc'; did you mean 'torch"
        ):
            _time([GOOD], replace(CPU, backend="torhc"))

    def test_an_option_that_is_not_there(self) -> None:
        with pytest.raises(ConfigError, match=r"^devices\.cpu0\.options\.channel_last: .*did you mean 'channels_last'"):
            _time([GOOD], replace(CPU, options={"channel_last": True}))


class TestVersions:
    """What decides whether two measurements compare."""

    def test_options_are_part_of_it(self) -> None:
        plain, laid_out = versions_of(CPU), versions_of(replace(CPU, options={"channels_last": True}))
        assert laid_out == {**plain, "options": "channels_last=True"}

    def test_the_code_that_takes_times_is_part_of_it_and_what_is_said_about_it_is_not(
        self, fateful: Device, tmp_path: Path
    ) -> None:
        import elsewhere_backend

        file = Path(elsewhere_backend.__file__)
        first = digest_of_code(elsewhere_backend.Fateful)

        def after(text: str) -> str:
            file.write_text(text)
            digest_of_code.cache_clear()
            return digest_of_code(elsewhere_backend.Fateful)

        assert after(FATEFUL.replace("    name =", '    """Documented."""\n\n    # Why.\n    name =')) != ""
        assert after(f"# A comment.\n{FATEFUL}") == first
        assert after(FATEFUL.replace("1.01", "1.02")) != first
