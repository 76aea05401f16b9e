"""The rules: which blocks count, how many it takes, and what is said when it is not enough."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.timing.contract import State
from workers.timing.protocol import Block, Rules, Verdict, calls_for, fault, steady, verdict
from workers.timing.spread import half_width

RULES = Rules()
COOL = State(clock_mhz=2000.0, temperature_c=50.0)
CLEAN = Block(10, 0.01, cpu_s=0.01, waited_s=0.0, before=COOL, after=COOL)


def _fault(block: Block, threads: int = 1, clock_mhz: float | None = None) -> str | None:
    return fault(block, RULES, threads=threads, limit_c=95.0, clock_mhz=clock_mhz)


def _verdict(blocks: list[Block], threads: int = 1, *, late: bool = False) -> Verdict | None:
    return verdict(blocks, RULES, threads=threads, limit_c=95.0, out_of_time=late)


def _block(wall_s: float, cpu_s: float | None = None, clock_mhz: float = 2000.0) -> Block:
    state = replace(COOL, clock_mhz=clock_mhz)
    return Block(1, wall_s, wall_s if cpu_s is None else cpu_s, None, state, state)


class TestWhichBlocksCount:
    """A block counts unless something other than the work shows in it."""

    def test_a_clean_one_does(self) -> None:
        assert _fault(CLEAN) is None

    @pytest.mark.parametrize(("cpu_s", "why"), [(0.0098, None), (0.0096, "shared")])
    def test_one_thread_had_its_processor(self, cpu_s: float, why: str | None) -> None:
        assert _fault(replace(CLEAN, cpu_s=cpu_s)) == why

    @pytest.mark.parametrize(("waited_s", "why"), [(0.0002, None), (0.0004, "shared"), (None, None)])
    def test_several_threads_may_wait_for_each_other_but_not_for_a_processor(
        self, waited_s: float | None, why: str | None
    ) -> None:
        assert _fault(replace(CLEAN, cpu_s=0.013, waited_s=waited_s), threads=2) == why

    def test_a_card_is_not_judged_by_the_processor_s_time(self) -> None:
        assert _fault(replace(CLEAN, cpu_s=None, waited_s=None)) is None

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize(
        ("state", "why"),
        [
            (replace(COOL, throttled=True), "throttled"),
            (replace(COOL, temperature_c=96.0), "hot"),
            (replace(COOL, clock_mhz=1800.0), "clock"),
            (replace(COOL, clock_mhz=1950.0), None),
            (State(), None),
        ],
    )
    def test_the_device_was_as_it_should_be(self, when: str, state: State, why: str | None) -> None:
        assert _fault(replace(CLEAN, **{when: state})) == why

    def test_the_clock_was_that_of_the_other_blocks(self) -> None:
        assert _fault(CLEAN, clock_mhz=1500.0) == "clock"


class TestWhenItIsEnough:
    """Enough blocks that count, and a narrow interval."""

    def test_eleven_equal_blocks_are(self) -> None:
        found = _verdict([_block(0.004)] * RULES.blocks)
        assert found is not None
        assert found.status == "ok"
        assert found.spread is not None
        assert found.spread.median_ms == pytest.approx(4.0)

    def test_ten_are_not(self) -> None:
        assert _verdict([_block(0.004)] * (RULES.blocks - 1)) is None

    def test_blocks_that_do_not_count_are_not_in_the_spread(self) -> None:
        found = _verdict([_block(0.004), _block(0.02, cpu_s=0.004)] * RULES.blocks)
        assert found is not None
        assert found.spread is not None
        assert (found.spread.p90_ms, found.spread.rejected) == (pytest.approx(4.0), RULES.blocks)

    def test_a_wide_interval_is_not(self) -> None:
        assert _verdict([_block(0.004), _block(0.005)] * RULES.blocks) is None

    def test_times_are_per_call(self) -> None:
        found = _verdict([CLEAN] * RULES.blocks)
        assert found is not None
        assert found.spread is not None
        assert found.spread.median_ms == pytest.approx(1.0)

    @given(st.lists(st.tuples(st.floats(0.001, 0.1), st.floats(0.2, 1.0)), max_size=80), st.sampled_from([1, 2]))
    def test_ok_means_what_the_rules_say(self, blocks: list[tuple[float, float]], threads: int) -> None:
        found = _verdict([_block(wall, wall * share) for wall, share in blocks], threads, late=True)
        assert found is not None
        if found.status == "ok":
            assert found.spread is not None
            assert found.spread.blocks >= RULES.blocks
            assert half_width(found.spread) <= RULES.half_width
            assert found.spread.clock == "wall" or (threads == 1 and found.spread.blocks >= RULES.blocks)
        else:
            assert found.reason


class TestCpuTimeInsteadOfWallTime:
    """For one thread whose processor others use all the time."""

    taken = [_block(0.02 + 0.001 * number, cpu_s=0.01) for number in range(RULES.patience)]

    def test_stands_in_after_some_patience(self) -> None:
        assert _verdict(self.taken[:-1]) is None
        found = _verdict(self.taken)
        assert found is not None
        assert found.status == "ok"
        assert found.spread is not None
        assert (found.spread.clock, found.spread.median_ms) == ("cpu", pytest.approx(10.0))

    def test_stands_in_when_the_time_is_up(self) -> None:
        found = _verdict(self.taken[: RULES.blocks], late=True)
        assert found is not None
        assert found.status == "ok"

    def test_never_for_calls_shorter_than_a_slice(self) -> None:
        short = [replace(block, calls=10) for block in self.taken]
        found = _verdict(short, late=True)
        assert found is not None
        assert found.status == "noisy"

    def test_never_where_blocks_do_count(self) -> None:
        found = _verdict([*self.taken, *[_block(0.02), _block(0.03)] * RULES.patience], late=True)
        assert found is not None
        assert found.status == "noisy"

    def test_never_for_several_threads(self) -> None:
        waiting = [replace(block, waited_s=0.01) for block in self.taken]
        found = _verdict(waiting, threads=2, late=True)
        assert found is not None
        assert found.status == "noisy"

    def test_never_for_blocks_at_another_clock(self) -> None:
        states = [replace(COOL, clock_mhz=2000.0 - 20 * number) for number in range(len(self.taken))]
        moved = [replace(block, before=one, after=one) for block, one in zip(self.taken, states, strict=True)]
        found = _verdict(moved, late=True)
        assert found is not None
        assert found.status == "throttled"


class TestWhatIsSaidWhenTheTimeIsUp:
    """The status, and a line that tells why."""

    def test_too_few_blocks(self) -> None:
        assert _verdict([_block(1.0)] * 4, late=True) == Verdict(
            "timeout",
            "4 blocks within the time limit, 11 are needed",
            _verdict([_block(1.0)] * 4, late=True).spread,  # type: ignore[union-attr]
        )

    def test_none_at_all(self) -> None:
        assert _verdict([], late=True) == Verdict("timeout", "0 blocks within the time limit, 11 are needed")

    def test_an_interval_that_stayed_wide(self) -> None:
        found = _verdict([_block(0.004), _block(0.005)] * 6, threads=2, late=True)
        assert found is not None
        assert found.status == "noisy"
        assert found.reason == "12 of 12 blocks count; the median is known to 11.1%, 1.0% is wanted"

    def test_others_used_the_processor(self) -> None:
        found = _verdict([_block(0.02, cpu_s=0.001 * number) for number in range(1, 20)], late=True)
        assert found is not None
        assert (found.status, found.reason) == ("noisy", "0 of 19 blocks count (others used the processor in 19)")

    def test_the_clock_moved(self) -> None:
        found = _verdict([_block(0.004, clock_mhz=2000.0 - 100 * number) for number in range(12)], late=True)
        assert found is not None
        assert found.status == "throttled"
        assert "the clock moved in" in found.reason


@given(st.floats(1e-7, 10.0), st.floats(1e-3, 1.0))
def test_a_block_is_as_long_as_it_should_be_and_no_call_longer(call_s: float, block_s: float) -> None:
    calls = calls_for(call_s, block_s)
    assert calls * call_s >= block_s * (1 - 1e-9)
    assert calls == 1 or (calls - 1) * call_s < block_s * (1 + 1e-9)


class TestSteady:
    """The end of a warm-up."""

    def test_two_groups_agree(self) -> None:
        assert steady([1.0, 1.0, 1.0, 1.01, 1.01, 1.01], 0.02)

    @pytest.mark.parametrize("seconds", [[1.0] * 5, [2.0, 2.0, 2.0, 1.0, 1.0, 1.0]])
    def test_they_do_not_or_there_are_not_two(self, seconds: list[float]) -> None:
        assert not steady(seconds, 0.02)
