"""A beam around a given allocation: ranks move down and up, within the budget, while the objective gets better.

From full rank, a beam search takes hundreds of levels to a budget; a good allocation is there at once, and what it
lacks is a few exchanges: one layer gives up rungs of its ladder, another gains some. What a layer's move does to the
objective is measured alone, from the best member (a *probe* level); exchanges, and bundles of them, that promise most
by the sum of their moves are then scored exactly (an *exchange* level), until none improves the beam; then moves are
probed anew. It ends when fresh probes bring no better member.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from orchestrator.searches.allocation.options import Allocation
from orchestrator.searches.contract import Answer, Problem
from orchestrator.searches.early_stop import kth_best
from orchestrator.searches.objective import objective_value
from orchestrator.searches.scored_list import answer_of
from search_spaces.candidates import Candidate, Score
from search_spaces.rank_space import RankVector, rank_vector_from

__all__ = ["AroundSetting", "BeamAround"]

_FLOAT_NOISE = 1e-12
_Rungs = tuple[int, ...]
_Move = tuple[int, int]
"""A layer's index, and by how many rungs it moves; above 0 is up."""


@dataclass(frozen=True)
class AroundSetting:
    """How far and how wide is searched.

    Attributes:
        beam_size: members kept.
        moves: rungs that a layer moves at once.
        exchanges: promising exchanges and bundles scored per level.
        rounds: how often moves are probed at most.
    """

    beam_size: int = 3
    moves: tuple[int, ...] = (1, 2)
    exchanges: int = 24
    rounds: int = 8


@dataclass(frozen=True)
class _Member:
    ranks: RankVector
    score: Score


