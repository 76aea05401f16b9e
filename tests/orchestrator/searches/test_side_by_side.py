"""Several searches on one pool: the best answer, and no rank vector scored twice, not even by a run that was killed."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.beam_search import BeamSearch, BeamSetting
from orchestrator.searches.contract import Answer, Problem
from orchestrator.searches.objective import objective_value
from orchestrator.searches.side_by_side import SideBySide
from search_spaces.candidates import Candidate, Score
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
    ranks_of,
)

SEVERAL = st.lists(SETTINGS, min_size=1, max_size=3, unique_by=lambda one: one.name)


def side_by_side(made: Problem, settings: list[BeamSetting], state: dict[str, Any] | None = None) -> SideBySide:
    beams = {one.name: BeamSearch(made, one, None if state is None else state[one.name]) for one in settings}
    return SideBySide(beams, made.objective)


def alone(made: Problem, setting: BeamSetting, scores: MadeUpScores) -> Answer | None:
    search = BeamSearch(made, setting)
    Pool(scores).run(search)
    return search.best


def best_of(answers: list[Answer | None], objective: str) -> Answer | None:
    """In the window before outside, then the closest to it, then the objective, then the order of the settings."""
    found = [answer for answer in answers if answer is not None]
    if not found:
        return None
    return max(found, key=lambda one: (one.in_window, -one.missing, objective_value(objective, one.score)))


@given(DIMS, BUDGETS, SEVERAL, SCORES, OBJECTIVES, st.integers(0, 99))
def test_the_answer_is_the_best_of_the_searches_answers(
    dims: Dims, c_d: float, settings: list[BeamSetting], scores: MadeUpScores, objective: str, order: int
) -> None:
    made = problem(dims, c_d, objective)
    expected = best_of([alone(made, setting, scores) for setting in settings], objective)
    for arrival in (None, random.Random(order)):
        together = side_by_side(made, settings)
        Pool(scores, arrival).run(together)
        assert together.best == expected


@given(DIMS, BUDGETS, SEVERAL, SCORES, st.integers(0, 99))
def test_no_rank_vector_is_asked_for_twice(
    dims: Dims, c_d: float, settings: list[BeamSetting], scores: MadeUpScores, order: int
) -> None:
    pool = Pool(scores, random.Random(order))
    pool.run(side_by_side(problem(dims, c_d), settings))
    assert max(Counter(ranks_of(pool.asked)).values()) == 1


@given(DIMS, BUDGETS, SEVERAL, SCORES, OBJECTIVES, st.integers(0, 2**16))
def test_a_killed_run_goes_on_to_the_same_answer_and_asks_for_nothing_that_was_told(
    dims: Dims, c_d: float, settings: list[BeamSetting], scores: MadeUpScores, objective: str, moments: int
) -> None:
    made = problem(dims, c_d, objective)
    undisturbed = side_by_side(made, settings)
    Pool(scores).run(undisturbed)

    drawn = random.Random(moments)
    search, pool = side_by_side(made, settings), Pool(scores, drawn)
    saved = json.dumps(None)
    while not search.done:
        if drawn.random() < 0.3:
            saved = json.dumps(search.state())
        if drawn.random() < 0.2:  # killed: what is left is the state saved last and the record of all scores
            search = side_by_side(made, settings, json.loads(saved))
            search.tell(pool.told)
            pool = Pool(scores, drawn, told=pool.told)
        pool.step(search)
        assert max(Counter(ranks_of(pool.told)).values(), default=1) == 1, "a recorded candidate was scored again"
    assert search.best == undisturbed.best


def test_a_run_resumed_after_its_end_is_done_and_asks_for_nothing() -> None:
    for failing in (0.0, 1.0):
        made, settings = problem([(9, 9)] * 3, 0.5), [BeamSetting(2, 3, 0.01), BeamSetting(3, 2, 0.01)]
        search = side_by_side(made, settings)
        Pool(MadeUpScores(1, failing=failing)).run(search)
        again = side_by_side(made, settings, json.loads(json.dumps(search.state())))
        assert (again.done, again.best, again.ask()) == (True, search.best, [])


class Ended:
    """A search that ended with a given answer."""

    def __init__(self, answer: Answer | None) -> None:
        self.done, self.level, self.best = True, 3, answer

    def ask(self) -> list[Candidate]:
        return []

    def tell(self, scores: object) -> None:
        raise AssertionError("nothing was asked for")

    def state(self) -> dict[str, Any]:
        return {}


def answer(search: str, accuracy: float, missing: float = 0.0) -> Answer:
    return Answer((1,), Score((1,), {"accuracy": accuracy, "loss": 0.0, "kl": 0.0}), missing == 0.0, search, missing)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([answer("a", 0.6), answer("b", 0.7)], "b"),
        ([answer("a", 0.7), answer("b", 0.7)], "a"),  # the order of the settings decides between equals
        ([answer("a", 0.9, missing=0.01), answer("b", 0.1)], "b"),  # the window comes first
        ([answer("a", 0.9, missing=0.3), answer("b", 0.1, missing=0.01)], "b"),  # outside, what came closest
        ([None, answer("b", 0.1)], "b"),
    ],
)
def test_which_answer_is_best(answers: list[Answer | None], expected: str) -> None:
    together = SideBySide({str(number): Ended(one) for number, one in enumerate(answers)}, "accuracy")
    assert together.best is not None
    assert together.best.search == expected


def test_no_answer_at_all() -> None:
    assert SideBySide({"a": Ended(None)}, "accuracy").best is None


def test_level_grows_with_every_search() -> None:
    made, settings = problem([(9, 9)] * 2, 0.5), [BeamSetting(2, 3, 0.01), BeamSetting(1, 2, 0.01)]
    search, pool = side_by_side(made, settings), Pool(MadeUpScores(0))
    levels = [search.level]
    while not search.done:
        pool.step(search)
        levels.append(search.level)
    assert levels == sorted(levels)
    assert search.level == sum(one["level"] for one in search.state().values())


def test_a_score_that_is_told_before_it_is_asked_for_is_kept() -> None:
    scores = MadeUpScores(0)
    search = side_by_side(problem([(9, 9)], 0.5), [BeamSetting(1, 3, 0.01)])
    search.tell([scores((None,)), replace(scores((4,)), worker="of a former process")])
    # Rank 4 of 9 x 9 removes 9 of 81 weights, rank 3 removes 27: the start and its only child are known.
    assert ranks_of(search.ask()) == [(3,)]
