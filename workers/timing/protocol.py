"""The rules of timing: which blocks count, when it is enough, and what is said of it. Pure: effects are in `rounds.py`.

A block is a run of calls that is timed as a whole. It counts unless something other than the work shows in it:

* `shared`: the process did not have its processor for the whole block. For one thread that is process CPU time below
  97 % of wall time; for several threads, of which some may rightly wait for others, time spent runnable but waiting
  for a processor above 3 % (where the kernel says so);
* `clock`: the device's clock was another one after the block than before it, or than in the blocks that count;
* `throttled`: the device says that it is held back;
* `hot`: it is above the temperature limit.

It is enough when at least `blocks` count and the confidence interval of their median is narrow. On a processor that
others use all the time, calls longer than a scheduler's slice hardly ever get a block of their own. For them, on one
thread, process CPU time stands in for wall time, where fewer than `blocks` in `patience` count. It leaves out what
others took, not what their use of caches costs (a fifth more was seen, of short calls): so shorter calls must wait for
blocks of their own, and CPU time is noted in the spread (`clock` is `cpu`) and believed only if the reference workload,
timed beside it, shows no drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from workers.timing.contract import Clock, Spread, State, Status
from workers.timing.spread import half_width, spread

__all__ = ["Block", "Fault", "Rules", "Verdict", "calls_for", "fault", "steady", "verdict"]

Fault = Literal["shared", "clock", "throttled", "hot"]


@dataclass(frozen=True)
class Rules:
    """The numbers of the protocol; shares are of 1.

    Attributes:
        warm_up_s: at least.
        warm_up_limit_s: at most, where medians never agree.
        agreement: of the medians of two successive groups of blocks at the end of the warm-up.
        cpu_block_s, accelerator_block_s: least length of a block.
        undisturbed: least share of a block in which the process had its processor.
        clock_change: by which a clock may move within a measurement.
        cpu_limit_c, accelerator_limit_c: temperatures above which no block counts.
        blocks: that count, at least.
        half_width: of the median's confidence interval, relative to it, at most.
        patience: blocks after which CPU time may stand in for wall time, if fewer than `blocks` in so many count; it
            may at the time limit, too.
        slice_s: that a processor wanted by others is given to one process at a time; only for calls longer than this
            may CPU time stand in.
        drift: by which the reference workload may have moved.
        load: of the device by others before timing, at most.
        wait_s: for a device that is too busy or too hot, before it is given up.
        together: workloads that are timed in the same rounds.
    """

    warm_up_s: float = 0.2
    warm_up_limit_s: float = 2.0
    agreement: float = 0.02
    cpu_block_s: float = 0.002
    accelerator_block_s: float = 0.04
    undisturbed: float = 0.97
    clock_change: float = 0.05
    cpu_limit_c: float = 95.0
    accelerator_limit_c: float = 85.0
    blocks: int = 11
    half_width: float = 0.01
    patience: int = 60
    slice_s: float = 0.004
    drift: float = 0.05
    load: float = 0.75
    wait_s: float = 20.0
    together: int = 8

    def block_s(self, accelerator: str) -> float:
        """Least length of a block on a device of torch's name `accelerator`."""
        return self.cpu_block_s if accelerator == "cpu" else self.accelerator_block_s

    def limit_c(self, accelerator: str) -> float:
        """The device's temperature limit."""
        return self.cpu_limit_c if accelerator == "cpu" else self.accelerator_limit_c


@dataclass(frozen=True)
class Block:
    """One timed block.

    Attributes:
        calls: in it.
        wall_s: by the backend's timer: wall clock, or the device's own events.
        cpu_s: processor time of the process; None where the work is not the processor's.
        waited_s: that its threads were runnable without running, summed up; None where nobody says.
        before, after: the device's state; only what is read quickly.
    """

    calls: int
    wall_s: float
    cpu_s: float | None = None
    waited_s: float | None = None
    before: State = field(default_factory=State)
    after: State = field(default_factory=State)


@dataclass(frozen=True)
class Verdict:
    """How timing one workload ended."""

    status: Status
    reason: str = ""
    spread: Spread | None = None


