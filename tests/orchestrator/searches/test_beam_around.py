"""A beam around allocations: never over the budget, never worse than where it starts, and to its end from anywhere."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.beam_around import AroundSetting, BeamAround
from orchestrator.searches.contract import Problem
from orchestrator.searches.objective import objective_value
from search_spaces.candidates import Score
from search_spaces.rank_space import LayerRanks, RankSpace, RankVector
from tests.orchestrator.searches.made_up import Pool, problem, ranks_of
from tests.orchestrator.searches.separable import (
    Losses,
    TableCost,
    assert_stopping_changes_nothing,
    cases,
    every_rank_vector,
    fits,
    given_allocations,
)

SETTINGS = st.builds(
    AroundSetting,
    beam_size=st.integers(1, 4),
    moves=st.sampled_from([(1,), (1, 2), (3,), (1, 2, 3, 4, 5)]),
    exchanges=st.integers(1, 30),
    rounds=st.integers(1, 6),
)
FAR = AroundSetting(beam_size=2, moves=(1, 2, 3, 4, 5), exchanges=500, rounds=100)
"""Every rung can be reached by one move, and everything that promises anything is scored."""


def value(made: Problem, losses: Losses, ranks: RankVector) -> float:
    return objective_value(made.objective, losses(ranks))


@given(
    case=cases(layers=4),
    setting=SETTINGS,
    starts=st.integers(1, 3),
    interaction=st.sampled_from([0.0, 0.5]),
    failing=st.sampled_from([0.0, 0.3]),
    digits=st.sampled_from([0, 12]),
    order=st.randoms(),
)
def test_never_over_the_budget_and_never_worse_than_its_start(
    case: tuple[Problem, Losses],
    setting: AroundSetting,
    starts: int,
    interaction: float,
    failing: float,
    digits: int,
    order: random.Random,
) -> None:
    made, losses = case[0], replace(case[1], interaction=interaction, failing=failing, digits=digits)
    given_ones = given_allocations(made, starts)
    search, pool = BeamAround(made, given_ones, setting), Pool(losses, order)
    pool.run(search)
    assert search.ask() == []
    assert len(pool.asked) == len(set(ranks_of(pool.asked)))
    start = max(value(made, losses, one.ranks) for one in given_ones.values())
    if start == -math.inf:
        assert search.best is None
        return
    assert search.best is not None
    assert fits(made, search.best.ranks)
    assert search.best.in_window
    assert search.best.score == losses(search.best.ranks)
    assert value(made, losses, search.best.ranks) >= start
    seen = [value(made, losses, ranks) for ranks in ranks_of(pool.told) if fits(made, ranks)]
    assert value(made, losses, search.best.ranks) == max(seen)


@given(case=cases(layers=4), setting=SETTINGS, digits=st.sampled_from([0, 12]), order=st.randoms())
def test_the_order_of_arrival_changes_nothing(
    case: tuple[Problem, Losses], setting: AroundSetting, digits: int, order: random.Random
) -> None:
    made, losses = case[0], replace(case[1], interaction=0.5, failing=0.1, digits=digits)
    one, other = (BeamAround(made, given_allocations(made, 2), setting) for _ in range(2))
    straight, shuffled = Pool(losses), Pool(losses, order)
    straight.run(one)
    shuffled.run(other)
    assert one.best == other.best
    assert straight.asked == shuffled.asked
    assert one.state() == other.state()


@given(case=cases(layers=4), setting=SETTINGS, digits=st.sampled_from([0, 12]), order=st.randoms())
def test_stopping_it_changes_nothing(
    case: tuple[Problem, Losses], setting: AroundSetting, digits: int, order: random.Random
) -> None:
    made, losses = case[0], replace(case[1], interaction=0.5, failing=0.1, digits=digits)
    starts = given_allocations(made, 2)
    assert_stopping_changes_nothing(lambda state: BeamAround(made, starts, setting, state), losses, order, points=12)


@given(case=cases(layers=2), order=st.randoms())
def test_the_best_of_all_in_a_separable_problem_of_two_layers(
    case: tuple[Problem, Losses], order: random.Random
) -> None:
    made, losses = case
    search = BeamAround(made, {"smallest": Allocation(made.space.smallest, {})}, FAR)
    Pool(losses, order).run(search)
    assert search.best is not None
    best = max(value(made, losses, ranks) for ranks in every_rank_vector(made))
    assert objective_value(made.objective, search.best.score) == pytest.approx(best, abs=1e-9)


@given(case=cases(layers=4), order=st.randoms())
def test_nothing_that_moves_one_layer_or_exchanges_two_is_better(
    case: tuple[Problem, Losses], order: random.Random
) -> None:
    """On a separable problem, whatever the start: the answer is best among its neighbours."""
    made, losses = case
    search = BeamAround(made, given_allocations(made, 1), FAR)
    Pool(losses, order).run(search)
    assert search.best is not None
    here = search.best.ranks
    for ranks in every_rank_vector(made):
        changed = [index for index, rank in enumerate(ranks) if rank != here[index]]
        if len(changed) < 2 or (len(changed) == 2 and _one_down_one_up(made, here, ranks, changed)):
            assert value(made, losses, ranks) <= value(made, losses, here) + 1e-9


def _one_down_one_up(made: Problem, here: RankVector, there: RankVector, changed: list[int]) -> bool:
    def rung(layer: LayerRanks, rank: object) -> int:
        return (*layer.offered, None).index(rank)  # type: ignore[arg-type]

    first, second = (rung(made.space.layers[at], there[at]) - rung(made.space.layers[at], here[at]) for at in changed)
    return first * second < 0


def test_a_score_for_each_layer_that_rises_with_its_rank_ends_at_the_budget() -> None:
    made = problem([(40, 40)] * 5, 0.5, objective="kl")
    losses = Losses([{None: 0.0, **{rank: (at + 1) / rank for rank in range(1, 20)}} for at in range(5)])
    search = BeamAround(made, {"smallest": Allocation((1,) * 5, {})}, AroundSetting(rounds=100))
    Pool(losses).run(search)
    assert search.best is not None
    # 50 ranks in all; by Lagrange's rule they are as the roots of the weights.
    assert sum(rank for rank in search.best.ranks if isinstance(rank, int)) == 50
    wanted = [50 * math.sqrt(at + 1) / sum(map(math.sqrt, range(1, 6))) for at in range(5)]
    assert search.best.ranks == pytest.approx(wanted, abs=1)


class TestEndings:
    ONE = problem([(9, 9)], 0.2)

    @staticmethod
    def run(made: Problem, start: RankVector, score: Callable[[RankVector], Score]) -> tuple[BeamAround, Pool]:
        search, pool = BeamAround(made, {"start": Allocation(start, {})}, AroundSetting()), Pool(score)
        pool.run(search)
        return search, pool

    def test_one_layer(self) -> None:
        losses = Losses([{None: 0.0, 1: 3.0, 2: 2.0, 3: 1.0, 4: 0.5}])
        search, pool = self.run(self.ONE, (1,), losses)
        assert search.best is not None
        assert search.best.ranks == (3,)  # rank 4 keeps 72 of 81, too many
        assert (4,) in ranks_of(pool.asked) or (None,) in ranks_of(pool.asked)

    def test_every_score_is_no_number(self) -> None:
        search, pool = self.run(
            self.ONE, (1,), lambda ranks: Score(ranks, dict.fromkeys(("accuracy", "loss"), math.nan))
        )
        assert (search.done, search.best, ranks_of(pool.asked)) == (True, None, [(1,)])

    def test_only_the_start_is_a_number(self) -> None:
        def score(ranks: RankVector) -> Score:
            return Score(ranks, {"accuracy": 0.5}) if ranks == (2,) else Score(ranks, status="error", reason="raised")

        search, pool = self.run(self.ONE, (2,), score)
        assert search.best is not None
        assert (search.best.ranks, set(ranks_of(pool.asked))) == ((2,), {(2,), (1,), (3,), (4,)})

    def test_no_move_at_all(self) -> None:
        # Rank 1 of 1 x 1 shrinks nothing: the layers can only be dense.
        made = replace(problem([(1, 1)] * 2, 0.1), budget=replace(self.ONE.budget, targets=(("parameters", 0.0),)))
        search, pool = self.run(made, (None, None), Losses([{None: 0.0}] * 2))
        assert search.best is not None
        assert (search.best.ranks, len(pool.asked)) == ((None, None), 1)

    def test_no_exchange_fits(self) -> None:
        made = problem([(9, 9)] * 2, 1 - 2 * 18 / 162)  # rank 1 in both, and nothing else
        losses = Losses([{None: 0.0, **{rank: 1 / rank for rank in range(1, 5)}}] * 2)
        search, pool = self.run(made, (1, 1), losses)
        assert search.best is not None
        assert search.best.ranks == (1, 1)
        assert {one.search for one in pool.asked} == {"start start", "probe"}

    def test_equal_scores_everywhere(self) -> None:
        made = problem([(9, 9)] * 3, 0.4)
        search, _ = self.run(
            made, (2, 2, 2), lambda ranks: Score(ranks, dict.fromkeys(("accuracy", "loss", "kl"), 0.5))
        )
        assert search.best is not None
        assert fits(made, search.best.ranks)

    def test_rounds_are_limited(self) -> None:
        made = problem([(60, 60)] * 2, 0.1)
        losses = Losses([{None: 0.0, **{rank: 1 / rank for rank in range(1, 31)}}] * 2)
        setting = AroundSetting(moves=(1,), exchanges=1, rounds=1)
        search, pool = BeamAround(made, {"start": Allocation((1, 1), {})}, setting), Pool(losses)
        pool.run(search)
        probed = {one.level for one in pool.asked if one.search == "probe"}
        assert probed == {1}


def test_probes_may_be_over_the_budget_but_exchanges_may_not() -> None:
    made = problem([(9, 9)] * 3, 0.5)
    losses = Losses([{None: 0.0, **{rank: (at + 1) / rank for rank in range(1, 5)}} for at in range(3)])
    search, pool = BeamAround(made, {"start": Allocation((2, 2, 2), {})}, AroundSetting()), Pool(losses)
    pool.run(search)
    kinds = {one.ranks: one.search for one in pool.asked}
    assert any(not fits(made, ranks) for ranks, kind in kinds.items() if kind == "probe")
    assert all(fits(made, ranks) for ranks, kind in kinds.items() if kind != "probe")


def test_several_limits_hold_together() -> None:
    """The dearer layer is another one by each cost."""
    made, losses = _two_limits()
    search = BeamAround(made, {"smallest": Allocation(made.space.smallest, {})}, FAR)
    Pool(losses).run(search)
    assert search.best is not None
    best = max(every_rank_vector(made), key=lambda ranks: value(made, losses, ranks))
    assert search.best.ranks == best
    for cost, target in made.budget.targets:
        assert made.space.compression(cost, best) >= target


def _two_limits() -> tuple[Problem, Losses]:
    def table(unit: int) -> dict[object, float]:
        return {rank: float(unit * (rank or 7)) for rank in (1, 2, 3, 4, None)}

    layers = tuple(LayerRanks(name, 4, 4) for name in "ab")
    costs = {
        "parameters": TableCost("parameters", [table(1), table(3)]),
        "macs": TableCost("macs", [table(3), table(1)]),
    }  # type: ignore[list-item]
    space = RankSpace(layers, costs)
    base = problem([(9, 9)], 0.2, objective="kl")
    made = replace(base, space=space, budget=replace(base.budget, targets=(("parameters", 0.6), ("macs", 0.5))))
    return made, Losses([{None: 0.0, **{rank: 1 / rank for rank in range(1, 5)}}] * 2)


def test_ties_between_members_whose_ranks_cannot_be_compared() -> None:
    """Equal hopes of equal exchanges from a member with a dense layer and from one without."""
    made = problem([(9, 9)] * 4, 0.3)
    for seed, start in itertools.product(range(6), [(None, 2, 2, 2), (2, None, 2, 2), (3, 3, 3, 1)]):
        search = BeamAround(replace(made, seed=seed), {"start": Allocation(start, {})}, replace(FAR, beam_size=6))
        Pool(lambda ranks: Score(ranks, dict.fromkeys(("accuracy", "loss", "kl"), 1.0))).run(search)
        assert search.done


def test_a_state_whose_ranks_are_no_rungs_any_more_is_begun_anew() -> None:
    made, losses = _two_limits()
    starts = {"smallest": Allocation(made.space.smallest, {})}
    search, pool = BeamAround(made, starts, FAR), Pool(losses)
    pool.run(search)
    state = json.loads(json.dumps(search.state()))
    fewer = replace(made, space=replace(made.space, layers=tuple(LayerRanks(name, 1, 1) for name in "ab")))
    again = BeamAround(fewer, starts, FAR, state)
    assert (again.level, again.done) == (0, False)
    again.tell(pool.told)
    rest = Pool(losses)
    rest.run(again)
    assert again.best is not None
    assert all(rank in (1, None) for rank in again.best.ranks)


def test_what_it_says_of_itself() -> None:
    made, losses = _two_limits()
    starts = {"b": Allocation((1, 1), {}), "a": Allocation((2, 1), {})}
    search = BeamAround(made, starts, AroundSetting())
    assert [(one.search, one.parent, one.level) for one in search.ask()] == [
        ("start b", (None, None), 0),
        ("start a", (None, None), 0),
    ]
    assert (search.level, search.best, search.skipped, search.ask()) == (0, None, 0, [])
    search.tell([losses((1, 1)), losses((2, 1))])
    assert search.best is not None
    assert (search.level, search.best.ranks, search.best.search) == (1, (2, 1), "around")
    assert search.best.note == {"started_from": ["a", "b"], "levels": 1, "rounds": 1}
