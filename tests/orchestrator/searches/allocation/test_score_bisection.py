"""One score that every layer keeps alone: the highest that fits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.score_bisection import score_bisection
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import (
    choice_of,
    layer,
    nothing_can_be_improved,
    price_of,
    problems,
    values_of,
    within,
)


@st.composite
def scored(draw):
    options, capacities = draw(problems())
    score = st.one_of(st.integers(0, 10).map(lambda tenth: tenth / 10), st.just(math.nan))
    scores = [np.array([*(draw(score) for _ in one.ranks[:-1]), draw(st.sampled_from([0.9, 1.0]))]) for one in options]
    return options, capacities, scores


def _at(options, capacities, scores, s):
    choice = []
    for one, score in zip(options, scores, strict=True):
        measured = [index for index, value in enumerate(score) if math.isfinite(value)]
        kept = [index for index in measured if score[index] >= s]
        if not kept:
            kept = [index for index in measured if score[index] == max(score[i] for i in measured)]
        choice.append(min(kept, key=lambda index: (price_of(one, index, capacities), -score[index])))
    return choice


@given(scored())
def test_no_higher_common_score_fits(problem):
    options, capacities, scores = problem
    asked = sorted({value for score in scores for value in score.tolist() if math.isfinite(value)}, reverse=True)
    fitting = [s for s in asked if within(options, _at(options, capacities, scores, s), capacities)]
    if not fitting:
        with pytest.raises(InfeasibleBudgetError):
            score_bisection(options, capacities, scores)
        return
    allocation = score_bisection(options, capacities, scores)
    choice = choice_of(options, allocation)
    assert within(options, choice, capacities)
    assert allocation.note["score"] in (fitting[0], None)
    if allocation.note["score"] is None:
        assert all(_at(options, capacities, scores, s) == choice for s in fitting[:1])
    reached = values_of(scores, choice)
    needed = values_of(scores, _at(options, capacities, scores, fitting[0]))
    assert all(score >= least for score, least in zip(reached, needed, strict=True))
    losses = [np.where(np.isfinite(score), -score, math.inf) for score in scores]
    assert nothing_can_be_improved(options, choice, capacities, losses)
    assert allocation == score_bisection(options, capacities, scores)


def test_a_dearer_option_that_was_measured_worse_is_never_taken():
    options = [layer("a", [0.5, 0.4, 0.3], parameters=[2, 4, 6, 10])]
    scores = [np.array([0.8, 0.7, 0.75, 0.9])]
    assert score_bisection(options, {"parameters": 7.0}, scores).ranks == (1,)


def test_the_left_over_goes_to_the_lowest_score():
    options = [
        layer("a", [0.5, 0.4], parameters=[2, 4, 9]),
        layer("b", [0.5, 0.4], parameters=[2, 4, 9]),
    ]
    scores = [np.array([0.6, 0.8, 0.9]), np.array([0.5, 0.85, 0.9])]
    # 0.6 takes 2 + 4, and 0.8 would take 4 + 4.
    allocation = score_bisection(options, {"parameters": 7.0}, scores)
    assert allocation.ranks == (1, 2)
    assert allocation.note == {"score": 0.6}


def test_a_dense_layer_without_a_score_is_refused():
    options = [layer("a", [0.5], parameters=[2, 4])]
    with pytest.raises(ValueError, match="dense"):
        score_bisection(options, {"parameters": 3.0}, [np.array([0.5, math.nan])])
