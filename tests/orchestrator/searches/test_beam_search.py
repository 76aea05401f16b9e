"""mBS: the answer of algorithm 1, whoever scores, in whatever order, and however often it is interrupted."""

from __future__ import annotations

import json
import random
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.beam_search import BeamSearch, BeamSetting
from orchestrator.searches.contract import Problem
from search_spaces.candidates import Score
from search_spaces.rank_space import RankVector
from tests.orchestrator.searches.algorithm_1 import algorithm_1, compression
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

ROUNDING = 1e-9


def reference(dims: Dims, c_d: float, setting: BeamSetting, scores: MadeUpScores, objective: str, seed: int) -> Any:
    return algorithm_1(
        dims,
        scores.values,
        c_d=c_d,
        tau=setting.tolerance,
        step=setting.step,
        beam_size=setting.beam_size,
        gamma=setting.gamma,
        start=setting.start,
        tie_break=setting.tie_break,
        objective=objective,
        seed=seed,
    )


def answer_ranks(search: BeamSearch) -> RankVector | None:
    return None if search.best is None else search.best.ranks


class TestAgainstAlgorithm1:
    """The reference is a plain sequential loop with its own eq. 3.1."""

    @given(DIMS, BUDGETS, SETTINGS, SCORES, OBJECTIVES, st.integers(0, 3), st.integers(0, 99))
    def test_the_same_answer_in_any_order_of_arrival(
        self,
        dims: Dims,
        c_d: float,
        setting: BeamSetting,
        scores: MadeUpScores,
        objective: str,
        seed: int,
        order: int,
    ) -> None:
        expected = reference(dims, c_d, setting, scores, objective, seed)
        for arrival in (None, random.Random(order)):
            search = BeamSearch(problem(dims, c_d, objective, seed), setting)
            Pool(scores, arrival).run(search)
            assert answer_ranks(search) == expected

    @pytest.mark.parametrize("start", ["full", "break_even"])
    def test_a_worked_example(self, start: Any) -> None:
        # Two 4 x 4 layers: dense 16 each, rank 1 costs 8, rank 2 nothing less than dense. C_d = 0.25 is one layer at 1.
        scores = {(None, None): 0.9, (1, None): 0.5, (None, 1): 0.7}

        def score(ranks: RankVector) -> Score:
            return Score(ranks, {"accuracy": scores[ranks], "loss": 0.0, "kl": 0.0})

        search = BeamSearch(problem([(4, 4), (4, 4)], 0.25), BeamSetting(1, 2, 0.01, start=start))
        pool = Pool(score)
        pool.run(search)
        assert search.best is not None
        assert (search.best.ranks, search.best.in_window) == ((None, 1), True)
        assert set(ranks_of(pool.asked)) == set(scores)


class TestTheWindow:
    @given(DIMS, BUDGETS, SETTINGS, SCORES)
    def test_an_answer_in_the_window_lies_in_it(
        self, dims: Dims, c_d: float, setting: BeamSetting, scores: MadeUpScores
    ) -> None:
        search = BeamSearch(problem(dims, c_d), setting)
        Pool(scores).run(search)
        if search.best is not None:
            lacking = c_d - setting.tolerance - float(compression(dims, search.best.ranks))
            assert search.best.in_window == (lacking <= ROUNDING)
            assert search.best.missing == pytest.approx(max(0.0, lacking), abs=ROUNDING)

    @given(DIMS, BUDGETS, SETTINGS, SCORES)
    def test_nothing_beyond_the_budget_is_ever_asked_for(
        self, dims: Dims, c_d: float, setting: BeamSetting, scores: MadeUpScores
    ) -> None:
        pool = Pool(scores)
        pool.run(BeamSearch(problem(dims, c_d), setting))
        assert all(float(compression(dims, ranks)) <= c_d + ROUNDING for ranks in ranks_of(pool.asked))

    def test_both_ends_of_the_window_belong_to_it(self) -> None:
        # 10 x 10: rank r costs 20 r of 100, so ranks 4, 3, 2, 1 have C = 0.2, 0.4, 0.6, 0.8.
        for c_d, tolerance in ((0.4, 0.1), (0.5, 0.1)):
            search = BeamSearch(problem([(10, 10)], c_d), BeamSetting(1, 1, tolerance))
            Pool(MadeUpScores(0)).run(search)
            assert search.best is not None
            assert (search.best.ranks, search.best.in_window) == ((3,), True)


