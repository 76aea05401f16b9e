"""Early stopping: the same answer, level by level, whoever is stopped and whenever; and bounds that are as said."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.beam_around import AroundSetting, BeamAround
from orchestrator.searches.beam_search import BeamSearch, BeamSetting
from orchestrator.searches.contract import Problem, Search
from orchestrator.searches.early_stop import Promise, kth_best
from orchestrator.searches.objective import objective_value
from orchestrator.searches.scored_list import ScoredList
from orchestrator.searches.screening import ScreenSetting
from orchestrator.searches.side_by_side import SideBySide
from search_spaces.candidates import Candidate, Score
from search_spaces.rank_space import RankVector
from tests.orchestrator.searches.made_up import (
    BUDGETS,
    DIMS,
    OBJECTIVES,
    SCORES,
    SETTINGS,
    Dims,
    MadeUpScores,
    Pool,
    problem,
)

ORDERS = st.integers(0, 2**16)


@dataclass
class StoppingPool(Pool):
    """Stops whom it may, now and then: by the bound of a moment after the candidate was asked for."""

    objective: str = "accuracy"
    stopped: list[Score] = field(default_factory=list)
    _bounds: dict[RankVector, float | None] = field(default_factory=dict)

    def step(self, search: Search) -> None:
        """As `Pool`; every candidate's bound is asked for at some moment before its score is told."""
        assert self.order is not None
        fresh = search.ask()
        self._waiting += fresh
        if search.done:
            return
        assert self._waiting, "the search is not done, waits for nothing and asks for nothing"
        for candidate in self._waiting:
            if candidate.ranks not in self._bounds or self.order.random() < 0.5:
                self._bounds[candidate.ranks] = search.bound(candidate.ranks)
        self.order.shuffle(self._waiting)
        count = self.order.randint(1, len(self._waiting))
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        search.tell([self._answer(candidate) for candidate in ready])

    def _answer(self, candidate: Candidate) -> Score:
        assert self.order is not None
        score, bound = self.score(candidate.ranks), self._bounds.pop(candidate.ranks)
        value = objective_value(self.objective, score)
        if bound is None or value >= bound or self.order.random() < 0.1:
            return score
        at_most = max(value, bound - 1.0) + 0.5 * (bound - max(value, bound - 1.0))  # between the two
        self.stopped.append(Score(candidate.ranks, status="stopped", reason="made up", at_most=at_most))
        return self.stopped[-1]


def course(search: Search, pool: Pool) -> list[Any]:
    """The search's states from level to level; runs it to its end."""
    states: list[Any] = []
    for _ in range(20_000):
        if search.done:
            return [*states, search.state(), search.best]
        level = search.level
        pool.step(search)
        if search.level > level:
            states.append(search.state())
    raise AssertionError("no end")


def beam_search(made: Problem, settings: list[BeamSetting]) -> SideBySide:
    return SideBySide({one.name: BeamSearch(made, one) for one in settings}, made.objective)


@given(DIMS, BUDGETS, SETTINGS, SCORES, OBJECTIVES, ORDERS)
def test_a_beam_search_takes_the_same_course(
    dims: Dims, c_d: float, setting: BeamSetting, scores: MadeUpScores, objective: str, order: int
) -> None:
    made = problem(dims, c_d, objective)
    expected = course(BeamSearch(made, setting), Pool(scores))
    assert (
        course(BeamSearch(made, setting), StoppingPool(scores, random.Random(order), objective=objective)) == expected
    )


@given(
    DIMS,
    BUDGETS,
    st.lists(SETTINGS, min_size=2, max_size=3, unique_by=lambda one: one.name),
    SCORES,
    OBJECTIVES,
    ORDERS,
)
def test_settings_side_by_side_end_alike(
    dims: Dims, c_d: float, settings: list[BeamSetting], scores: MadeUpScores, objective: str, order: int
) -> None:
    """Also where one search wants what another could do without."""
    made = problem(dims, c_d, objective)
    expected, stopping = beam_search(made, settings), beam_search(made, settings)
    Pool(scores).run(expected)
    StoppingPool(scores, random.Random(order), objective=objective).run(stopping)
    assert (stopping.best, stopping.state()) == (expected.best, expected.state())


def around(made: Problem, seed: int, setting: AroundSetting) -> BeamAround:
    drawn = random.Random(seed)
    starts = {
        str(number): Allocation(made.space.at([drawn.randint(1, max(1, one.useful)) for one in made.space.layers]), {})
        for number in range(4)
    }
    return BeamAround(made, starts, setting)


@given(DIMS, st.floats(0.01, 0.6), SCORES, OBJECTIVES, ORDERS, st.integers(1, 4))
def test_a_beam_around_allocations_ends_alike(
    dims: Dims, c_d: float, scores: MadeUpScores, objective: str, order: int, beam_size: int
) -> None:
    made, setting = problem(dims, c_d, objective), AroundSetting(beam_size=beam_size, exchanges=6, rounds=4)
    expected, stopping = around(made, order, setting), around(made, order, setting)
    Pool(scores).run(expected)
    StoppingPool(scores, random.Random(order), objective=objective).run(stopping)
    assert (stopping.best, stopping.state()) == (expected.best, expected.state())


@given(st.integers(1, 12), SCORES, OBJECTIVES, ORDERS)
def test_a_list_has_the_same_best(count: int, scores: MadeUpScores, objective: str, order: int) -> None:
    made = problem([(14, 14)], 0.1, objective)
    allocations = {str(rank): Allocation((rank,), {}) for rank in range(1, count + 1)}
    expected, stopping = ScoredList(made, allocations), ScoredList(made, allocations)
    Pool(scores).run(expected)
    StoppingPool(scores, random.Random(order), objective=objective).run(stopping)
    assert stopping.best == expected.best


