"""The hardware actor, as a plain object: leases, children, answers. As a Ray actor: `test_measure_run.py`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from search_spaces.errors import ConfigError, MeasurementError
from tests.workers.timing import odd_backends
from workers.timing.child import ChildFailedError, ChildTimeoutError
from workers.timing.contract import Device, Measurement
from workers.timing.hardware_actor import HardwareActor
from workers.timing.lease import LeaseHeldError, lease, lease_holder
from workers.timing.session import REFERENCE

CORE = min(os.sched_getaffinity(0))
ANYHOW = {"load": 1.0, "wait_s": 0.0, "half_width": 0.9, "blocks": 6, "drift": 9.0, "warm_up_s": 0.0}
"""Rules by which a machine that is busy with other tests is good enough."""


@pytest.fixture(autouse=True)
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd_backends.register(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RANKRAY_LEASES", str(tmp_path / "leases"))


def actor(backend: str = "torch", *, limit_s: float = 60.0, name: str = "here") -> HardwareActor:
    return HardwareActor(Device(name, backend, cores=(CORE,), time_limit_s=limit_s), "a run", ANYHOW)


def test_it_times_under_its_lease_and_says_so_meanwhile() -> None:
    here, found = actor(), list[Measurement]()
    timing = threading.Thread(target=lambda: found.extend(here.time([REFERENCE], 5.0)))
    timing.start()
    while here.activity().holder is None:
        assert timing.is_alive(), "it never had the lease"
        time.sleep(0.01)
    activity = here.activity()
    with pytest.raises(LeaseHeldError, match=f"core-{CORE} is leased by process {os.getpid()}"):
        HardwareActor(Device("other", "torch", cores=(CORE,)), "another", ANYHOW).time([REFERENCE], 0.1)
    timing.join()
    assert activity.timing == 1
    assert activity.holder is not None
    assert activity.holder.run == "a run"
    assert here.activity().holder is None
    assert here.activity().timing == 0
    assert [(one.subject, one.device, one.status) for one in found] == [(REFERENCE.subject, "here", "ok")]
    assert found[0].spread is not None
    assert found[0].spread.median_ms > 0


def test_what_a_device_is_comes_with_the_versions_of_its_measurements() -> None:
    identity = actor().identify()
    assert identity.device_model
    assert identity.versions["torch"]
    assert identity.state.load is not None


def test_a_hanging_device_is_given_up_and_its_lease_is_free() -> None:
    with pytest.raises(ChildTimeoutError, match="first: hangs: no sign of life for 1 s"):
        actor("hangs_first", limit_s=1.0, name="first").time([REFERENCE], 1.0)
    assert lease_holder(f"core-{CORE}") is None


def test_a_crash_is_an_error_with_its_last_line() -> None:
    with pytest.raises(ChildFailedError, match="SIGABRT: driver: unrecoverable"):
        actor("crashes").time([REFERENCE], 1.0)
    assert lease_holder(f"core-{CORE}") is None


def test_a_core_that_the_node_does_not_have() -> None:
    cores = os.cpu_count() or 1
    with pytest.raises(ConfigError, match=rf"^devices\.far\.cores: core {cores} is not among those usable here: "):
        HardwareActor(Device("far", "torch", cores=(cores,)), "a run").time([REFERENCE], 1.0)


def test_a_card_that_the_node_does_not_have() -> None:
    with pytest.raises(MeasurementError, match="no such card"):
        HardwareActor(Device("card", "torch", accelerator="cuda:63"), "a run").activity()


def test_a_processor_without_cores_is_all_that_may_be_used() -> None:
    with lease([f"core-{CORE}"], "another", wait_s=0), pytest.raises(LeaseHeldError):
        HardwareActor(Device("all", "torch"), "a run", ANYHOW).time([REFERENCE], 0.1)


@pytest.mark.parametrize(("rule", "value"), [("blokcs", 3), ("blocks", "three")])
def test_a_wrong_rule_is_named(rule: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^timing\.protocol\.{rule}: "):
        HardwareActor(Device("here", "torch"), "a run", {rule: value}).time([REFERENCE], 0.1)
