"""Modified beam search (mBS) for one setting (s, K): BSR's algorithm 1 (Eo, thesis 2023, section 3; arXiv 2111.15179).

Every level lowers one layer's rank by s in each of the K best rank vectors, drops what is compressed beyond C_d and
keeps the K best of the rest, until the best one lies in the window [C_d - tau, C_d]. Where no child survives, s
shrinks to round(gamma s) and the search goes on from the last beam. Where levels are screened in another precision
than float32, the best few in the window are scored again, in float32, at the end. The printed loop test is inverted and
compares r instead of C(r); this follows the text. A rank never falls below 1: a step that would goes to 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.searches.beam_member import Member, Steps, member_from_json, member_to_json
from orchestrator.searches.contract import Answer, Problem
from orchestrator.searches.early_stop import Promise, kth_best
from orchestrator.searches.objective import objective_value
from orchestrator.searches.screening import Prospect, Screen, ScreenSetting
from search_spaces.candidates import Candidate, Key, Precision, Score
from search_spaces.rank_space import RankVector

__all__ = ["BeamSearch", "BeamSetting", "Start", "TieBreak"]

Start = Literal["full", "break_even"]
TieBreak = Literal["rank", "loss", "compression"]

_FLOAT_NOISE = 1e-12  # compressions are quotients of whole numbers; this forgives only their rounding


@dataclass(frozen=True)
class BeamSetting:
    """One setting of mBS.

    Attributes:
        step: s, ranks a child gives up in one layer.
        beam_size: K.
        tolerance: tau, width of the window [C_d - tau, C_d].
        gamma: the step becomes round(gamma * step) where no child survives.
        start: `full` begins at full rank (the thesis), `break_even` at the smallest rank of every layer that still
            does not shrink it, which skips the levels that change nothing.
        tie_break: what decides between equal objectives before the seed does: the lower total rank (the thesis),
            the lower loss, or the higher compression.
        screening: score only promising children; None scores all.
    """

    step: int
    beam_size: int
    tolerance: float
    gamma: float = 0.5
    start: Start = "break_even"
    tie_break: TieBreak = "rank"
    screening: ScreenSetting | None = None

    @property
    def name(self) -> str:
        """`s10-k5` for (10, 5)."""
        return f"s{self.step}-k{self.beam_size}"


@dataclass(frozen=True)
class _Child:
    """A rank vector of the level at hand that waits for its score."""

    steps: Steps
    candidate: Candidate
    parent_loss: float = math.nan
    parent_value: float = math.nan


class BeamSearch:
    """mBS as an ask/tell search.

    Args:
        problem: what is searched for.
        setting: (s, K) and the rest.
        state: a former `state()` to go on from.
    """

    def __init__(self, problem: Problem, setting: BeamSetting, state: Mapping[str, Any] | None = None) -> None:
        self._problem = problem
        self._setting = setting
        self._step = setting.step
        self._level = 0
        self._done = False
        self._beam: list[Member] = []
        self._seen_in_window: Member | None = None
        self._children: list[_Child] = []
        self._wanted: frozenset[Key] = frozenset()
        self._scores: dict[Key, Score] = {}
        self._asked: set[Key] = set()
        self._bar: tuple[float, float] | None = None
        self._promise = Promise()
        self._screen = None if setting.screening is None else Screen(setting.screening)
        self._precision: Precision = "float32" if setting.screening is None else setting.screening.precision
        self._skipped, self._left_unscored = 0, 0
        self._in_final = False
        self._winner: Member | None = None
        if state is None:
            self._open([self._root()])
        else:
            self._restore(state)

    @property
    def done(self) -> bool:
        """Whether the best of the beam lies in the window, or no step can lead there."""
        return self._done

    @property
    def level(self) -> int:
        """Levels finished; level 0 is the start itself."""
        return self._level

    @property
    def skipped(self) -> int:
        """Children that screening left unscored."""
        return self._skipped

    @property
    def best(self) -> Answer | None:
        """The best of the beam if it lies in the window; else the best ever seen there; else what came closest.

        After a final its winner; None where nothing could be scored in it.
        """
        if not self._beam or (self._done and self._in_final and self._winner is None):
            return None
        member = self._winner or self._beam[0]
        if not self._in_window(member):
            member = self._seen_in_window or max(self._beam, key=lambda one: self._gap(one.score.ranks))
        inside = self._in_window(member)
        missing = 0.0 if inside else -self._setting.tolerance - self._gap(member.score.ranks)
        return Answer(member.score.ranks, member.score, inside, self._setting.name, missing)

    def ask(self) -> list[Candidate]:
        """The level's candidates not asked for yet, the likeliest of the beam first; equal ones are asked for once."""
        fresh = []
        for child in self._by_promise():
            key = child.candidate.key
            if key not in self._asked:
                self._asked.add(key)
                fresh.append(child.candidate)
        return fresh

    def bound(self, ranks: RankVector) -> float | None:
        """The K-th best of the level so far; in the window the best ever seen there, if that is lower.

        Strictly below both, a child is neither in the next beam nor remembered for having been in the window. None with
        screening: it learns from the losses of all that it scores, and who is stopped depends on the order of arrival.
        """
        if self._screen is not None:
            return None
        if self._bar is None:
            self._bar = self._find_bar()
        in_beam, in_window = self._bar
        return min(in_beam, in_window) if self._lies_in_window(ranks) else in_beam

    def tell(self, scores: Sequence[Score]) -> None:
        """Takes scores in any order; when the level is complete the search moves on."""
        self._scores.update({score.key: score for score in scores if score.key in self._wanted})
        self._bar = None
        if not self._done and len(self._scores) == len(self._wanted):
            self._finish_level()

    def screen_in(self, precision: Precision) -> None:
        """Scores the level at hand, and those to come, in another precision."""
        if precision != self._precision:
            self._precision = precision
            if not self._done:
                self._go_on()

    def state(self) -> dict[str, Any]:
        """The beam, the step and the level; the scores of an unfinished level are not part of it."""
        seen = self._seen_in_window
        return {
            "step": self._step,
            "level": self._level,
            "done": self._done,
            "beam": [member_to_json(member) for member in self._beam],
            "seen_in_window": None if seen is None else member_to_json(seen),
            "screen": None if self._screen is None else self._screen.state(),
            "skipped": self._skipped,
            "in_final": self._in_final,
            "winner": None if self._winner is None else member_to_json(self._winner),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._step, self._level, self._done = state["step"], state["level"], state["done"]
        self._beam = [member_from_json(member) for member in state["beam"]]
        self._skipped = state["skipped"]
        if self._setting.screening is not None:
            self._screen = Screen(self._setting.screening, state["screen"])
        seen = state["seen_in_window"]
        self._seen_in_window = None if seen is None else member_from_json(seen)
        winner = state.get("winner")  # runs of before had no final
        self._in_final, self._winner = state.get("in_final", False), winner and member_from_json(winner)
        if not self._done:
            self._go_on()

    def _go_on(self) -> None:
        """Opens what comes after the beam at hand."""
        if self._in_final:
            self._open(self._finalists())
        elif self._beam:
            self._open_level()
        else:
            self._open([self._root()])

    def _root(self) -> _Child:
        layers = self._problem.space.layers
        if self._setting.start == "full":
            steps = tuple(layer.full for layer in layers)
        else:
            steps = tuple(min(layer.full, layer.useful + 1) for layer in layers)
        ranks = self._problem.space.at(steps)
        return _Child(steps, Candidate(ranks, search=self._setting.name, precision=self._precision))

    def _finish_level(self) -> None:
        """Keeps the K best of the level that could be scored, then opens the next level or ends."""
        members = [Member(child.steps, self._scores[child.candidate.key]) for child in self._children]
        members = sorted((member for member in members if self._can_be_ranked(member)), key=self._order)
        if self._in_final:
            self._winner = members[0] if members else None
            self._level += 1
            self._end()
            return
        self._learn()
        self._skipped += self._left_unscored
        self._level += 1
        if members:
            self._beam = members[: self._setting.beam_size]
            self._remember_window(members)
        elif not self._beam or not self._shrink_step():
            self._end()
            return
        if self._in_window(self._beam[0]):
            self._end()
        else:
            self._open_level()

    def _open_level(self) -> None:
        """The beam's children as the new level; the step shrinks until there are some, or the search ends."""
        children = self._expand()
        while not children:
            if not self._shrink_step():
                self._end()
                return
            children = self._expand()
        self._open(self._screened(children))

    def _screened(self, children: list[_Child]) -> list[_Child]:
        """The children worth scoring."""
        if self._screen is None:
            return children
        chosen = self._screen.choose([(self._prospect(child), child) for child in children], self._setting.beam_size)
        self._left_unscored = len(children) - len(chosen)
        return chosen

    def _prospect(self, child: _Child) -> Prospect:
        assert child.candidate.changed is not None
        return Prospect(child.candidate.changed, child.parent_loss, self._drawn(child.steps))

    def _by_promise(self) -> list[_Child]:
        """The level's children, those first that are likely to be in the next beam; as they are with screening."""
        if self._screen is not None:
            return self._children
        expected = {
            child.steps: self._promise.expected(child.candidate.changed, child.parent_value) for child in self._children
        }
        return sorted(self._children, key=lambda child: -expected[child.steps])

    def _find_bar(self) -> tuple[float, float]:
        """The K-th best objective of the level so far, and the best one ever seen in the window."""
        found = (
            Member(child.steps, self._scores[child.candidate.key])
            for child in self._children
            if child.candidate.key in self._scores
        )
        scored = [member for member in found if self._can_be_ranked(member)]
        seen = [member for member in scored if self._in_window(member)]
        seen += [] if self._seen_in_window is None else [self._seen_in_window]
        in_window = max((self._value(member.score) for member in seen), default=-math.inf)
        return kth_best((self._value(member.score) for member in scored), self._setting.beam_size), in_window

    def _learn(self) -> None:
        """Tells screening what the level's steps did; without it, they decide who is asked for first."""
        if self._screen is None:
            scores = ((child, self._scores[child.candidate.key]) for child in self._children)
            self._promise.learn(
                (child.candidate.changed, (score.at_most if score.stopped else self._value(score)) - child.parent_value)
                for child, score in scores
                if child.candidate.changed is not None
            )
            return
        for child in self._children:
            if child.candidate.changed is not None:
                self._screen.learn(self._prospect(child), self._scores[child.candidate.key], self._level)

    def _open(self, children: list[_Child]) -> None:
        self._children, self._scores, self._asked = children, {}, set()
        self._wanted = frozenset(child.candidate.key for child in children)

    def _end(self) -> None:
        """Ends, after a final where one is due."""
        finalists = [] if self._in_final else self._finalists()
        self._open(finalists)
        self._in_final = self._in_final or bool(finalists)
        self._done = not finalists

    def _finalists(self) -> list[_Child]:
        """What may be the answer, to be scored in float32; empty where that is how all of it was scored."""
        found = [member for member in self._beam if self._in_window(member)]
        found += [] if self._seen_in_window is None else [self._seen_in_window]
        found = found or sorted(self._beam, key=lambda one: -self._gap(one.score.ranks))[:1]
        if all(member.score.precision == "float32" for member in found):
            return []
        by_steps = {member.steps: member.score.ranks for member in found}
        dense, name = self._problem.space.dense, self._setting.name
        return [_Child(steps, Candidate(ranks, dense, None, self._level, name)) for steps, ranks in by_steps.items()]

    def _shrink_step(self) -> bool:
        """Takes round(gamma s) for s, and always less than before; False once it is 1."""
        self._step, old = min(round(self._setting.gamma * self._step), self._step - 1), self._step
        if self._step < 1:
            self._step = 1
        return self._step < old

    def _expand(self) -> list[_Child]:
        """Every rank vector that lowers one layer of one beam member by the step and is not beyond C_d."""
        space, budget = self._problem.space, self._problem.budget
        children: dict[Steps, _Child] = {}
        for member in self._beam:
            gap_after = budget.gap_after(space, member.score.ranks)
            for index, (rank, layer) in enumerate(zip(member.steps, space.layers, strict=True)):
                lower = layer.below(rank, self._step)
                steps = (*member.steps[:index], lower, *member.steps[index + 1 :])
                if lower == rank or steps in children:
                    continue
                effective = layer.at(lower)
                if gap_after(index, effective) > _FLOAT_NOISE:
                    continue
                parent = member.score.ranks
                ranks = (*parent[:index], effective, *parent[index + 1 :])
                candidate = Candidate(ranks, parent, index, self._level, self._setting.name, self._precision)
                children[steps] = _Child(steps, candidate, member.score.values["loss"], self._value(member.score))
        return list(children.values())

    def _can_be_ranked(self, member: Member) -> bool:
        """Whether it was scored, and with a number: a NaN has no place in any order."""
        return self._value(member.score) > -math.inf

    def _value(self, score: Score) -> float:
        return objective_value(self._problem.objective, score)

    def _order(self, member: Member) -> tuple[float, float, bytes]:
        """Sort key: the objective, then the tie-break, then a hash of seed and ranks, which no arrival order moves."""
        score = member.score
        ties = {
            "rank": lambda: float(sum(member.steps)),
            "loss": lambda: math.inf if math.isnan(score.values["loss"]) else score.values["loss"],
            "compression": lambda: -self._gap(score.ranks),
        }
        tie = ties[self._setting.tie_break]()
        return -self._value(score), tie, self._drawn(member.steps)

    def _drawn(self, steps: Steps) -> bytes:
        """What the seed draws for a rank vector."""
        return hashlib.blake2b(f"{self._problem.seed}:{steps}".encode(), digest_size=8).digest()

    def _gap(self, ranks: RankVector) -> float:
        return self._problem.budget.gap(self._problem.space, ranks)

    def _in_window(self, member: Member) -> bool:
        return self._lies_in_window(member.score.ranks)

    def _lies_in_window(self, ranks: RankVector) -> bool:
        return -self._setting.tolerance - _FLOAT_NOISE <= self._gap(ranks) <= _FLOAT_NOISE

    def _remember_window(self, members: Sequence[Member]) -> None:
        """Remembers the best member ever seen in the window: the answer if the beam itself never ends there."""
        inside = [member for member in members if self._in_window(member)]
        seen = [] if self._seen_in_window is None else [self._seen_in_window]
        if inside:
            self._seen_in_window = min([*seen, inside[0]], key=self._order)