def calls_for(call_s: float, block_s: float) -> int:
    """Calls that make a block at least this long."""
    return max(1, -int(-block_s // call_s))


def steady(seconds: Sequence[float], agreement: float, group: int = 3) -> bool:
    """Whether the medians of the last two groups of warm-up blocks agree."""
    if len(seconds) < 2 * group:
        return False
    last, before = median(seconds[-group:]), median(seconds[-2 * group : -group])
    return abs(last - before) <= agreement * min(last, before)


def fault(block: Block, rules: Rules, *, threads: int, limit_c: float, clock_mhz: float | None = None) -> Fault | None:
    """Why a block does not count; None if it does.

    Args:
        threads: of the backend.
        limit_c: the device's temperature limit.
        clock_mhz: of the blocks that count so far.
    """
    states = (block.before, block.after)
    if any(state.throttled for state in states):
        return "throttled"
    if any(state.temperature_c is not None and state.temperature_c > limit_c for state in states):
        return "hot"
    clocks = [clock for clock in (clock_mhz, *(state.clock_mhz for state in states)) if clock is not None]
    if clocks and max(clocks) - min(clocks) > rules.clock_change * max(clocks):
        return "clock"
    if threads == 1 and block.cpu_s is not None and block.cpu_s < rules.undisturbed * block.wall_s:
        return "shared"
    if threads > 1 and block.waited_s is not None and block.waited_s > (1.0 - rules.undisturbed) * block.wall_s:
        return "shared"
    return None


def verdict(
    blocks: Sequence[Block], rules: Rules, *, threads: int, limit_c: float, out_of_time: bool = False
) -> Verdict | None:
    """What the blocks so far say of a workload; None: go on.

    Args:
        blocks: all of one number of calls, in the order of time.
        out_of_time: whether an answer is due.
    """
    faults = _faults(blocks, rules, threads, limit_c)
    counted = [block for block, why in zip(blocks, faults, strict=True) if why is None]
    wall = _spread([block.wall_s for block in counted], blocks, "wall")
    if wall is not None and _is_enough(wall, rules):
        return Verdict("ok", spread=wall)
    seldom = len(counted) * rules.patience < rules.blocks * len(blocks)
    if threads == 1 and seldom and (out_of_time or len(blocks) >= rules.patience):
        cpu = _cpu_spread(blocks, faults)
        if cpu is not None and cpu.median_ms > rules.slice_s * 1e3 and _is_enough(cpu, rules):
            return Verdict("ok", spread=cpu)
    return _late(blocks, faults, wall, rules) if out_of_time else None


def _faults(blocks: Sequence[Block], rules: Rules, threads: int, limit_c: float) -> list[Fault | None]:
    """Every block's, at the median clock: that of the blocks themselves, so that a first slow one does not decide."""
    clocks = [block.after.clock_mhz for block in blocks if block.after.clock_mhz is not None]
    usual = median(clocks) if clocks else None
    return [fault(block, rules, threads=threads, limit_c=limit_c, clock_mhz=usual) for block in blocks]


def _spread(seconds: Sequence[float], blocks: Sequence[Block], clock: Clock) -> Spread | None:
    if not seconds or min(seconds) <= 0.0:
        return None
    calls = blocks[0].calls
    return spread([one * 1e3 / calls for one in seconds], rejected=len(blocks) - len(seconds), calls=calls, clock=clock)


def _cpu_spread(blocks: Sequence[Block], faults: Sequence[Fault | None]) -> Spread | None:
    """Of processor time, where nothing but other processes came between."""
    worked = [
        block.cpu_s
        for block, why in zip(blocks, faults, strict=True)
        if why in (None, "shared") and block.cpu_s is not None
    ]
    return _spread(worked, blocks, "cpu")


def _is_enough(found: Spread, rules: Rules) -> bool:
    return found.blocks >= rules.blocks and half_width(found) <= rules.half_width


_WHY: dict[Fault, str] = {
    "shared": "others used the processor",
    "clock": "the clock moved",
    "throttled": "the device was held back",
    "hot": "the device was too hot",
}


def _late(blocks: Sequence[Block], faults: Sequence[Fault | None], found: Spread | None, rules: Rules) -> Verdict:
    """The time is up, and it is not enough."""
    if len(blocks) < rules.blocks:
        return Verdict("timeout", f"{len(blocks)} blocks within the time limit, {rules.blocks} are needed", found)
    why = Counter(one for one in faults if one is not None)
    rejected = "; ".join(f"{_WHY[one]} in {count}" for one, count in why.most_common())
    told = f"{len(blocks) - sum(why.values())} of {len(blocks)} blocks count" + (f" ({rejected})" if rejected else "")
    if sum(count for one, count in why.items() if one != "shared") > len(blocks) // 2:
        return Verdict("throttled", told, found)
    if found is not None and found.blocks >= rules.blocks:
        told += f"; the median is known to {half_width(found):.1%}, {rules.half_width:.1%} is wanted"
    return Verdict("noisy", told, found)
