"""The loop closed by measurements: a search's best few are timed as whole networks until the best measured one fits.

What a search goes by is a prediction: layers' times, summed and calibrated. So when a search is done, its best few
candidates are measured on every limited device, the models are refitted, the limits translated, and the search starts
again, from its remembered scores: no rank vector is scored twice. A round in which the search's answer is measured to
be within the budget is the last one, unless the limits turned out clearly looser than thought and none was missed yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.searches.contract import Answer, Problem, Search
from orchestrator.searches.latency_model import LatencyModel
from orchestrator.searches.objective import objective_value
from search_spaces.budgets import Budget
from search_spaces.candidates import Candidate, Score
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.latency import Timing
from search_spaces.rank_space import RankVector

__all__ = ["ClosedLoop", "LoopSetting", "TimeNetworks", "bound_problem"]

TimeNetworks = Callable[[str, Sequence[RankVector]], Sequence[Timing | None]]
"""Measures whole networks on a device, by its name; None for one that could not be measured."""

_FLOAT_NOISE = 1e-12


@dataclass(frozen=True)
class LoopSetting:
    """How long the loop goes on.

    Attributes:
        rounds: searches at most, the first one included.
        proposals: networks measured after each.
        worth: a limit that turns out looser than thought is searched again if C(r) may fall by at least this share of
            the latency.
    """

    rounds: int = 5
    proposals: int = 3
    worth: float = 0.02


def bound_problem(problem: Problem, static: Budget, models: Sequence[LatencyModel]) -> Problem:
    """The problem with the models' calibrated costs and their aims as limits, beside the static ones.

    Args:
        static: limits on costs that are not measured; may have none.
    """
    costs = {**problem.space.costs, **{model.cost.name: model.calibrated for model in models}}
    space = replace(problem.space, costs=costs)
    targets = (*((model.cost.name, model.target(space)) for model in models), *static.targets)
    return replace(problem, space=space, budget=Budget(targets, exact=True))


class ClosedLoop:
    """Ask/tell around a search method; whoever runs it sees one search.

    Its state is what was scored and measured, and both are recorded elsewhere: a resumed run goes through the same
    rounds from memory.

    Args:
        problem: its space offers what was measured.
        static: limits on costs that are not measured.
        models: one per limited device, calibrated.
        start: makes the inner search for a problem.
        time_networks: see there.
        setting: see there.
    """

    def __init__(
        self,
        problem: Problem,
        static: Budget,
        models: Sequence[LatencyModel],
        start: Callable[[Problem], Search],
        time_networks: TimeNetworks,
        setting: LoopSetting | None = None,
    ) -> None:
        self._static, self._start, self._time = static, start, time_networks
        self._setting = setting or LoopSetting()
        self.models = tuple(models)
        self.problem = bound_problem(problem, static, models)
        self._inner = start(self.problem)
        self._round, self._levels, self._skipped = 1, 0, 0
        self._memory: dict[RankVector, Score] = {}
        # By this process: memory may hold what only later rounds of a former one asked for.
        self._asked: set[RankVector] = set()
        self._asked_now: dict[RankVector, None] = {}
        self._waiting: set[RankVector] = set()
        self._tried: set[RankVector] = set()
        self._missed_before = False
        self._last_resort: list[RankVector] | None = None
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the answer was measured and stands."""
        return self._done

    @property
    def level(self) -> int:
        """Levels of all rounds."""
        return self._levels + self._inner.level

    @property
    def skipped(self) -> int:
        """Candidates that the searches of all rounds left unscored."""
        return self._skipped + self._inner.skipped

    @property
    def best(self) -> Answer | None:
        """The best that was measured within the budget; before that, and where there is none, what came closest."""
        measured = [ranks for ranks in self._measured() if self._value(ranks) > -math.inf]
        fitting = [ranks for ranks in measured if self._within(ranks)]
        if fitting:
            return self._answer(max(fitting, key=self._value))
        if self._done and measured:
            return self._answer(min(measured, key=self._missed))
        predicted = self._inner.best
        return None if predicted is None else replace(predicted, in_window=False)

    def ask(self) -> list[Candidate]:
        """What the search wants scored and has no score yet; measures networks whenever a search is done."""
        found: list[Candidate] = []
        while not self._done:
            if asked := self._wanted():
                self._asked.update(one.ranks for one in asked)
                self._asked_now.update(dict.fromkeys(one.ranks for one in asked))
                fresh = [one for one in asked if one.ranks not in self._memory and one.ranks not in self._waiting]
                self._waiting |= {one.ranks for one in fresh}
                found += fresh
                self._pass_on([self._memory[one.ranks] for one in asked if one.ranks in self._memory])
            elif self._waiting or not (self._inner.done or self._last_resort is not None):
                break
            else:
                self._finish_round()
        return found

    def bound(self, ranks: RankVector) -> float | None:
        """That of the search; None for what may be proposed, so that the best few do not hang on who came first."""
        return None if self._last_resort is not None or self._fits(ranks) else self._inner.bound(ranks)

    def tell(self, scores: Sequence[Score]) -> None:
        """Takes scores in any order; those nobody waits for are remembered."""
        self._memory.update({score.ranks: score for score in scores if score.status != "stopped"})
        awaited = [score for score in scores if score.ranks in self._waiting]
        self._waiting -= {score.ranks for score in awaited}
        self._pass_on(awaited)

    def state(self) -> dict[str, Any]:
        """Nothing: scores and measurements are recorded, and the rounds are gone through again from them."""
        return {}

    def record(self, answer: RankVector) -> dict[str, Any]:
        """`latency` of `result.json`."""
        return {model.device: {**model.record(answer), "rounds": self._round} for model in self.models}

    def _wanted(self) -> list[Candidate]:
        """What the search asks for now, or what is left to score when no search helped."""
        if self._last_resort is None:
            return [] if self._inner.done else self._inner.ask()
        wanted = [ranks for ranks in self._last_resort if ranks not in self._asked]
        return [Candidate(ranks, self.problem.space.dense, None, self.level, "measured") for ranks in wanted]

    def _pass_on(self, scores: Sequence[Score]) -> None:
        """Tells the search what it waits for."""
        if self._last_resort is not None or not scores:
            return
        try:
            self._inner.tell(scores)
        except InfeasibleBudgetError:  # by a method's own rule, under an aim that was moved
            if self._round == 1:
                raise
            self._give_up()

    def _finish_round(self) -> None:
        """Measures the proposals of the search that is done; then the loop ends, or another search begins."""
        if self._last_resort is not None:
            self._done = True
            return
        before, proposals = self.models, self._proposals()
        self._tried.update(proposals)
        self.models = tuple(self._measure(model, proposals) for model in before)
        answer = self._inner.best
        if answer is not None and self._within(answer.ranks):
            self._done = not self._worth_another(before)
        elif answer is not None:
            self._missed_before = True
            self.models = tuple(model.tightened(answer.ranks) for model in self.models)
        if self._done:
            return
        if self._round == self._setting.rounds or not proposals:
            self._give_up()
        else:
            self._restart()

    def _proposals(self) -> list[RankVector]:
        """The search's answer and the best others that are predicted to fit, as many as are measured in a round."""
        answer = self._inner.best
        first = [] if answer is None else [answer.ranks]
        predicted = [ranks for ranks in self._asked_now if self._fits(ranks) and self._value(ranks) > -math.inf]
        ranked = sorted(predicted, key=lambda ranks: (-self._value(ranks), str(ranks)))
        fresh = [ranks for ranks in dict.fromkeys([*first, *ranked]) if ranks not in self._tried]
        return fresh[: self._setting.proposals]

    def _measure(self, model: LatencyModel, proposals: Sequence[RankVector]) -> LatencyModel:
        wanted = [ranks for ranks in proposals if ranks not in model.networks]
        timings = self._time(model.device, wanted) if wanted else []
        return model.with_proposals(
            {ranks: timing for ranks, timing in zip(wanted, timings, strict=True) if timing is not None}
        )

    def _worth_another(self, before: Sequence[LatencyModel]) -> bool:
        """Whether every limit turned out so loose that another search would find a clearly larger network.

        Never after a miss: an aim that was lowered for it would rise again, and the same network miss again.
        """
        if self._missed_before or self._round == self._setting.rounds:
            return False
        space = self.problem.space
        gains = [old.target(space) - new.target(space) for old, new in zip(before, self.models, strict=True)]
        return min(gains) > self._setting.worth

    def _restart(self) -> None:
        self._levels += self._inner.level + 1
        self._skipped += self._inner.skipped
        self._round += 1
        self._asked_now = {}
        self.problem = bound_problem(self.problem, self._static, self.models)
        try:
            self._inner = self._start(self.problem)
        except InfeasibleBudgetError:  # of all limits together, or by the method's own rule
            self._give_up()

    def _give_up(self) -> None:
        """No more searches: where nothing that was scored fits, the networks measured to fit are scored at last."""
        fitting = [ranks for ranks in self._measured() if self._within(ranks)]
        if not fitting or any(self._value(ranks) > -math.inf for ranks in fitting):
            self._done = True
        else:
            self._last_resort = fitting

    def _measured(self) -> list[RankVector]:
        """The networks measured on every device."""
        return [ranks for ranks in self.models[0].networks if all(ranks in model.networks for model in self.models)]

    def _within(self, ranks: RankVector) -> bool:
        """Whether a network was measured to be within every limit, and meets the static ones."""
        space = self.problem.space
        static = all(space.compression(cost, ranks) >= target - _FLOAT_NOISE for cost, target in self._static.targets)
        return static and all(model.within(ranks) for model in self.models)

    def _missed(self, ranks: RankVector) -> float:
        """By what factor a measured network is over the limit that it misses most."""
        return max(model.networks[ranks].timing.ms / model.limit_ms for model in self.models)

    def _fits(self, ranks: RankVector) -> bool:
        """Whether a network is predicted to be within every limit."""
        return self.problem.budget.gap(self.problem.space, ranks) >= -_FLOAT_NOISE

    def _value(self, ranks: RankVector) -> float:
        if ranks not in self._asked or ranks not in self._memory:
            return -math.inf
        return objective_value(self.problem.objective, self._memory[ranks])

    def _answer(self, ranks: RankVector) -> Answer:
        inner = self._inner.best
        within = self._within(ranks)
        named = inner is not None and inner.ranks == ranks
        note = {**(inner.note if inner is not None and named else {}), "rounds": self._round}
        search = inner.search if inner is not None and named else "measured"
        return Answer(ranks, self._memory[ranks], within, search, 0.0 if within else self._missed(ranks) - 1.0, note)