def test_most_are_stopped_where_scores_differ() -> None:
    """Otherwise the tests above would say little."""
    made, setting = problem([(14, 14)] * 5, 0.9, "cross_entropy"), BeamSetting(1, 2, 0.01)
    pool = StoppingPool(MadeUpScores(0, distinct=50), random.Random(0), objective="cross_entropy")
    search = BeamSearch(made, setting)
    pool.run(search)
    assert len(pool.stopped) > 10


class TestBounds:
    DIMS: Dims = [(14, 14)] * 5

    def opened(self, **settings: Any) -> tuple[BeamSearch, list[Candidate]]:
        """A search at the level after the root, and the level's candidates."""
        search = BeamSearch(problem(self.DIMS, 0.5), BeamSetting(2, 2, 0.01, **settings))
        (root,) = search.ask()
        search.tell([scored(root.ranks, 1.0)])
        return search, search.ask()

    def test_rise_to_the_kth_best_of_the_level(self) -> None:
        search, asked = self.opened()
        bounds = []
        for candidate, accuracy in zip(asked, (0.5, 0.2, 0.4, 0.3, 0.9), strict=True):
            bounds.append(search.bound(asked[-1].ranks))
            search.tell([scored(candidate.ranks, accuracy)])
        assert bounds == [-math.inf, -math.inf, 0.2, 0.4, 0.4]

    def test_failures_set_none(self) -> None:
        search, asked = self.opened()
        search.tell([Score(one.ranks, status="error") for one in asked[:3]])
        assert search.bound(asked[-1].ranks) == -math.inf

    def test_in_the_window_the_best_ever_seen_there_counts(self) -> None:
        search = BeamSearch(problem(self.DIMS, 0.5), BeamSetting(2, 2, tolerance=0.4999))
        (root,) = search.ask()
        search.tell([scored(root.ranks, 1.0)])
        asked = search.ask()
        search.tell([scored(asked[0].ranks, 0.5), scored(asked[1].ranks, 0.3)])
        assert search.bound(asked[2].ranks) == 0.3  # of two, 0.3 is the second best, and 0.5 the best in the window

    def test_there_are_none_with_screening(self) -> None:
        search, asked = self.opened(screening=ScreenSetting())
        search.tell([scored(one.ranks, 0.5) for one in asked[:3]])
        assert search.bound(asked[-1].ranks) is None

    def test_of_several_searches_the_lowest_counts(self) -> None:
        made = problem(self.DIMS, 0.5)
        settings = [BeamSetting(2, 1, 0.01), BeamSetting(2, 3, 0.01)]
        search = SideBySide({str(one.beam_size): BeamSearch(made, one) for one in settings}, "accuracy")
        (root,) = search.ask()
        search.tell([scored(root.ranks, 1.0)])
        asked = search.ask()
        search.tell([scored(one.ranks, value) for one, value in zip(asked, (0.7, 0.6, 0.5), strict=False)])
        assert search.bound(asked[-1].ranks) == 0.5
        assert search.bound((None,) * 5) is None  # nobody waits for it


def test_who_was_stopped_for_one_search_is_asked_again_for_another() -> None:
    """The second begins to wait after the bound was taken, and its own is lower."""
    made = problem([(14, 14)] * 2, 0.9)
    one, two = (BeamSearch(made, BeamSetting(2, size, 0.01)) for size in (1, 5))
    search = SideBySide({"one": one, "two": two}, "accuracy")
    (root,) = search.ask()
    search.tell([scored(root.ranks, 1.0)])
    first, second = search.ask()
    search.tell([scored(first.ranks, 0.9)])
    below = Score(second.ranks, status="stopped", at_most=0.5)  # one's bound is 0.9, two's is not known
    search.tell([below])
    assert second in search.ask()
    assert one.level == two.level + 1
    search.tell([scored(second.ranks, 0.4)])
    assert two.level == one.level


def scored(ranks: RankVector, accuracy: float) -> Score:
    return Score(ranks, {"accuracy": accuracy, "loss": 1 - accuracy, "kl": 1 - accuracy})


class TestPromise:
    def test_is_the_parents_value_and_what_the_layers_step_did_lately(self) -> None:
        promise = Promise()
        promise.learn([(0, -0.2), (0, -0.1), (1, math.nan)])
        assert promise.expected(0, 0.9) == pytest.approx(0.8)
        assert promise.expected(1, 0.9) == promise.expected(None, 0.9) == -math.inf
        promise.learn([(0, -0.5)])
        assert promise.expected(0, 0.9) == pytest.approx(0.4)

    def test_the_likeliest_are_asked_for_first(self) -> None:
        search = BeamSearch(problem([(14, 14)] * 3, 0.9), BeamSetting(1, 1, 0.01))
        costs = (0.7, 0.9, 0.8)
        asked: list[list[int | None]] = []
        for _ in range(3):
            candidates = search.ask()
            asked.append([one.changed for one in candidates])
            search.tell([scored(one.ranks, 1.0 if one.changed is None else costs[one.changed]) for one in candidates])
        assert asked == [[None], [0, 1, 2], [1, 2, 0]]


@given(st.lists(st.sampled_from([-math.inf, 0.1, 0.2, 0.3])), st.integers(1, 5))
def test_kth_best(values: list[float], k: int) -> None:
    in_order = sorted(values, reverse=True)
    assert kth_best(iter(values), k) == (in_order[k - 1] if len(values) >= k else -math.inf)
