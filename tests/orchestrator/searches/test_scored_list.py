"""A list of allocations: all scored at once, the best kept."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.contract import Problem
from orchestrator.searches.objective import objective_value
from orchestrator.searches.scored_list import ScoredList, answer_of
from search_spaces.candidates import Score
from tests.orchestrator.searches.made_up import Pool, problem, ranks_of
from tests.orchestrator.searches.separable import Losses, assert_stopping_changes_nothing, cases, given_allocations


@given(case=cases(), count=st.integers(1, 6), failing=st.sampled_from([0.0, 0.4]), order=st.randoms())
def test_the_answer_is_the_best_whatever_the_order_of_arrival(
    case: tuple[Problem, Losses], count: int, failing: float, order: random.Random
) -> None:
    made, losses = case[0], replace(case[1], interaction=0.3, failing=failing)
    allocations = given_allocations(made, count)
    search, pool = ScoredList(made, allocations), Pool(losses, order)
    pool.run(search)
    values = {name: objective_value(made.objective, losses(one.ranks)) for name, one in allocations.items()}
    best = max(values, key=lambda name: values[name])  # the first of equals
    assert len(pool.asked) == len({one.ranks for one in allocations.values()})
    if values[best] == -math.inf:
        assert search.best is None
        return
    assert search.best is not None
    assert (search.best.search, search.best.ranks) == (best, allocations[best].ranks)
    assert (search.best.note, search.best.in_window, search.best.missing) == (allocations[best].note, True, 0.0)


@given(case=cases(), count=st.integers(1, 5), order=st.randoms())
def test_stopping_it_changes_nothing(case: tuple[Problem, Losses], count: int, order: random.Random) -> None:
    made, losses = case[0], replace(case[1], interaction=0.3, failing=0.2)
    assert_stopping_changes_nothing(lambda _: ScoredList(made, given_allocations(made, count)), losses, order)


MADE = problem([(9, 9)] * 2, 0.2)
TWO = {"a": Allocation((4, 2), {"x": 1}), "b": Allocation((2, 4), {}), "twin of a": Allocation((4, 2), {})}


def score(ranks: tuple[int, int], accuracy: float) -> Score:
    return Score(ranks, {"accuracy": accuracy, "loss": 0.0, "kl": 0.0})


def test_candidates_are_asked_for_once_all_at_once() -> None:
    search = ScoredList(MADE, TWO, level=3)
    asked = search.ask()
    assert [(one.ranks, one.parent, one.changed, one.level, one.search) for one in asked] == [
        ((4, 2), (None, None), None, 3, "a"),
        ((2, 4), (None, None), None, 3, "b"),
    ]
    assert search.ask() == []
    assert (search.done, search.level, search.best, search.skipped, search.state()) == (False, 3, None, 0, {})
    search.tell([score((2, 4), 0.5)])
    assert search.best is not None
    assert (search.done, search.best.ranks) == (False, (2, 4))
    search.tell([score((4, 2), 0.6)])
    assert (search.done, search.level, search.best.note, search.ask()) == (True, 4, {"x": 1}, [])


def test_scores_that_nobody_asked_for_are_ignored() -> None:
    search = ScoredList(MADE, TWO)
    search.tell([score((9, 9), 1.0), score((4, 2), 0.6)])
    assert ranks_of(search.ask()) == [(2, 4)]
    search.tell([score((2, 4), 0.1)])
    assert search.best is not None
    assert search.best.search == "a"


def test_without_any_number_there_is_no_answer() -> None:
    search = ScoredList(MADE, TWO)
    search.tell([Score((4, 2), status="nan"), score((2, 4), math.nan)])
    assert (search.done, search.best) == (True, None)


def test_without_allocations_it_is_done() -> None:
    search = ScoredList(MADE, {})
    assert (search.done, search.ask(), search.best) == (True, [], None)


@pytest.mark.parametrize(("ranks", "missing"), [((3, 3), 0.0), ((4, 4), 0.2 - 1 / 9)])
def test_an_answer_says_what_it_lacks(ranks: tuple[int, int], missing: float) -> None:
    found = answer_of(MADE, score(ranks, 0.5), "name", {"y": 2})
    assert (found.in_window, found.search, found.note) == (missing == 0, "name", {"y": 2})
    assert found.missing == pytest.approx(missing)