class TestSeenInTheWindow:
    """Where the search steps over the window, the best rank vector that it ever saw there is its answer."""

    # Of 268 weights go, by rank: 10 x 10: 20 at 4, 40 at 3; 6 x 4 (twice): 4 at 2, 14 at 1; 8 x 15: 5 at 5, 28 at 4.
    # The window is 37 to 42. The best path goes through both 6 x 4 layers (28) to 33, and there it ends: the next step
    # would lead to 53 or 56. On the way the search sees 40 (level 1) and 42 (level 2).
    LAYERS: ClassVar[Dims] = [(10, 10), (6, 4), (6, 4), (8, 15)]
    AT_LEVEL_1, AT_LEVEL_2 = (3, None, None, None), (None, 1, None, 4)
    PATH = ((None, None, None, None), (None, 1, None, None), (None, 1, 1, None), (None, 1, 1, 5))

    @pytest.mark.parametrize("interrupted", [False, True])
    @pytest.mark.parametrize(("first", "second"), [(0.6, 0.3), (0.3, 0.6)])
    def test_the_best_of_all_levels_is_the_answer(self, first: float, second: float, interrupted: bool) -> None:
        accuracies = {self.AT_LEVEL_1: first, self.AT_LEVEL_2: second, **dict.fromkeys(self.PATH, 0.9)}

        def score(ranks: RankVector) -> Score:
            return Score(ranks, {"accuracy": accuracies.get(ranks, 0.1), "loss": 0.0, "kl": 0.0})

        made, setting = problem(self.LAYERS, 42 / 268), BeamSetting(2, 1, 5 / 268)
        search, pool = BeamSearch(made, setting), Pool(score)
        while not search.done:
            pool.step(search)
            if interrupted:
                search = BeamSearch(made, setting, json.loads(json.dumps(search.state())))
        assert set(self.PATH) <= set(ranks_of(pool.asked))
        assert search.best is not None
        assert search.best.ranks == (self.AT_LEVEL_1 if first > second else self.AT_LEVEL_2)
        assert search.best.in_window


class TestSteps:
    """The step s: where no child survives it becomes round(gamma s), at least one less, never below 1."""

    @staticmethod
    def ranks_tried(step: int, gamma: float, c_d: float) -> list[int | None]:
        # 100 x 100: rank r costs 2 r %, so that C_d = 0.5 lets ranks from 25 on through; 49 is the largest useful one.
        pool = Pool(MadeUpScores(0))
        pool.run(BeamSearch(problem([(100, 100)], c_d), BeamSetting(step, 5, 0.001, gamma)))
        return [ranks[0] for ranks in ranks_of(pool.asked)]

    def test_it_halves_near_the_budget(self) -> None:
        # From 50: 34 by 16; 18 is beyond, so 8: 26; then 4, 2, 1: 25.
        assert self.ranks_tried(16, 0.5, 0.5) == [None, 34, 26, 25]

    def test_a_gamma_near_one_loses_at_least_one(self) -> None:
        # round(0.99 * 10) would be 10 for ever: 50 - 10 - 10 = 30, then 9, 8, 7, 6, 5: 25.
        assert self.ranks_tried(10, 0.99, 0.5) == [None, 40, 30, 25]

    def test_a_gamma_near_zero_ends_at_one(self) -> None:
        assert self.ranks_tried(10, 0.01, 0.5) == [None, 40, 30, 29, 28, 27, 26, 25]

    def test_a_rank_never_falls_below_one(self) -> None:
        assert self.ranks_tried(1000, 0.5, 0.98) == [None, 1]


class TestTheEnd:
    """Every search ends, whatever happens to its candidates."""

    @given(DIMS, BUDGETS, SETTINGS)
    def test_when_every_candidate_fails(self, dims: Dims, c_d: float, setting: BeamSetting) -> None:
        search = BeamSearch(problem(dims, c_d), setting)
        pool = Pool(MadeUpScores(0, failing=1.0))
        pool.run(search)
        assert search.best is None
        assert len(pool.asked) == 1, "where the start cannot be scored there is nothing to go on from"

    @given(DIMS, BUDGETS, SETTINGS)
    def test_when_everything_but_the_start_fails(self, dims: Dims, c_d: float, setting: BeamSetting) -> None:
        def score(ranks: RankVector) -> Score:
            dense = all(rank is None for rank in ranks)
            return MadeUpScores(0)(ranks) if dense else Score(ranks, status="nan")

        search = BeamSearch(problem(dims, c_d), setting)
        Pool(score).run(search)
        assert search.best is not None
        assert set(search.best.ranks) == {None}

    def test_when_no_rank_shrinks_any_layer(self) -> None:
        search = BeamSearch(problem([(2, 2), (1, 9)], 0.5), BeamSetting(1, 5, 0.01, start="full"))
        Pool(MadeUpScores(0)).run(search)
        assert search.best is not None
        assert (search.best.ranks, search.best.in_window) == ((None, None), False)

    @pytest.mark.parametrize("tie_break", ["rank", "loss", "compression"])
    @pytest.mark.parametrize("objective", ["accuracy", "cross_entropy", "kl"])
    def test_values_that_are_no_numbers_are_ranked_last(self, objective: str, tie_break: Any) -> None:
        # Two layers tie but for their values; the one with the NaN must lose, whatever the hash of its ranks says.
        def score(ranks: RankVector) -> Score:
            value = float("nan") if ranks == (1, None) else 0.5
            return Score(ranks, {"accuracy": value, "loss": value, "kl": value})

        for seed in range(8):
            setting = BeamSetting(1, 2, 0.01, tie_break=tie_break)
            search = BeamSearch(problem([(4, 4), (4, 4)], 0.25, objective, seed), setting)
            Pool(score).run(search)
            assert answer_ranks(search) == (None, 1)

    def test_before_the_first_score_there_is_no_best(self) -> None:
        search = BeamSearch(problem([(10, 10)], 0.5), BeamSetting(1, 5, 0.01))
        assert search.best is None
        search.ask()
        assert search.best is None


