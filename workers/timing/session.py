"""Times workloads on a device of this process: pins, looks, builds, checks, times beside each other, and reports."""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from search_spaces.errors import ConfigError, RankRayError
from search_spaces.layers import Stage
from workers.causes import cause
from workers.timing import protocol, rounds, spread
from workers.timing.backends import backends
from workers.timing.contract import Backend, Device, Measurement, Precision, Program, State, Status, Workload
from workers.timing.nvidia import NvidiaCard
from workers.timing.processor import Sensors, preflight, sensors_of
from workers.timing.protocol import Block, Rules, Verdict
from workers.timing.rounds import Observe, Subject, time_in_rounds
from workers.timing.workloads import LayerWorkload

__all__ = ["REFERENCE", "TOLERANCES", "Bench", "Session", "digest_of_code", "time_workloads", "versions_of"]

TOLERANCES: Mapping[Precision, float] = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
"""How far outputs may be from the reference, relative to its largest value."""

REFERENCE = LayerWorkload(Stage(64, 64, (3, 3), padding=(1, 1)), True, 14, 14)
"""Timed in every round beside whatever is timed: if it drifts, so did the rest."""


def time_workloads(
    device: Device, workloads: Sequence[Workload], *, rules: Rules | None = None, seed: int = 0
) -> list[Measurement]:
    """Times workloads on a device of this machine, in this process; nothing else should run in it.

    Args:
        rules: of the protocol, where they are not to be the usual ones.
        seed: of the order within rounds.

    Returns:
        One measurement per workload, in their order. One that fails says so in its status; the others are not touched.

    Raises:
        ConfigError: no such backend, it is not installed, or it does not know an option.
    """
    return Session(device, rules or Rules(), seed=seed).measure(workloads)


def versions_of(device: Device) -> Mapping[str, str]:
    """What decides whether two measurements of a device compare, as its measurements have it.

    Raises:
        ConfigError: no such backend, or it is not installed.
    """
    backend = backends().get(device.backend, f"devices.{device.name}.backend")
    found = dict(backend.versions())
    if device.accelerator.startswith("cuda") and (driver := NvidiaCard(device.accelerator).driver):
        found["driver"] = driver
    if device.options:
        found["options"] = ", ".join(f"{name}={value}" for name, value in sorted(device.options.items()))
    return {**found, "timing": digest_of_code(type(backend))}


@dataclass
class _Built:
    """A workload that was built and gives the right outputs, and how long that took."""

    observe: Observe
    seconds: float


class Bench(Protocol):
    """Where programs are built and run: this machine (`_Here`), or a board behind ssh (`board.py`)."""

    @property
    def model(self) -> str:
        """What the device physically is."""

    @property
    def node(self) -> str:
        """Host name of the device."""

    @property
    def versions(self) -> Mapping[str, str]:
        """As a measurement has them."""

    def read(self) -> State:
        """The device's state, while nothing of ours runs on it."""

    def pinned(self) -> AbstractContextManager[None]:
        """Holds whatever has to be in force while programs run."""

    def build(self, program: Program) -> tuple[Observe, Callable[[], torch.Tensor]]:
        """What times blocks of a program, and what gives its outputs."""


