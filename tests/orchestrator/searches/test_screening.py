"""Screening scores promising children, says how many it skipped, and loses nothing where costs are what they were."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.searches.contract import Problem, ScreeningSearch, Search
from orchestrator.searches.mbs import MBS
from orchestrator.searches.screening import Prospect, Screen, ScreenSetting
from search_spaces.budgets import Budget
from search_spaces.candidates import Candidate, Precision, Score
from search_spaces.rank_space import LayerRanks, Rank, RankSpace, RankVector


class Weights:
    """Parameters of layers of given matrix shapes."""

    name, elsewhere = "parameters", 0.0

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        self.shapes = shapes

    def of(self, layer: int, rank: Rank | None) -> int:
        m, n = self.shapes[layer]
        return m * n if rank is None else rank * (m + n)


def problem(shapes: list[tuple[int, int]], compression: float = 0.5, seed: int = 0) -> Problem:
    layers = tuple(LayerRanks(f"l{i}", min(m, n), (m * n - 1) // (m + n)) for i, (m, n) in enumerate(shapes))
    space = RankSpace(layers, {"parameters": Weights(shapes)})
    settings = MBS.settings(method="mbs", budget={"parameters": compression})
    return Problem(space, Budget.of(settings.limits(batch_size=1), space), "cross_entropy", seed)


def start(given: Problem, state: dict[str, Any] | None = None, **screening: Any) -> Search:
    settings = MBS.settings(
        method="mbs",
        budget={"parameters": 0.5},
        objective="cross_entropy",
        settings=[{"step": 2, "beam_size": 2}],
        tolerance=0.02,
        screening=screening,
    )
    return MBS.start(settings, given, state)


def additive_loss(shapes: list[tuple[int, int]], seed: int) -> Any:
    """A loss to which every layer adds its share, growing as its rank falls: what screening takes for granted."""
    draw = random.Random(seed)
    weights = [draw.uniform(0.1, 1) for _ in shapes]

    def score(candidate: Candidate) -> Score:
        loss = sum(
            weight * (1 - (min(shape) if rank is None else rank) / min(shape)) ** 2
            for weight, shape, rank in zip(weights, shapes, candidate.ranks, strict=True)
        )
        return Score(candidate.ranks, {"accuracy": 1 - loss, "loss": loss, "kl": loss})

    return score


def follow(search: Search, score: Any, told: list[RankVector] | None = None) -> Search:
    while not search.done:
        asked = search.ask()
        if told is not None:
            told += [candidate.ranks for candidate in asked]
        search.tell([score(candidate) for candidate in asked])
    return search


SHAPES = [(12, 20), (16, 30), (10, 18), (14, 14), (20, 40), (8, 30), (16, 16), (12, 12)]


@given(st.integers(0, 50))
def test_skips_most_and_finds_as_good_an_answer_where_losses_add_up(seed: int) -> None:
    given, score = problem(SHAPES), additive_loss(SHAPES, seed)
    scored: list[RankVector] = []
    screened = follow(start(given, keep=2.0, refresh=1), score, scored)
    settings = MBS.settings(
        method="mbs", budget={"parameters": 0.5}, objective="cross_entropy",
        settings=[{"step": 2, "beam_size": 2}], tolerance=0.02,
    )  # fmt: skip
    everything: list[RankVector] = []
    exact = follow(MBS.start(settings, given, None), score, everything)
    assert screened.best is not None
    assert exact.best is not None
    assert screened.best.in_window
    assert screened.best.score.values["loss"] <= exact.best.score.values["loss"] * 1.2
    assert len(scored) < len(everything)
    assert screened.skipped > 0 == exact.skipped


def test_keeping_everything_is_the_exact_search() -> None:
    given, score = problem(SHAPES), additive_loss(SHAPES, 1)
    settings = MBS.settings(
        method="mbs", budget={"parameters": 0.5}, objective="cross_entropy",
        settings=[{"step": 2, "beam_size": 2}], tolerance=0.02,
    )  # fmt: skip
    exact = follow(MBS.start(settings, given, None), score)
    screened = follow(start(given, keep=1000.0, refresh=0), score)
    assert screened.best == exact.best
    assert screened.skipped == 0


@given(st.integers(0, 30), st.integers(1, 40))
def test_goes_on_from_any_state_with_the_same_answer_and_count(seed: int, stop_after: int) -> None:
    given, score = problem(SHAPES), additive_loss(SHAPES, seed)
    whole = follow(start(given, keep=1.5, refresh=2), score)
    broken = start(given, keep=1.5, refresh=2)
    for _ in range(stop_after):
        if broken.done:
            break
        broken.tell([score(candidate) for candidate in broken.ask()])
    resumed = follow(start(given, json.loads(json.dumps(broken.state())), keep=1.5, refresh=2), score)
    assert resumed.best == whole.best
    assert resumed.skipped == whole.skipped


class TestInBfloat16:
    """Levels are scored roughly, what may be the answer again: by losses that differ, so that a mixture shows."""

    SETTING: ClassVar[dict[str, Any]] = {"keep": 2.0, "refresh": 1, "precision": "bfloat16"}

    def score(self, seed: int, asked: list[Candidate] | None = None) -> Callable[[Candidate], Score]:
        exact = additive_loss(SHAPES, seed)

        def score(candidate: Candidate) -> Score:
            if asked is not None:
                asked.append(candidate)
            loss = exact(candidate).values["loss"]
            if candidate.precision == "bfloat16":
                loss += 0.01 * random.Random(str(candidate.ranks)).uniform(-1, 1)
            values = {"accuracy": 1 - loss, "loss": loss, "kl": loss}
            return Score(candidate.ranks, values, precision=candidate.precision)

        return score

    @given(st.integers(0, 30))
    def test_the_answer_is_the_best_of_those_scored_again(self, seed: int) -> None:
        asked: list[Candidate] = []
        given, score = problem(SHAPES, seed=seed), self.score(seed, asked)
        search = follow(start(given, **self.SETTING), score)
        again = [candidate for candidate in asked if candidate.precision == "float32"]
        assert asked[-len(again) :] == again
        assert 1 <= len(again) <= 3  # the beam's two and the best one that was ever in the window
        assert {one.ranks for one in again} < {one.ranks for one in asked[: -len(again)]}
        assert search.best is not None
        assert search.best.in_window
        assert search.best.score == min(map(score, again), key=lambda one: one.values["loss"])

    @given(st.integers(0, 30), st.integers(1, 40))
    def test_goes_on_from_any_state_and_takes_no_score_for_another(self, seed: int, stop_after: int) -> None:
        given, score = problem(SHAPES), self.score(seed)
        whole = follow(start(given, **self.SETTING), score)
        broken = start(given, **self.SETTING)
        for _ in range(stop_after):
            if broken.done:
                break
            broken.tell([score(candidate) for candidate in broken.ask()])
        resumed = start(given, json.loads(json.dumps(broken.state())), **self.SETTING)
        while not resumed.done:
            asked = resumed.ask()
            others: dict[Precision, Precision] = {"bfloat16": "float32", "float32": "bfloat16"}
            resumed.tell([score(replace(one, precision=others[one.precision])) for one in asked])
            resumed.tell([score(candidate) for candidate in asked])
        assert resumed.best == whole.best
        assert resumed.skipped == whole.skipped

    @given(st.integers(0, 30), st.integers(0, 40))
    def test_in_float32_where_the_other_is_not_to_be_had(self, seed: int, levels_before: int) -> None:
        asked: list[Candidate] = []
        given, score = problem(SHAPES), self.score(seed, asked)
        search = start(given, **self.SETTING)
        for _ in range(levels_before):
            if search.done:
                break
            search.tell([score(candidate) for candidate in search.ask()])
        state = json.loads(json.dumps(search.state()))
        cut_short = start(given, state, **self.SETTING).ask()[1:]
        search = start(given, state, **self.SETTING)
        search.tell([score(candidate) for candidate in cut_short])  # as they were recorded
        assert isinstance(search, ScreeningSearch)
        search.screen_in("float32")
        asked.clear()
        follow(search, score)
        assert {one.precision for one in asked} <= {"float32"}
        assert search.best is not None
        assert search.best.score.precision == "float32"
        if levels_before == 0:
            assert search.best == follow(start(given, keep=2.0, refresh=1), score).best

    def test_nothing_is_the_answer_that_cannot_be_scored_again(self) -> None:
        score = self.score(0)

        def failing(candidate: Candidate) -> Score:
            failed = Score(candidate.ranks, status="nan")
            return failed if candidate.precision == "float32" else score(candidate)

        assert follow(start(problem(SHAPES), **self.SETTING), failing).best is None

    @pytest.mark.parametrize("budget", [{"latency_ms": {"cpu": 4.0}}, {"throughput@cpu": "500/s"}])
    def test_what_is_measured_is_searched_in_float32(self, budget: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="screening in bfloat16 and a budget of latency@cpu do not go together"):
            MBS.settings(method="mbs", budget=budget, screening=self.SETTING)


class TestScreen:
    def prospects(self, *losses: float) -> list[tuple[Prospect, int]]:
        return [(Prospect(layer, loss, bytes([layer])), layer) for layer, loss in enumerate(losses)]

    def learned(self, *changes: float, setting: ScreenSetting) -> Screen:
        screen = Screen(setting)
        for layer, change in enumerate(changes):
            screen.learn(Prospect(layer, 1.0, b""), Score((), {"loss": 1.0 + change}), 1)
        return screen

    def test_what_was_never_measured_is_scored(self) -> None:
        assert Screen(ScreenSetting(1.0, 0)).choose(self.prospects(1, 2, 3), 1) == [0, 1, 2]

    def test_the_most_promising_are_scored(self) -> None:
        screen = self.learned(0.3, 0.1, 0.2, 0.4, setting=ScreenSetting(2.0, 0))
        assert screen.choose(self.prospects(1, 1, 1, 1), 1) == [1, 2]

    def test_the_stalest_are_measured_again(self) -> None:
        screen = self.learned(0.3, 0.1, 0.2, 0.4, setting=ScreenSetting(1.0, 1))
        for layer in (0, 1, 2):
            screen.learn(Prospect(layer, 1.0, b""), Score((), {"loss": 1.1 + layer}), 2)
        assert screen.choose(self.prospects(1, 1, 1, 1), 1) == [0, 3]

    @pytest.mark.parametrize("score", [Score((), status="nan"), Score((), {"loss": math.nan})])
    def test_a_step_that_failed_comes_last(self, score: Score) -> None:
        screen = self.learned(0.3, 0.1, setting=ScreenSetting(1.0, 0))
        screen.learn(Prospect(1, 1.0, b""), score, 2)
        assert screen.choose(self.prospects(1, 1), 1) == [0]