class TestTelling:
    def test_scores_that_nobody_asked_for_are_ignored(self) -> None:
        search = BeamSearch(problem([(10, 10)], 0.5), BeamSetting(1, 5, 0.01))
        search.tell([MadeUpScores(0)((4,)), MadeUpScores(0)((1,))])
        assert (search.level, search.best, search.done) == (0, None, False)
        assert ranks_of(search.ask()) == [(None,)]

    def test_nothing_is_asked_for_twice_within_a_level(self) -> None:
        search = BeamSearch(problem([(10, 10), (10, 10)], 0.5), BeamSetting(1, 5, 0.01))
        assert len(search.ask()) == 1
        assert search.ask() == []

    def test_a_level_waits_for_its_last_score(self) -> None:
        scores = MadeUpScores(0)
        search = BeamSearch(problem([(10, 10)] * 3, 0.5), BeamSetting(1, 5, 0.01))
        search.tell([scores(candidate.ranks) for candidate in search.ask()])
        asked = search.ask()
        search.tell([scores(candidate.ranks) for candidate in asked[:-1]])
        assert (search.level, search.ask()) == (1, [])
        search.tell([scores(asked[-1].ranks)])
        assert search.level == 2

    def test_candidates_say_where_they_come_from(self) -> None:
        search = BeamSearch(problem([(10, 10), (10, 10)], 0.5), BeamSetting(2, 5, 0.01))
        root = search.ask()[0]
        assert (root.parent, root.changed, root.level, root.search) == (None, None, 0, "s2-k5")
        search.tell([MadeUpScores(0)(root.ranks)])
        first, second = search.ask()
        assert (first.ranks, first.parent, first.changed, first.level) == ((3, None), root.ranks, 0, 1)
        assert (second.ranks, second.changed) == ((None, 3), 1)


class TestTies:
    def test_the_seed_decides_what_nothing_else_does(self) -> None:
        def answer(seed: int) -> RankVector | None:
            search = BeamSearch(problem([(10, 10)] * 6, 0.1, seed=seed), BeamSetting(2, 1, 0.05))
            Pool(MadeUpScores(0, distinct=1)).run(search)
            return answer_ranks(search)

        assert all(answer(seed) == answer(seed) for seed in range(20))
        assert len({answer(seed) for seed in range(20)}) > 2

    @pytest.mark.parametrize(
        ("tie_break", "expected"), [("rank", (3, None)), ("loss", (None, 1)), ("compression", (3, None))]
    )
    def test_the_tie_break_comes_before_the_seed(self, tie_break: Any, expected: RankVector) -> None:
        # From the numbers (9, 5) a step of 6 leads to (3, 5), which saves 186 of 388, and to (9, 1), which saves 80.
        def score(ranks: RankVector) -> Score:
            return Score(ranks, {"accuracy": 0.5, "loss": float(ranks[0] is not None), "kl": 0.0})

        for seed in range(8):
            made = problem([(16, 18), (10, 10)], 0.6, seed=seed)
            search = BeamSearch(made, BeamSetting(6, 1, 0.59, tie_break=tie_break))
            Pool(score).run(search)
            assert answer_ranks(search) == expected


class TestState:
    """A search goes on from its state as if nothing had happened."""

    @given(DIMS, BUDGETS, SETTINGS, SCORES, OBJECTIVES, st.integers(0, 2**16))
    def test_restored_at_any_moment_it_ends_the_same(
        self,
        dims: Dims,
        c_d: float,
        setting: BeamSetting,
        scores: MadeUpScores,
        objective: str,
        moments: int,
    ) -> None:
        made: Problem = problem(dims, c_d, objective)
        drawn = random.Random(moments)
        search = BeamSearch(made, setting)
        pool = Pool(scores, drawn)
        while not search.done:
            pool.step(search)
            if drawn.random() < 0.3:
                search = BeamSearch(made, setting, json.loads(json.dumps(search.state())))
                waiting = search.ask()  # what waited is asked for again ...
                search.tell(pool.told)  # ... and answered from the record, if it is there
                pool = Pool(scores, drawn, told=pool.told)
                pool.put_back(waiting)
        assert answer_ranks(search) == reference(dims, c_d, setting, scores, objective, 0)

    @given(DIMS, BUDGETS, SETTINGS, SCORES)
    def test_a_finished_search_stays_finished(
        self, dims: Dims, c_d: float, setting: BeamSetting, scores: MadeUpScores
    ) -> None:
        made = problem(dims, c_d)
        search = BeamSearch(made, setting)
        Pool(scores).run(search)
        again = BeamSearch(made, setting, json.loads(json.dumps(search.state())))
        assert (again.done, again.level, again.best, again.ask()) == (True, search.level, search.best, [])
