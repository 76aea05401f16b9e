"""Times workloads on a device: looks whether it is fit, builds, checks, times beside each other, and reports."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from search_spaces.errors import ConfigError, RankRayError
from search_spaces.layers import Stage
from workers.causes import cause
from workers.timing.bench import Bench, Here
from workers.timing.contract import Device, Measurement, Precision, Program, State, Status, Workload
from workers.timing.processor import Sensors, preflight, sensors_of
from workers.timing.protocol import Rules, Verdict
from workers.timing.rounds import Observe, Subject, time_in_rounds
from workers.timing.spread import half_width
from workers.timing.versions import digest_of_code, versions_of
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


@dataclass
class _Built:
    """A workload that was built and gives the right outputs, and how long that took."""

    observe: Observe
    seconds: float


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
        self._bench: Bench = bench or Here(device, sensors or sensors_of(device))
        self._versions, self._model = self._bench.versions, self._bench.model
        self._of_reference = reference
        self._dice = random.Random(seed)
        self._reference: _Built | None = None
        self._first_ms = math.nan

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
        self._first_ms = self._known_ms(alone)

    def _drift(self, reference: Subject | None) -> float:
        """The reference's median in these rounds over its first one; NaN where either is not known."""
        now_ms = math.nan if reference is None else self._known_ms(reference)
        return now_ms / self._first_ms

    def _known_ms(self, reference: Subject) -> float:
        """The reference's median, if it is known well enough to tell a drift; NaN otherwise."""
        found = None if reference.told is None else reference.told.spread
        return found.median_ms if found is not None and half_width(found) <= self._rules.drift / 2.0 else math.nan

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