class BeamAround:
    """Ask/tell.

    Args:
        problem: what is searched for; moves are steps on its space's ladders.
        starts: allocations by name, all scored first; within the budget.
        setting: see there.
        state: a former `state()`.
    """

    skipped = 0

    def __init__(
        self,
        problem: Problem,
        starts: Mapping[str, Allocation],
        setting: AroundSetting,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._problem, self._setting = problem, setting
        self._starts = dict(starts)
        self._rung_of = [{rank: rung for rung, rank in enumerate(one.offered, 1)} for one in problem.space.layers]
        self._phase: Literal["start", "probe", "exchange", "end"] = "start"
        self._level, self._round = 0, 0
        self._beam: list[_Member] = []
        self._effects: dict[_Move, float] = {}
        self._known: dict[RankVector, Score] = {}
        self._wanted: dict[RankVector, Candidate] = {}
        self._asked: set[RankVector] = set()
        self._tried: set[RankVector] = set()
        self._improved = False
        # A state from before the ladders changed (another machine's last digits) is of no use; its scores still are.
        if state is None or not self._on_ladders(state):
            self._open(self._start_candidates())
        else:
            self._restore(state)

    @property
    def done(self) -> bool:
        """Whether fresh probes brought nothing better."""
        return self._phase == "end"

    @property
    def level(self) -> int:
        """Levels finished."""
        return self._level

    @property
    def best(self) -> Answer | None:
        """The best member."""
        if not self._beam:
            return None
        note = {"started_from": sorted(self._starts), "levels": self._level, "rounds": self._round}
        return answer_of(self._problem, self._beam[0].score, "around", note)

    def ask(self) -> list[Candidate]:
        """The level's candidates that were not asked for and have no score."""
        self.tell([])  # a level may have nothing left to ask
        fresh = [one for ranks, one in self._wanted.items() if ranks not in self._asked and ranks not in self._known]
        self._asked.update(one.ranks for one in fresh)
        return fresh

    def bound(self, ranks: RankVector) -> float | None:
        """The K-th best of the beam and of what was scored of the level, which alone can keep it from the beam.

        None for probes, of which the effects of moves are learned.
        """
        if self._phase == "probe" or not self._fits(ranks):
            return None
        scored = [_Member(one, self._known[one]) for one in self._wanted if one in self._known and self._fits(one)]
        values = {member.ranks: self._value(member) for member in (*self._beam, *scored)}
        return kth_best(values.values(), self._setting.beam_size)

    def tell(self, scores: Sequence[Score]) -> None:
        """Takes scores; complete levels are finished, also several at once where all scores are known."""
        self._known.update({score.ranks: score for score in scores})
        while not self.done and all(ranks in self._known for ranks in self._wanted):
            self._finish_level()

    def state(self) -> dict[str, Any]:
        """Beam, phase and effects; a level that is not finished is opened again."""
        return {
            "phase": self._phase,
            "level": self._level,
            "round": self._round,
            "improved": self._improved,
            "beam": [_to_json(member) for member in self._beam],
            "effects": [[*move, effect] for move, effect in self._effects.items()],
            "tried": [list(ranks) for ranks in sorted(self._tried, key=repr)],
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._phase, self._level, self._round = state["phase"], state["level"], state["round"]
        self._improved = state["improved"]
        self._beam = [_from_json(member) for member in state["beam"]]
        self._effects = {(layer, by): effect for layer, by, effect in state["effects"]}
        self._tried = {rank_vector_from(ranks) for ranks in state["tried"]}
        makers = {"start": self._start_candidates, "probe": self._probes, "exchange": self._exchanges}
        self._open(makers[self._phase]() if self._phase in makers else [])

    def _on_ladders(self, state: Mapping[str, Any]) -> bool:
        return all(
            rank is None or rank in rung_of
            for member in state["beam"]
            for rank, rung_of in zip(rank_vector_from(member["ranks"]), self._rung_of, strict=True)
        )

    def _open(self, candidates: Sequence[Candidate]) -> None:
        self._wanted = {candidate.ranks: candidate for candidate in candidates}
        self._asked = set()

    def _start_candidates(self) -> list[Candidate]:
        dense = self._problem.space.dense
        return [Candidate(one.ranks, dense, None, 0, f"start {name}") for name, one in self._starts.items()]

    def _finish_level(self) -> None:
        scored = [_Member(ranks, self._known[ranks]) for ranks in self._wanted]
        # Below this level's bound is no score: where the same rank vector is a probe, it is wanted in full.
        self._known = {ranks: score for ranks, score in self._known.items() if not score.stopped}
        self._tried.update(self._wanted)
        self._level += 1
        if self._phase == "probe":
            self._learn(scored)
        better = self._keep_best(scored)
        if self._phase == "start":
            self._next_round()
        elif self._phase == "probe":
            self._improved |= better
            self._phase = "exchange"
            self._open(self._exchanges())
        elif better:
            self._improved = True
            self._open(self._exchanges())
        elif self._improved:
            self._next_round()
        else:
            self._end()

    def _next_round(self) -> None:
        """Probes the moves of the best member anew."""
        self._round += 1
        self._improved = False
        if not self._beam or self._round > self._setting.rounds:
            self._end()
            return
        self._phase = "probe"
        self._open(self._probes())

    def _end(self) -> None:
        self._phase = "end"
        self._open([])

    def _keep_best(self, scored: Sequence[_Member]) -> bool:
        """Merges what is within the budget into the beam; whether there is a new best member."""
        before = self._beam[0].ranks if self._beam else None
        pool = {member.ranks: member for member in (*self._beam, *scored) if self._fits(member.ranks)}
        usable = [member for member in pool.values() if self._value(member) > -math.inf]
        self._beam = sorted(usable, key=self._order)[: self._setting.beam_size]
        return bool(self._beam) and self._beam[0].ranks != before

    def _learn(self, probes: Sequence[_Member]) -> None:
        """What every move did to the objective of the member that it was probed on; nothing of moves that failed."""
        base = self._beam[0]
        rungs = self._rungs(base.ranks)
        for probe in probes:
            changed = [
                (layer, rung - rungs[layer])
                for layer, rung in enumerate(self._rungs(probe.ranks))
                if rung != rungs[layer]
            ]
            effect = self._value(probe) - self._value(base)
            if len(changed) == 1 and math.isfinite(effect):
                self._effects[changed[0]] = effect

    def _probes(self) -> list[Candidate]:
        """Every layer of the best member moved alone, down and up, also where that is over the budget."""
        base = self._beam[0].ranks
        rungs = self._rungs(base)
        self._effects = {}
        moves = [(layer, sign * by) for layer in range(len(base)) for by in self._setting.moves for sign in (-1, 1)]
        found = []
        for layer, by in moves:
            moved = self._moved(rungs, [(layer, by)])
            if moved is not None and moved != base:
                found.append(Candidate(moved, base, layer, self._level, "probe"))
        return found

    def _exchanges(self) -> list[Candidate]:
        """The most promising exchanges and bundles over all members that fit the budget and were not tried before."""
        ranked: list[tuple[tuple[float, bytes, bytes], RankVector, RankVector]] = []
        for member in self._beam:
            rungs, drawn = self._rungs(member.ranks), _drawn(self._problem.seed, member.ranks)
            for gain, moves in islice(self._promising(), 60 * self._setting.exchanges):
                moved = self._moved(rungs, moves)
                if moved is None or moved in self._tried or not self._fits(moved):
                    continue
                order = (-self._value(member) - gain, _drawn(self._problem.seed, moved), drawn)
                ranked.append((order, moved, member.ranks))
        found: dict[RankVector, Candidate] = {}
        for _, moved, parent in sorted(ranked, key=lambda one: one[0]):  # rank vectors have no order: None is in them
            if len(found) == self._setting.exchanges:
                break
            found.setdefault(moved, Candidate(moved, parent, None, self._level, "exchange"))
        return list(found.values())

    def _promising(self) -> Iterator[tuple[float, tuple[_Move, ...]]]:
        """Moves, pairs of moves and bundles of the best disjoint pairs, by the sum of what they did alone."""
        pairs = sorted(
            (
                (first_gain + second_gain, (first, second))
                for first, first_gain in self._effects.items()
                for second, second_gain in self._effects.items()
                if first[1] < 0 < second[1] and first[0] != second[0]
            ),
            reverse=True,
        )
        for move, gain in sorted(self._effects.items(), key=lambda one: -one[1]):
            if gain > 0:
                yield gain, (move,)
        bundle: list[_Move] = []
        total = 0.0
        for gain, pair in pairs:
            if gain <= 0 or len(bundle) >= 16:
                break
            if {layer for layer, _ in bundle}.isdisjoint(layer for layer, _ in pair):
                bundle += pair
                total += gain
                yield total, tuple(bundle)
        yield from pairs

    def _moved(self, rungs: _Rungs, moves: Sequence[_Move]) -> RankVector | None:
        """The rank vector after some moves; None if one leaves its ladder. Above the ladder is dense."""
        moved = list(rungs)
        for layer, by in moves:
            top = self._problem.space.layers[layer].useful + 1
            target = min(top, moved[layer] + by)
            if target < 1 or target == moved[layer]:
                return None
            moved[layer] = target
        return self._problem.space.at(moved)

    def _rungs(self, ranks: RankVector) -> _Rungs:
        layers = self._problem.space.layers
        return tuple(
            layer.useful + 1 if rank is None else rung_of[rank]
            for rank, layer, rung_of in zip(ranks, layers, self._rung_of, strict=True)
        )

    def _fits(self, ranks: RankVector) -> bool:
        return self._problem.budget.gap(self._problem.space, ranks) >= -_FLOAT_NOISE

    def _value(self, member: _Member) -> float:
        return objective_value(self._problem.objective, member.score)

    def _order(self, member: _Member) -> tuple[float, bytes]:
        return -self._value(member), _drawn(self._problem.seed, member.ranks)


def _drawn(seed: int, ranks: RankVector) -> bytes:
    """What the seed draws for a rank vector: decides between equals, whatever the order of arrival."""
    return hashlib.blake2b(f"{seed}:{ranks}".encode(), digest_size=8).digest()


def _to_json(member: _Member) -> dict[str, Any]:
    score = member.score
    return {"ranks": list(member.ranks), "values": dict(score.values), "seconds": score.seconds, "worker": score.worker}


def _from_json(member: Mapping[str, Any]) -> _Member:
    ranks = rank_vector_from(member["ranks"])
    return _Member(ranks, Score(ranks, dict(member["values"]), member["seconds"], member["worker"]))
