"""Dispatch: nothing is lost, nothing doubled, and a candidate that kills evaluators is found and given up."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatch import LARGEST_GROUP, SMALLEST_SHARE, TARGET_S, Dispatch, Work
from search_spaces.candidates import Candidate

PARENTS = [(None, None), (5, None), (5, 5)]


def children(parent: int, count: int) -> list[Candidate]:
    return [Candidate((100 * parent + number, 0), PARENTS[parent], 0, 1) for number in range(count)]


COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=len(PARENTS))
SPEEDS = st.none() | st.sampled_from([1e-9, 1e-4, 0.01, 0.3, 20.0])


def speed(dispatch: Dispatch, seconds: float | None) -> None:
    if seconds is not None:
        dispatch.took(seconds, 1)


def drained(dispatch: Dispatch, evaluators: int = 2) -> list[Work]:
    calls = []
    while (work := dispatch.next(evaluators)) is not None:
        calls.append(work)
    return calls


class TestNothingIsLost:
    @given(COUNTS, SPEEDS, st.integers(1, 9))
    def test_every_candidate_is_handed_out_once(
        self, counts: list[int], seconds: float | None, evaluators: int
    ) -> None:
        dispatch = Dispatch()
        speed(dispatch, seconds)
        wanted = [one for parent, count in enumerate(counts) for one in children(parent, count)]
        dispatch.add(wanted)
        assert len(dispatch) == len(wanted)
        given_out = Counter(one.ranks for work in drained(dispatch, evaluators) for one in work.candidates)
        assert given_out == Counter(one.ranks for one in wanted)
        assert len(dispatch) == 0

    @given(COUNTS, SPEEDS, st.integers(1, 4), st.integers(0, 2**16))
    def test_nor_where_evaluators_are_lost_at_any_moment(
        self, counts: list[int], seconds: float | None, attempts: int, seed: int
    ) -> None:
        dispatch, drawn = Dispatch(attempts=attempts), random.Random(seed)
        speed(dispatch, seconds)
        wanted = [one for parent, count in enumerate(counts) for one in children(parent, count)]
        dispatch.add(wanted)
        ended: Counter[object] = Counter()
        in_flight: list[Work] = []
        while len(dispatch) or in_flight:
            work = dispatch.next(2)
            if work is not None:
                in_flight.append(work)
            if in_flight and drawn.random() < 0.7:
                back = in_flight.pop(drawn.randrange(len(in_flight)))
                over = dispatch.lost(back) if drawn.random() < 0.4 else back.candidates
                ended.update(one.ranks for one in over)
        assert ended == Counter(one.ranks for one in wanted)


class TestGroups:
    @given(COUNTS, SPEEDS, st.integers(1, 9))
    def test_have_one_parent(self, counts: list[int], seconds: float | None, evaluators: int) -> None:
        dispatch = Dispatch()
        speed(dispatch, seconds)
        dispatch.add([one for parent, count in enumerate(counts) for one in children(parent, count)])
        for work in drained(dispatch, evaluators):
            assert {one.parent for one in work.candidates} == {work.parent}

    def test_a_candidate_without_a_parent_is_its_own(self) -> None:
        dispatch = Dispatch()
        dispatch.add([Candidate((None, None))])
        assert dispatch.next(1) == Work((None, None), (Candidate((None, None)),))

    def test_are_single_until_the_time_of_one_is_known(self) -> None:
        dispatch = Dispatch()
        dispatch.add(children(0, 40))
        assert [len(dispatch.next(2).candidates) for _ in range(3)] == [1, 1, 1]  # type: ignore[union-attr]

    @pytest.mark.parametrize(("seconds", "size"), [(TARGET_S / 5, 5), (TARGET_S * 9, 1), (1e-9, LARGEST_GROUP)])
    def test_fill_the_target_time_up_to_a_limit(self, seconds: float, size: int) -> None:
        dispatch = Dispatch()
        speed(dispatch, seconds)
        dispatch.add(children(0, 1000))
        work = dispatch.next(2)
        assert work is not None
        assert len(work.candidates) == size

    @given(COUNTS, SPEEDS, st.integers(1, 9))
    def test_hold_children_of_several_parents_where_evaluators_share_what_these_have_in_common(
        self, counts: list[int], seconds: float | None, evaluators: int
    ) -> None:
        """As many as of one parent, so that no call is small because its parent has few children left."""
        mixed, plain = Dispatch(mix_parents=True), Dispatch()
        wanted = [one for parent, count in enumerate(counts) for one in children(parent, count)]
        alike = [Candidate(one.ranks, PARENTS[0], 0, 1) for one in wanted]
        for dispatch, candidates in ((mixed, wanted), (plain, alike)):
            speed(dispatch, seconds)
            dispatch.add(candidates)
        calls = drained(mixed, evaluators)
        assert [len(work.candidates) for work in calls] == [len(one.candidates) for one in drained(plain, evaluators)]
        assert all(work.parent == work.candidates[0].parent for work in calls)
        assert Counter(one.ranks for work in calls for one in work.candidates) == Counter(one.ranks for one in wanted)

    def test_are_not_cut_for_a_lone_evaluator(self) -> None:
        dispatch = Dispatch()
        speed(dispatch, 1e-9)
        dispatch.add(children(0, 40))
        assert [len(work.candidates) for work in drained(dispatch, 1)] == [40]

    @given(st.integers(1, 200), st.integers(2, 8))
    def test_leave_two_more_calls_for_every_evaluator(self, count: int, evaluators: int) -> None:
        dispatch = Dispatch()
        speed(dispatch, 1e-9)
        dispatch.add(children(0, count))
        while (waiting := len(dispatch)) and (work := dispatch.next(evaluators)):
            assert len(work.candidates) <= max(SMALLEST_SHARE, -(-waiting // (2 * evaluators)))

    def test_shrink_towards_the_end(self) -> None:
        dispatch = Dispatch()
        speed(dispatch, 1e-9)
        dispatch.add(children(0, 40))
        sizes = [len(work.candidates) for work in drained(dispatch)]
        assert sizes[:-1] == sorted(sizes[:-1], reverse=True)
        assert sizes[-2] == SMALLEST_SHARE < sizes[0]

    def test_the_parent_with_the_most_left_comes_first(self) -> None:
        dispatch = Dispatch()
        dispatch.add(children(0, 2) + children(1, 3))
        first = dispatch.next(1)
        assert first is not None
        assert first.parent == PARENTS[1]


class TestTurns:
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=5), SPEEDS, st.integers(1, 4))
    def test_go_round_among_those_that_wait(self, counts: list[int], seconds: float | None, evaluators: int) -> None:
        """However much each has queued, and under however many parents."""
        dispatch = Dispatch()
        speed(dispatch, seconds)
        for asker, count in enumerate(counts):
            dispatch.add([Candidate((asker, one), (asker, one % 3)) for one in range(count)], str(asker))
        served = [work.candidates[0].ranks[0] for work in drained(dispatch, evaluators)]
        calls = Counter(served)
        rounds = range(max(calls.values()))
        assert served == [asker for turn in rounds for asker in range(len(counts)) if calls[asker] > turn]

    def test_a_small_search_does_not_wait_behind_a_huge_one(self) -> None:
        dispatch = Dispatch()
        speed(dispatch, 1e-9)
        dispatch.add(children(0, 10_000), "huge")
        dispatch.next(2)
        dispatch.add(children(1, 1), "small")
        assert [work.parent for work in (dispatch.next(2), dispatch.next(2)) if work] == [PARENTS[0], PARENTS[1]]

    def test_who_comes_back_goes_behind_those_that_wait(self) -> None:
        dispatch = Dispatch()
        dispatch.add(children(0, 1), "a")
        dispatch.add(children(1, 2), "b")
        dispatch.add(children(2, 2), "c")
        first = dispatch.next(1)
        dispatch.add(children(0, 1), "a")
        order = [first, *drained(dispatch)]
        assert [PARENTS.index(work.parent) for work in order if work] == [0, 1, 2, 0, 1, 2]


class TestBounds:
    """What candidates must reach goes along with every call; while nothing is known, calls are small."""

    def dispatch(self, bound: dict[str, float | None]) -> Dispatch:
        """Fast candidates of two parents, the likeliest first; their bound changes as `bound["is"]` does."""
        dispatch = Dispatch()
        speed(dispatch, 1e-9)
        dispatch.add(children(0, 20) + children(1, 40), bound=lambda _ranks: bound["is"])
        return dispatch

    def test_are_those_of_the_moment_when_the_call_is_cut(self) -> None:
        bound: dict[str, float | None] = {"is": 0.5}
        dispatch = self.dispatch(bound)
        first = dispatch.next(1)
        bound["is"] = 0.7
        second = dispatch.next(1)
        assert first is not None
        assert second is not None
        assert set(first.bounds) == {0.5}
        assert set(second.bounds) == {0.7}
        assert len(first.bounds) == len(first.candidates)

    def test_are_left_out_where_everybody_is_scored_to_the_end(self) -> None:
        work = self.dispatch({"is": None}).next(2)
        assert work is not None
        assert work.bounds == ()
        assert len(work.candidates) == 15

    @pytest.mark.parametrize(("evaluators", "size"), [(1, SMALLEST_SHARE), (3, 2), (40, 2)])
    def test_that_are_not_known_yet_make_calls_small_and_the_first_parent_the_next(
        self, evaluators: int, size: int
    ) -> None:
        work = self.dispatch({"is": -math.inf}).next(evaluators)
        assert work is not None
        assert (work.parent, len(work.candidates)) == (PARENTS[0], size)
        assert work.candidates[0].ranks == (0, 0)

    def test_that_are_not_known_yet_let_nothing_be_sent_ahead(self) -> None:
        bound: dict[str, float | None] = {"is": -math.inf}
        dispatch = self.dispatch(bound)
        assert dispatch.next(1, ahead=True) is None
        bound["is"] = 0.5
        assert dispatch.next(1, ahead=True) is not None

    def test_of_one_asker_hold_up_no_other(self) -> None:
        dispatch = self.dispatch({"is": -math.inf})
        dispatch.add(children(2, 3), "other")
        work = dispatch.next(1, ahead=True)
        assert work is not None
        assert work.parent == PARENTS[2]

    @pytest.mark.parametrize("bound", [-math.inf, 0.5])
    def test_come_back_with_lost_work(self, bound: float) -> None:
        dispatch = self.dispatch({"is": bound})
        work = dispatch.next(1)
        assert work is not None
        dispatch.lost(work)
        again = [dispatch.next(1) for _ in work.candidates]
        assert again == [Work(work.parent, (one,), 1, (bound,)) for one in work.candidates]


class TestLostWork:
    def test_comes_back_one_by_one_and_before_what_is_new(self) -> None:
        dispatch = Dispatch()
        speed(dispatch, 1e-9)
        dispatch.add(children(0, 20))
        work = dispatch.next(2)
        assert work is not None
        assert len(work.candidates) == SMALLEST_SHARE
        assert dispatch.lost(work) == []
        again = [dispatch.next(1) for _ in work.candidates]
        assert again == [Work(work.parent, (one,), 1) for one in work.candidates]
        assert dispatch.next(1).attempt == 0  # type: ignore[union-attr]

    @pytest.mark.parametrize("attempts", [1, 2, 3])
    def test_is_given_up_after_so_many_attempts(self, attempts: int) -> None:
        dispatch, killer = Dispatch(attempts=attempts), Candidate((3, None), PARENTS[0], 0, 1)
        dispatch.add([killer])
        tried = 0
        while (work := dispatch.next(1)) is not None:
            tried += 1
            given_up = dispatch.lost(work)
        assert (tried, given_up) == (attempts, [killer])

    def test_innocent_candidates_of_a_killers_group_are_scored(self) -> None:
        dispatch = Dispatch()
        speed(dispatch, 1e-9)
        wanted = children(0, 16)
        dispatch.add(wanted)
        scored, given_up = [], []
        while (work := dispatch.next(1)) is not None:
            if wanted[3] in work.candidates:
                given_up += dispatch.lost(work)
            else:
                scored += work.candidates
        assert given_up == [wanted[3]]
        assert set(scored) == set(wanted) - {wanted[3]}


def test_the_time_of_a_candidate_is_a_running_mean() -> None:
    dispatch = Dispatch()
    dispatch.took(2.0, 4)
    assert dispatch.seconds_per_candidate == 0.5
    dispatch.took(10.0, 10)
    assert dispatch.seconds_per_candidate == pytest.approx(0.6)


def test_a_call_has_one_precision_and_bounds_in_float32_alone() -> None:
    dispatch = Dispatch(mix_parents=True)
    dispatch.took(0.01, 1)
    rough = [replace(one, precision="bfloat16") for one in children(0, 3)]
    dispatch.add([*children(0, 3), *rough], bound=lambda _ranks: 0.5)
    calls = []
    while (work := dispatch.next(1)) is not None:
        assert {one.precision for one in work.candidates} == {work.precision}
        assert work.bounds == ((0.5,) * len(work.candidates) if work.precision == "float32" else ())
        calls += work.candidates
    assert sorted(calls, key=str) == sorted([*children(0, 3), *rough], key=str)
