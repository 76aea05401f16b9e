"""Timing on simulated machines whose truth is known: what is told as `ok` is true, and the rest says what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.timing.simulated_machine import COOL, Machine, quiet, shared, slowed
from workers.timing.contract import State
from workers.timing.protocol import Block, Rules, Verdict
from workers.timing.rounds import ClockError, Subject, warm_up

seeds = st.integers(0, 2**32)
call_times = st.floats(1e-5, 0.05)


def _median_ms(told: Verdict) -> float:
    assert told.spread is not None
    return told.spread.median_ms


class TestTheTruth:
    """The median is the time of the undisturbed work."""

    @given(seeds, st.lists(call_times, min_size=1, max_size=5))
    def test_on_a_quiet_machine(self, seed: int, calls_s: list[float]) -> None:
        for told, call_s in zip(Machine(quiet, seed).time(*calls_s), calls_s, strict=True):
            assert told.status == "ok"
            assert _median_ms(told) == pytest.approx(call_s * 1e3, rel=0.01)

    @given(seeds, call_times, st.floats(0.0, 0.6))
    def test_where_others_take_the_processor_now_and_then(self, seed: int, call_s: float, chance: float) -> None:
        (told,) = Machine(shared(chance), seed).time(call_s)
        assert told.status == "ok"
        assert _median_ms(told) == pytest.approx(call_s * 1e3, rel=0.01)

    @given(seeds, st.floats(0.005, 0.05))
    def test_where_others_interrupt_every_long_call(self, seed: int, call_s: float) -> None:
        (told,) = Machine(shared(1.0), seed).time(call_s)
        assert told.status == "ok"
        assert told.spread is not None
        assert told.spread.clock == "cpu"
        assert _median_ms(told) == pytest.approx(call_s * 1e3, rel=0.01)

    def test_short_calls_wait_for_blocks_of_their_own(self) -> None:
        (told,) = Machine(shared(1.0)).time(0.001, limit_s=3.0)
        assert told.status == "noisy"

    @given(seeds)
    def test_several_threads_are_not_timed_on_a_processor_that_others_use(self, seed: int) -> None:
        (told,) = Machine(shared(1.0), seed, waits=True).time(0.01, limit_s=3.0, threads=2)
        assert told.status == "noisy"

    def test_a_machine_with_two_speeds_is_seldom_believed_and_then_right(self) -> None:
        told = [Machine(slowed(0.45), seed).time(0.001, limit_s=0.5)[0] for seed in range(200)]
        wrong = [one for one in told if one.status == "ok" and abs(_median_ms(one) - 1.0) > 0.02]
        assert len(wrong) <= 0.05 * len(told)
        assert sum(one.status == "noisy" for one in told) > 0.5 * len(told)

    @given(seeds)
    def test_a_machine_that_slows_down_does_so_for_all(self, seed: int) -> None:
        def slowing(machine: Machine) -> tuple[float, float]:
            factor = quiet(machine)[0] * (1.0 + 0.2 * machine.now)
            return factor, factor

        rules = Rules(half_width=0.05, blocks=15)
        first, second = Machine(slowing, seed).time(0.002, 0.004, rules=rules)
        assert _median_ms(second) / _median_ms(first) == pytest.approx(2.0, rel=0.03)


class TestStatuses:
    """What is told when there is no answer."""

    def test_a_clock_that_never_rests_is_throttling(self) -> None:
        def clock_mhz(now: float) -> float:
            return 1000.0 + 1000.0 * (7.3 * now % 1.0)

        def at_that_clock(machine: Machine) -> tuple[float, float]:
            factor = quiet(machine)[0] * 2000.0 / clock_mhz(machine.now)
            return factor, factor

        machine = Machine(at_that_clock, state=lambda now: replace(COOL, clock_mhz=clock_mhz(now)))
        (told,) = machine.time(0.01, limit_s=5.0)
        assert told.status == "throttled"
        assert "the clock moved" in told.reason

    @pytest.mark.parametrize(
        ("state", "why"),
        [(replace(COOL, throttled=True), "was held back"), (replace(COOL, temperature_c=99.0), "too hot")],
    )
    def test_a_device_that_says_so_is_throttled(self, state: State, why: str) -> None:
        (told,) = Machine(state=lambda now: state).time(0.001, limit_s=1.0)
        assert told.status == "throttled"
        assert why in told.reason

    def test_a_device_that_recovers_is_timed(self) -> None:
        (told,) = Machine(state=lambda now: replace(COOL, throttled=now < 0.5)).time(0.001)
        assert told.status == "ok"
        assert told.spread is not None
        assert told.spread.rejected > 0

    def test_calls_that_are_too_long_for_the_limit(self) -> None:
        (told,) = Machine().time(1.0, limit_s=5.0)
        assert told.status == "timeout"

    def test_a_limit_that_is_over_before_it_begins(self) -> None:
        (told,) = Machine().time(0.001, limit_s=-1.0)
        assert told.status == "timeout"


class TestClocks:
    """A clock that times nothing is an error, in a line that says so."""

    @pytest.mark.parametrize(
        ("wall_s", "message"),
        [(0.0, "the clock stood still over 1 calls"), (-0.5, "the clock went backwards by 0.500000 s")],
    )
    @pytest.mark.parametrize("after", [0, 12])
    def test_of_a_block(self, wall_s: float, message: str, after: int) -> None:
        machine, blocks = Machine(), 0
        honest = machine.program(0.1)

        def observe(calls: int) -> Block:
            nonlocal blocks
            blocks += 1
            return replace(honest(calls), wall_s=wall_s) if blocks > after else honest(calls)

        subject = Subject(observe, 60.0)
        machine.time_subjects([subject])
        assert subject.told is not None
        assert subject.told.status == "error"
        assert message in subject.told.reason

    def test_of_the_processor(self) -> None:
        with pytest.raises(ClockError, match="backwards"):
            warm_up(lambda calls: Block(calls, 0.1, -0.1), Rules(), 0.004, lambda: 0.0)

    def test_of_time_limits(self) -> None:
        times = iter(range(1000, 0, -1))
        with pytest.raises(ClockError, match=r"backwards by 1\.0"):
            warm_up(lambda calls: Block(calls, 0.1), Rules(), 0.004, lambda: float(next(times)))

    def test_that_gives_no_number(self) -> None:
        with pytest.raises(ClockError):
            warm_up(lambda calls: Block(calls, float("nan")), Rules(), 0.004, lambda: 0.0)


class TestSeveralAtOnce:
    """Subjects do not touch each other."""

    def test_one_that_raises_is_told_and_the_others_go_on(self) -> None:
        machine, calls_made = Machine(), 0
        good, breaking = machine.program(0.001), machine.program(0.002)

        def observe(calls: int) -> Block:
            nonlocal calls_made
            calls_made += calls
            if calls_made > 50:
                raise RuntimeError("the card\nfell out")
            return breaking(calls)

        subjects = [Subject(good, 10.0), Subject(observe, 10.0), Subject(good, 10.0)]
        machine.time_subjects(subjects)
        assert [one.told and one.told.status for one in subjects] == ["ok", "error", "ok"]
        assert subjects[1].told is not None
        assert subjects[1].told.reason == "RuntimeError: the card fell out"

    @given(seeds)
    @settings(max_examples=20)
    def test_the_reference_has_a_block_in_every_round(self, seed: int) -> None:
        machine = Machine(seed=seed)
        subjects = [Subject(machine.program(one), 10.0) for one in (0.001, 0.02)]
        reference = Subject(machine.program(0.001), float("inf"))
        machine.time_subjects(subjects, reference=reference)
        assert len(reference.blocks) == max(len(one.blocks) for one in subjects)
        assert reference.told is not None
        assert reference.told.spread is not None

    def test_a_reference_that_breaks_breaks_nothing_else(self) -> None:
        def broken(calls: int) -> Block:
            raise RuntimeError("no reference")

        machine = Machine()
        subject, reference = Subject(machine.program(0.001), 10.0), Subject(broken, 10.0)
        machine.time_subjects([subject], reference=reference)
        assert subject.told is not None
        assert subject.told.status == "ok"

    def test_nothing_to_time_is_no_round(self) -> None:
        machine = Machine()
        machine.time_subjects([], reference=Subject(machine.program(0.001), 10.0))
        assert machine.now == 0.0


class TestWarmUp:
    """Long enough, and until times settle."""

    @given(st.floats(1e-6, 0.5))
    def test_is_as_long_as_the_rules_say(self, call_s: float) -> None:
        machine, rules = Machine(), Rules()
        warm_up(machine.program(call_s), rules, 0.004, lambda: machine.now)
        assert rules.warm_up_s <= machine.now <= rules.warm_up_limit_s + 10 * max(call_s, 0.004)

    def test_goes_on_while_times_fall(self) -> None:
        def warming(machine: Machine) -> tuple[float, float]:
            return (1.0 + max(0.0, 1.0 - machine.now),) * 2

        machine = Machine(warming)
        warm_up(machine.program(0.001), Rules(), 0.05, lambda: machine.now)
        assert machine.now > 0.9
