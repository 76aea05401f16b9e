"""Times several subjects beside each other: warm-up, then rounds in random order until every one of them is told.

What it needs of the world is handed in (`Observe` runs calls, `clock` says what time it is), so that the whole loop
runs on simulated machines too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workers.causes import cause
from workers.timing.protocol import Block, Rules, Verdict, calls_for, steady, verdict

__all__ = ["ClockError", "Observe", "Subject", "time_in_rounds", "warm_up"]

Observe = Callable[[int], Block]
"""Runs that many calls and says what was seen."""

Clock = Callable[[], float]
"""Seconds, from any start."""


class ClockError(RuntimeError):
    """A clock that times nothing."""


@dataclass
class Subject:
    """Something that is timed.

    Attributes:
        observe: runs it.
        limit_s: for its warm-up and its blocks together.
        blocks: so far, all of the same number of calls.
        told: how it ended; None as long as it is timed.
    """

    observe: Observe
    limit_s: float
    calls: int = 0
    spent_s: float = 0.0
    blocks: list[Block] = field(default_factory=list)
    told: Verdict | None = None


def time_in_rounds(
    subjects: Sequence[Subject],
    rules: Rules,
    *,
    clock: Clock,
    dice: random.Random,
    block_s: float,
    limit_c: float,
    threads: int,
    reference: Subject | None = None,
) -> None:
    """Times subjects until each is told; what it finds lies in them.

    A round has one block of every subject that is not told yet, in random order: what disturbs the machine for a while
    disturbs all of them. A subject that raises is told `error`, and the others go on.

    Args:
        subjects: with a verdict at the end.
        clock: for time limits.
        dice: draws the orders.
        block_s: least length of a block.
        limit_c: the device's temperature limit.
        threads: of the backend.
        reference: has its block in every round, until all subjects are told; it need not come to an end.
    """

    def judge(subject: Subject, *, due: bool) -> Verdict | None:
        return verdict(subject.blocks, rules, threads=threads, limit_c=limit_c, out_of_time=due)

    def step(subject: Subject) -> None:
        started = clock()
        try:
            if not subject.calls:
                subject.calls = warm_up(subject.observe, rules, block_s, clock)
            subject.blocks.append(_checked(subject.observe(subject.calls)))
        except Exception as error:
            subject.told = Verdict("error", cause(error))
            return
        elapsed = clock() - started
        if elapsed < 0.0:
            subject.told = Verdict("error", _backwards(elapsed))
            return
        subject.spent_s += elapsed
        if subject is not reference:
            subject.told = judge(subject, due=subject.spent_s >= subject.limit_s)

    beside = [] if reference is None else [reference]
    while waiting := [subject for subject in subjects if subject.told is None]:
        order = [*waiting, *(one for one in beside if one.told is None)]
        dice.shuffle(order)
        for subject in order:
            step(subject)
    for one in beside:
        if one.told is None and one.blocks:
            one.told = judge(one, due=True)


def warm_up(observe: Observe, rules: Rules, block_s: float, clock: Clock) -> int:
    """Runs it for a while and until its times settle, or to a limit: the verdict will say if they never do.

    Returns:
        Calls per block.

    Raises:
        ClockError: a clock that stands still or goes backwards.
    """
    started = clock()
    calls, seconds = 1, list[float]()
    while True:
        block = _checked(observe(calls))
        seconds.append(block.wall_s / calls)
        # The quickest call so far: the first ones are slow, and a block that is too long costs nothing but time.
        calls = calls_for(min(seconds), block_s)
        elapsed = clock() - started
        if elapsed < 0.0:
            raise ClockError(_backwards(elapsed))
        settled = elapsed >= rules.warm_up_s and steady(seconds, rules.agreement)
        if settled or elapsed >= rules.warm_up_limit_s:
            break
    return calls


def _checked(block: Block) -> Block:
    """The block, if time passed in it.

    Raises:
        ClockError: it did not.
    """
    if not block.wall_s > 0.0:  # NaN is no time either
        if block.wall_s == 0.0:
            raise ClockError(f"the clock stood still over {block.calls} calls; a block of calls must take time")
        raise ClockError(_backwards(block.wall_s))
    if block.cpu_s is not None and block.cpu_s < 0.0:
        raise ClockError(_backwards(block.cpu_s))
    return block


def _backwards(seconds: float) -> str:
    return f"the clock went backwards by {-seconds:.6f} s; times taken with it mean nothing"
