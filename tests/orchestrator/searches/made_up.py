"""Made-up searches: random spaces of matrices, scores by a hash of the ranks, and a pool that keeps no order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from orchestrator.searches.beam_search import BeamSetting
from orchestrator.searches.contract import Problem, Search
from search_spaces.budgets import Budget
from search_spaces.candidates import Candidate, Score
from search_spaces.costs import rank_space
from search_spaces.layers import Call, Layer, Stage
from search_spaces.rank_space import RankVector
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.survey import Survey

Dims = list[tuple[int, int]]
ScoreOf = Callable[[RankVector], Score]

FAILURES = ("nan", "error", "lost", "timeout")


def problem(dims: Dims, c_d: float, objective: str = "accuracy", seed: int = 0) -> Problem:
    """Linear layers with m x n weights and the budget C(r) = c_d, whether or not it can be met."""
    layers = tuple(
        Layer(f"layer{number}", Stage(n, m, linear=True), False, (Call(1, 1),)) for number, (m, n) in enumerate(dims)
    )
    space = rank_space(Survey(layers, ()), (ChannelSVD(),) * len(layers))
    return Problem(space, Budget((("parameters", c_d),)), objective, seed)


@dataclass(frozen=True)
class MadeUpScores:
    """Scores drawn by a hash of the ranks: few distinct values, so that there are ties; some candidates fail.

    Attributes:
        distinct: number of different accuracies.
        failing: share of the candidates that fail, the dense one included.
    """

    seed: int
    distinct: int = 5
    failing: float = 0.0

    def __call__(self, ranks: RankVector) -> Score:
        """The score of one candidate."""
        drawn = random.Random(hashlib.sha256(f"{self.seed}:{ranks}".encode()).digest())
        if drawn.random() < self.failing:
            return Score(ranks, status=drawn.choice(FAILURES), reason="made up")  # type: ignore[arg-type]
        values = {name: drawn.randrange(self.distinct) / self.distinct for name in ("accuracy", "loss", "kl")}
        return Score(ranks, values, worker=f"evaluator-{drawn.randrange(3)}")

    def values(self, ranks: RankVector) -> dict[str, float] | None:
        """The same for the reference."""
        score = self(ranks)
        return dict(score.values) if score.ok else None


@dataclass
class Pool:
    """Scores what a search asks for, in an order of its own, and tells it in pieces of its own.

    Attributes:
        order: of arrival; None scores at once and in order.
        asked: every candidate, in the order of asking.
        told: every score, in the order of telling.
    """

    score: ScoreOf
    order: random.Random | None = None
    asked: list[Candidate] = field(default_factory=list)
    told: list[Score] = field(default_factory=list)
    _waiting: list[Candidate] = field(default_factory=list)

    def put_back(self, candidates: Iterable[Candidate]) -> None:
        """Takes candidates that were asked for elsewhere, but those that were told."""
        told = set(ranks_of(self.told))
        self._waiting += [candidate for candidate in candidates if candidate.ranks not in told]

    def step(self, search: Search) -> None:
        """Asks, then tells some of what waits."""
        fresh = search.ask()
        self.asked += fresh
        self._waiting += fresh
        if search.done:
            return
        assert self._waiting, "the search is not done, waits for nothing and asks for nothing"
        if self.order is None:
            ready, self._waiting = self._waiting, []
        else:
            self.order.shuffle(self._waiting)
            count = self.order.randint(1, len(self._waiting))
            ready, self._waiting = self._waiting[:count], self._waiting[count:]
        scores = [self.score(candidate.ranks) for candidate in ready]
        self.told += scores
        search.tell(scores)

    def run(self, search: Search, most: int = 20_000) -> None:
        """Runs a search to its end.

        Raises:
            AssertionError: it did not end after `most` tells.
        """
        for _ in range(most):
            if search.done:
                return
            self.step(search)
        raise AssertionError(f"no end after {most} tells")


def ranks_of(candidates: Iterable[Candidate | Score]) -> list[RankVector]:
    """Their rank vectors."""
    return [one.ranks for one in candidates]


DIMS = st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=5)
"""Shapes of up to five matrices. Some are so thin that no rank shrinks them."""

BUDGETS = st.floats(0.01, 0.99)

SETTINGS = st.builds(
    BeamSetting,
    step=st.integers(1, 15),
    beam_size=st.integers(1, 6),
    tolerance=st.sampled_from([0.001, 0.01, 0.05, 0.3]),
    gamma=st.sampled_from([0.1, 0.5, 0.9, 0.999]),
    start=st.sampled_from(["full", "break_even"]),
    tie_break=st.sampled_from(["rank", "loss", "compression"]),
)

SCORES = st.builds(
    MadeUpScores,
    seed=st.integers(0, 2**16),
    distinct=st.sampled_from([1, 3, 50]),
    failing=st.sampled_from([0.0, 0.0, 0.2, 0.8]),
)

OBJECTIVES = st.sampled_from(["accuracy", "cross_entropy", "kl"])
