"""Made-up problems whose scores are sums over layers, with and without an interaction, and searches that are killed."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.contract import Problem, Search
from search_spaces.budgets import Budget
from search_spaces.candidates import Score
from search_spaces.rank_space import LayerRanks, Rank, RankSpace, RankVector
from tests.orchestrator.searches.made_up import Pool, ScoreOf, ranks_of


@dataclass(frozen=True)
class TableCost:
    """A cost by hand: a table for each layer."""

    name: str
    tables: Sequence[Mapping[Rank | None, float]]
    elsewhere: float = 0.0

    def of(self, layer: int, rank: Rank | None) -> float:
        return self.tables[layer][rank]


@dataclass(frozen=True)
class Losses:
    """Scores: a loss for each layer and rank, summed up.

    Attributes:
        layers: by layer, the loss of each rank; 0 for the dense layer.
        interaction: how much a hash of the whole rank vector adds at most.
        failing: share of the rank vectors that give no number.
        digits: that accuracies are rounded to: few make ties.
    """

    layers: Sequence[Mapping[Rank | None, float]]
    interaction: float = 0.0
    failing: float = 0.0
    digits: int = 12

    def __call__(self, ranks: RankVector) -> Score:
        drawn = random.Random(hashlib.sha256(str(ranks).encode()).digest())
        if drawn.random() < self.failing:
            return Score(ranks, status="nan", reason="made up")
        loss = sum(of[rank] for of, rank in zip(self.layers, ranks, strict=True))
        loss = round(loss + self.interaction * drawn.random(), self.digits)
        return Score(ranks, {"accuracy": -loss, "loss": loss, "kl": loss})


def ladders(layers: Sequence[int]) -> list[LayerRanks]:
    """Layers with so many rungs; every other one is sliced, so that its ranks are pairs."""
    return [
        LayerRanks(f"layer{index}", rungs, rungs, tuple((2, rung + 1) for rung in range(rungs)))
        if index % 2
        else LayerRanks(f"layer{index}", rungs + 1, rungs)
        for index, rungs in enumerate(layers)
    ]


def options(layer: LayerRanks) -> tuple[Rank | None, ...]:
    return (*layer.offered, None)


@st.composite
def cases(draw: st.DrawFn, layers: int = 3, costs: int | None = None) -> tuple[Problem, Losses]:
    """A problem of up to so many layers that can be solved, and its losses; costs rise along every ladder."""
    ranks = ladders([draw(st.integers(0, 4)) for _ in range(draw(st.integers(1, layers)))])
    names = ["parameters", "macs"][: costs or draw(st.integers(1, 2))]
    tables = {
        name: [
            dict(zip(options(one), itertools.accumulate(_steps(draw, len(one.offered) + 1)), strict=True))
            for one in ranks
        ]
        for name in names
    }
    space = RankSpace(tuple(ranks), {name: TableCost(name, table) for name, table in tables.items()})
    limits = [(name, draw(st.floats(0, 1)) * space.compression(name, space.smallest)) for name in names]
    losses = [dict(zip(options(one), [*draw(_losses(len(one.offered))), 0.0], strict=True)) for one in ranks]
    objective, seed = draw(st.sampled_from(["kl", "accuracy"])), draw(st.integers(0, 3))
    return Problem(space, Budget(tuple(limits)), objective, seed), Losses(losses)


def _steps(draw: st.DrawFn, count: int) -> list[float]:
    return [float(draw(st.integers(1, 9))) for _ in range(count)]


def _losses(count: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.integers(-1, 20).map(lambda tenth: tenth / 10), min_size=count, max_size=count)


def fits(problem: Problem, ranks: RankVector) -> bool:
    return problem.budget.gap(problem.space, ranks) >= -1e-12


def every_rank_vector(problem: Problem) -> Iterator[RankVector]:
    """All within the budget."""
    found = itertools.product(*map(options, problem.space.layers))
    return (ranks for ranks in found if fits(problem, ranks))


def given_allocations(problem: Problem, count: int) -> dict[str, Allocation]:
    """The first so many rank vectors within the budget, by name; some twice."""
    vectors = list(itertools.islice(every_rank_vector(problem), count))
    return {
        f"a{number}": Allocation(ranks, {"number": number}) for number, ranks in enumerate([*vectors, *vectors[:1]])
    }


Start = Callable[[Mapping[str, Any] | None], Search]


def assert_stopping_changes_nothing(start: Start, scores: ScoreOf, draw: random.Random, points: int = 25) -> None:
    """Killed after any number of scores, with any state saved until then: same candidates, same answer, none twice."""
    whole = Pool(scores)
    search = start(None)
    whole.run(search)
    wanted = set(ranks_of(whole.asked))
    assert len(wanted) == len(whole.asked), "something was asked for twice"
    stops = range(len(wanted) + 1)
    for stop in stops if len(stops) <= points else sorted(draw.sample(stops, points)):
        first = start(None)
        states: list[str | None] = [None, json.dumps(first.state())]
        told = _tell_one_by_one(first, scores, stop, draw, states)
        saved = draw.choice([states[-1], draw.choice(states)])
        again = start(None if saved is None else json.loads(saved))
        draw.shuffle(told)
        again.tell(told)
        pool = Pool(scores, draw)
        pool.run(again)
        assert set(ranks_of(pool.asked)).isdisjoint(ranks_of(told)), "a recorded candidate was asked for again"
        assert {*ranks_of(pool.asked), *ranks_of(told)} == wanted
        assert again.best == search.best


def _tell_one_by_one(
    search: Search, scores: ScoreOf, stop: int, draw: random.Random, states: list[str | None]
) -> list[Score]:
    """Tells so many scores; notes the state after each."""
    told: list[Score] = []
    waiting: list[RankVector] = []
    while len(told) < stop and not search.done:
        waiting += ranks_of(search.ask())
        if search.done:
            break
        told.append(scores(waiting.pop(draw.randrange(len(waiting)))))
        search.tell(told[-1:])
        states.append(json.dumps(search.state()))
    return told