class Session:
    """One device; keeps its reference from one call to the next.

    Args:
        device: what is timed.
        rules: of the protocol.
        seed: of the order within rounds.
        sensors: of the device; by default those of this machine.
        bench: where it is, if not in this process.
        reference: timed in every round.
        clock: seconds, for time limits.
    """

    def __init__(
        self,
        device: Device,
        rules: Rules,
        *,
        seed: int = 0,
        sensors: Sensors | None = None,
        bench: Bench | None = None,
        reference: Workload = REFERENCE,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._rules, self._clock = device, rules, clock
        self._bench: Bench = bench or _Here(device, sensors or sensors_of(device))
        self._versions, self._model = self._bench.versions, self._bench.model
        self._of_reference = reference
        self._dice = random.Random(seed)
        self._reference: _Built | None = None
        self._first_ms: float | None = None

    def measure(self, workloads: Sequence[Workload]) -> list[Measurement]:
        """One measurement per workload, in their order."""
        found: list[Measurement] = []
        with self._bench.pinned():
            for start in range(0, len(workloads), self._rules.together):
                found += self._together(workloads[start : start + self._rules.together])
        return found

    def _together(self, workloads: Sequence[Workload]) -> list[Measurement]:
        """Builds some workloads and times them in the same rounds."""
        before, unfit = self._wait_until_fit()
        if unfit:
            status: Status = "throttled" if before.throttled or "°C" in unfit else "noisy"
            return [self._told(one, Verdict(status, unfit), before, before) for one in workloads]
        self._settle_reference()
        built = [self._build(workload) for workload in workloads]
        subjects = [
            Subject(one.observe, self._device.time_limit_s - one.seconds) for one in built if isinstance(one, _Built)
        ]
        reference = None if self._reference is None else Subject(self._reference.observe, math.inf)
        self._time(subjects, reference)
        after = self._bench.read()
        drift = self._drift(reference)
        left = iter(subjects)
        found = []
        for workload, one in zip(workloads, built, strict=True):
            if isinstance(one, Verdict):
                found.append(self._told(workload, one, before, after))
                continue
            subject = next(left)
            told = self._undrifted(subject.told or Verdict("error", "was not timed"), drift)
            seconds = one.seconds + subject.spent_s
            found.append(replace(self._told(workload, told, before, after), drift=drift, seconds=seconds))
        return found

    def _time(self, subjects: Sequence[Subject], reference: Subject | None = None) -> None:
        accelerator = self._device.accelerator
        time_in_rounds(
            subjects,
            self._rules,
            clock=self._clock,
            dice=self._dice,
            block_s=self._rules.block_s(accelerator),
            limit_c=self._rules.limit_c(accelerator),
            threads=self._device.threads,
            reference=reference,
        )

    def _wait_until_fit(self) -> tuple[State, str]:
        """The device's state, and why it is still unfit after a while."""
        deadline = time.monotonic() + self._rules.wait_s
        while True:
            state = self._bench.read()
            unfit = preflight(state, self._rules, self._device.accelerator)
            if not unfit or time.monotonic() >= deadline:
                return state, unfit
            time.sleep(0.5)

    def _settle_reference(self) -> None:
        """Builds the reference and times it alone, once; without one, drift is not known."""
        if self._reference is not None:
            return
        built = self._build(self._of_reference)
        if isinstance(built, Verdict):
            return
        self._reference = built
        alone = Subject(built.observe, self._device.time_limit_s)
        self._time([alone])
        if alone.told is not None and alone.told.status == "ok" and alone.told.spread is not None:
            self._first_ms = alone.told.spread.median_ms

    def _drift(self, reference: Subject | None) -> float:
        """The reference's median in these rounds over its first one; NaN where either is not known."""
        told = None if reference is None else reference.told
        if self._first_ms is None or told is None or told.spread is None:
            return math.nan
        return told.spread.median_ms / self._first_ms

    def _undrifted(self, told: Verdict, drift: float) -> Verdict:
        """What was found, unless the reference drifted meanwhile, or nobody knows and wall times were too few."""
        if told.status != "ok" or told.spread is None or abs(drift - 1.0) <= self._rules.drift:
            return told
        if math.isnan(drift):
            unknown = "the reference workload could not be timed, and CPU time alone does not tell a slower machine"
            return told if told.spread.clock == "wall" else Verdict("noisy", unknown, told.spread)
        moved = f"the reference workload took {drift:.2f} times as long as at first; {self._rules.drift:.0%} is allowed"
        return Verdict("noisy", moved, told.spread)

    def _build(self, workload: Workload) -> _Built | Verdict:
        """Builds a workload and compares its outputs, or says why that did not go."""
        started = self._clock()
        try:
            program = workload.program()
            observe, outputs = self._bench.build(program)
            wrong = _difference(program, outputs(), self._device.precision)
        except ConfigError:
            raise  # it would be the same for every workload, and somebody can mend it
        except RankRayError as error:
            return Verdict("error", str(error))
        except Exception as error:
            return Verdict("error", cause(error))
        return Verdict("wrong", wrong) if wrong else _Built(observe, self._clock() - started)

    def _told(self, workload: Workload, told: Verdict, before: State, after: State) -> Measurement:
        device = self._device
        return Measurement(
            kind=workload.kind,
            subject=workload.subject,
            batch_size=workload.batch_size,
            precision=device.precision,
            backend=device.backend,
            threads=device.threads,
            device=device.name,
            device_model=self._model,
            power_mode=before.power_mode or "",
            versions=self._versions,
            status=told.status,
            reason=told.reason,
            spread=told.spread,
            before=before,
            after=after,
            node=self._bench.node,
            taken_at=time.time(),
        )


class _Here:
    """This process: its backends, its cores, this machine's sensors."""

    def __init__(self, device: Device, sensors: Sensors) -> None:
        self._device, self._sensors = device, sensors
        self._backend: Backend = backends().get(device.backend, f"devices.{device.name}.backend")
        self.model, self.node, self.versions = sensors.model, platform.node(), versions_of(device)

    def read(self) -> State:
        """Everything that the sensors say."""
        return self._sensors.read()

    def pinned(self) -> AbstractContextManager[None]:
        """Cores and threads."""
        return _pinned(self._device)

    def build(self, program: Program) -> tuple[Observe, Callable[[], torch.Tensor]]:
        """Builds with the backend; blocks of the program's calls are observed as its device is glanced at."""
        run, outputs = self._backend.build(program, self._device)
        timer, on_cpu = self._backend.timer(self._device), self._device.accelerator == "cpu"

        def observe(calls: int) -> Block:
            timer(run, 1)  # whoever was timed before has left its own data in the caches
            before = self._sensors.glance()
            waited, worked = _waited_s() if on_cpu else None, time.process_time()
            wall = timer(run, calls)
            cpu = time.process_time() - worked
            waited = None if waited is None else (_waited_s() or waited) - waited
            return Block(calls, wall, cpu if on_cpu else None, waited, before, self._sensors.glance())

        return observe, outputs


@contextmanager
def _pinned(device: Device) -> Iterator[None]:
    """Keeps this thread, and those that it starts, on the device's cores, with the device's number of threads.

    Raises:
        ConfigError: this process may not use one of the cores.
    """
    usable, threads = os.sched_getaffinity(0), torch.get_num_threads()
    absent = sorted(set(device.cores) - usable)
    if absent:
        shown = ", ".join(map(str, sorted(usable)))
        raise ConfigError(f"devices.{device.name}.cores", f"core {absent[0]} is not among those usable here: {shown}")
    os.sched_setaffinity(0, device.cores or usable)
    torch.set_num_threads(device.threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, usable)


def _difference(program: Program, found: torch.Tensor, precision: Precision) -> str:
    """In what the outputs are not the reference's; empty if they are."""
    expected = program.reference
    if found.shape != expected.shape:
        return f"outputs are {tuple(found.shape)}, the reference's {tuple(expected.shape)}"
    scale = float(expected.abs().amax()) if expected.numel() else 0.0
    gap = float((found.double() - expected.double()).abs().amax()) / (scale or 1.0) if expected.numel() else 0.0
    if gap <= TOLERANCES[precision]:
        return ""
    return f"outputs differ from the reference by {gap:.1e} of its scale; {TOLERANCES[precision]:.0e} is allowed"


def _waited_s() -> float | None:
    """Seconds that this process' threads were ready to run and did not; None where the system does not say."""
    waited = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            waited += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e9


@cache
def digest_of_code(backend: type) -> str:
    """Of the code that takes measurements with a backend, comments and docstrings left out."""
    sha = hashlib.sha256()
    for module in (protocol, rounds, spread, inspect.getmodule(digest_of_code), inspect.getmodule(backend)):
        try:
            tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
        except (OSError, TypeError):
            continue
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                first = body[0].value
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    first.value = ""
        sha.update(ast.dump(tree).encode())
    return sha.hexdigest()[:12]
