"""Layers alone first, then the allocations that their scores suggest."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.contract import Problem
from orchestrator.searches.layerwise import Alone, LayerwiseSearch, spread_rungs
from orchestrator.searches.objective import objective_value
from search_spaces.candidates import Score
from search_spaces.errors import ConfigError
from search_spaces.rank_space import RankVector
from tests.orchestrator.searches.made_up import Pool, problem
from tests.orchestrator.searches.separable import (
    Losses,
    assert_stopping_changes_nothing,
    cases,
    every_rank_vector,
)


def best_sum(made: Problem, alone: Alone) -> Mapping[str, Allocation]:
    """The rank vector of best summed scores, and the cheapest one."""

    def value(ranks: RankVector) -> float:
        return sum(objective_value(made.objective, alone[index, rank]) for index, rank in enumerate(ranks))

    known = [ranks for ranks in every_rank_vector(made) if all(place in alone for place in enumerate(ranks))]
    best = max(known, key=lambda ranks: (value(ranks), str(ranks)))
    return {"best": Allocation(best, {"value": value(best)}), "smallest": Allocation(made.space.smallest, {})}


def search_of(made: Problem, count: int = 9) -> LayerwiseSearch:
    probes = [spread_rungs(layer.offered, count) for layer in made.space.layers]
    return LayerwiseSearch(made, probes, lambda alone: best_sum(made, alone))


@given(case=cases(), order=st.randoms())
def test_a_separable_problem_is_solved_whatever_the_order_of_arrival(
    case: tuple[Problem, Losses], order: random.Random
) -> None:
    made, losses = case
    search, pool = search_of(made), Pool(losses, order)
    pool.run(search)
    assert search.best is not None
    least = min(losses(ranks).values["kl"] for ranks in every_rank_vector(made))
    assert search.best.score.values["kl"] == pytest.approx(least, abs=1e-9)
    assert search.best.in_window


@given(case=cases(), count=st.integers(1, 4))
def test_every_layer_is_scored_alone_at_its_probes_and_once_dense(case: tuple[Problem, Losses], count: int) -> None:
    made, _losses = case
    search = search_of(made, count)
    dense = made.space.dense
    expected = {dense} | {
        (*dense[:index], rank, *dense[index + 1 :])
        for index, layer in enumerate(made.space.layers)
        for rank in spread_rungs(layer.offered, count)
    }
    asked = search.ask()
    assert {one.ranks for one in asked} == expected
    assert len(asked) == len(expected)
    for one in asked:
        assert one.changed == next((at for at, rank in enumerate(one.ranks) if rank is not None), None)
        assert (one.parent, one.level, one.search) == (dense, 0, "alone")


@given(case=cases(), order=st.randoms())
def test_stopping_it_changes_nothing(case: tuple[Problem, Losses], order: random.Random) -> None:
    made, losses = case[0], replace(case[1], interaction=0.3)
    assert_stopping_changes_nothing(lambda _: search_of(made, 3), losses, order)


def test_what_was_scored_alone_is_not_scored_again_as_an_allocation() -> None:
    made, losses = problem([(9, 9)], 0.2), Losses([{None: 0.0, **{rank: 1 / rank for rank in range(1, 5)}}])
    search, pool = search_of(made), Pool(losses)
    pool.run(search)
    assert sorted(str(one.ranks) for one in pool.asked) == sorted(str((rank,)) for rank in (None, 1, 2, 3, 4))
    assert search.best is not None
    assert search.best.ranks == (3,)


def test_levels_and_answers_on_the_way() -> None:
    made = problem([(9, 9)] * 2, 0.5)
    losses = Losses([{None: 0.0, **{rank: 1 / rank for rank in range(1, 5)}}] * 2)
    search, pool = search_of(made, 4), Pool(losses)
    assert (search.level, search.done, search.best, search.state(), search.skipped) == (0, False, None, {}, 0)
    pool.step(search)
    assert (search.level, search.done, search.best) == (1, False, None)
    pool.step(search)
    assert (search.level, search.done, search.ask()) == (2, True, [])


def test_a_dense_network_that_cannot_be_scored_is_said() -> None:
    search = search_of(problem([(9, 9)], 0.2), 2)
    failing = {one.ranks: Score(one.ranks, status="timeout", reason="no answer after 3 s") for one in search.ask()}
    with pytest.raises(ConfigError, match=r"^model: the dense network could not be scored: no answer after 3 s; "):
        search.tell(list(failing.values()))


class TestSpreadRungs:
    @given(rungs=st.integers(0, 60), count=st.integers(2, 20))
    def test_are_evenly_spread_with_both_ends(self, rungs: int, count: int) -> None:
        offered = range(1, rungs + 1)
        picked = spread_rungs(offered, count)
        assert len(picked) == len(set(picked)) == min(rungs, count)
        assert picked == sorted(picked)  # type: ignore[type-var]
        if rungs:
            assert (picked[0], picked[-1]) == (1, rungs)
        gaps = [after - before for before, after in itertools.pairwise(picked)]  # type: ignore[operator]
        assert max(gaps, default=1) - min(gaps, default=1) <= 1

    def test_one_is_the_lowest_so_that_the_budget_can_be_met(self) -> None:
        assert spread_rungs(range(1, 9), 1) == [1]

    def test_pairs_are_picked_by_their_place(self) -> None:
        assert spread_rungs(((1, 1), (2, 1), (1, 2)), 2) == [(1, 1), (1, 2)]
