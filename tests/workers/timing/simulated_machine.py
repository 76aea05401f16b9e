"""Machines made of numbers: a clock, a program that takes a known time, and whatever disturbs it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.timing.contract import State
from workers.timing.protocol import Block, Rules, Verdict
from workers.timing.rounds import Subject, time_in_rounds

COOL = State(clock_mhz=2000.0, temperature_c=50.0)

Disturb = Callable[["Machine"], tuple[float, float]]
"""By how much wall time and processor time of the next block are longer than they should be."""


def quiet(machine: Machine) -> tuple[float, float]:
    """Nothing but a little jitter."""
    factor = 1.0 + abs(machine.dice.gauss(0.0, 0.002))
    return factor, factor


def shared(chance: float) -> Disturb:
    """Others take the processor away in that share of the blocks."""

    def disturb(machine: Machine) -> tuple[float, float]:
        _, work = quiet(machine)
        return (work * machine.dice.uniform(1.2, 4.0) if machine.dice.random() < chance else work), work

    return disturb


def slowed(chance: float, factor: float = 2.4) -> Disturb:
    """In that share of the blocks the work itself takes longer, which no counter shows."""

    def disturb(machine: Machine) -> tuple[float, float]:
        _, work = quiet(machine)
        slow = work * (factor if machine.dice.random() < chance else 1.0)
        return slow, slow

    return disturb


@dataclass
class Machine:
    """One thread on one processor.

    Attributes:
        now: seconds since it was started.
        state: what its sensors say at a time.
        waits: whether its kernel counts how long threads wait.
    """

    disturb: Disturb = quiet
    seed: int = 0
    state: Callable[[float], State] = lambda now: COOL
    waits: bool = False
    now: float = 0.0
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def program(self, call_s: float) -> Callable[[int], Block]:
        """A program whose call takes this long on an idle machine."""

        def observe(calls: int) -> Block:
            wall, cpu = (call_s * calls * factor for factor in self.disturb(self))
            before = self.state(self.now)
            self.now += wall
            return Block(calls, wall, cpu, wall - cpu if self.waits else None, before, self.state(self.now))

        return observe

    def time(
        self, *calls_s: float, rules: Rules | None = None, limit_s: float = 10.0, threads: int = 1
    ) -> list[Verdict]:
        """Times programs in the same rounds."""
        subjects = [Subject(self.program(call_s), limit_s) for call_s in calls_s]
        self.time_subjects(subjects, rules=rules, threads=threads)
        return [subject.told or Verdict("error", "nothing was told") for subject in subjects]

    def time_subjects(
        self,
        subjects: list[Subject],
        *,
        rules: Rules | None = None,
        threads: int = 1,
        reference: Subject | None = None,
    ) -> None:
        time_in_rounds(
            subjects,
            rules or Rules(),
            clock=lambda: self.now,
            dice=random.Random(self.seed),
            block_s=0.004,
            limit_c=95.0,
            threads=threads,
            reference=reference,
        )
