"""The score memory: whoever asks is answered once, and nothing goes to the evaluators twice."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.score_memory import ScoreMemory
from search_spaces.candidates import Candidate, Score
from search_spaces.rank_space import RankVector

ASKED = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=60, unique=True)


def candidate(asker: str, rank: int) -> Candidate:
    """Each asker comes to a rank vector from a parent of its own."""
    return Candidate((rank,), (100 + sum(map(ord, asker)),), 0)


def no_bound(_asker: str, _ranks: RankVector) -> None:
    """Every score is wanted in any case."""


@given(ASKED, st.integers(0, 2**16))
def test_every_asker_is_answered_once_and_each_rank_vector_scored_once(asked: list[tuple[str, int]], seed: int) -> None:
    memory, drawn = ScoreMemory(), random.Random(seed)
    waiting: list[Candidate] = []
    scored: Counter[object] = Counter()
    answers: dict[tuple[str, int], list[Candidate]] = {}
    charged = 0.0
    todo = list(asked)
    while todo or waiting:
        if todo and (not waiting or drawn.random() < 0.6):
            asker, rank = todo.pop(0)
            fresh, known = memory.ask(asker, [candidate(asker, rank)])
            waiting += fresh
            deliveries = known
        else:
            one = waiting.pop(drawn.randrange(len(waiting)))
            scored[one.ranks] += 1
            told = memory.told([Score(one.ranks, {"loss": 0.5}, seconds=2.0)], no_bound)
            deliveries = [delivery for own in told.values() for delivery in own]
            assert sum(delivery.first for delivery in deliveries) == 1
        for delivery in deliveries:
            assert delivery.score.ranks == delivery.candidate.ranks
            key = (delivery.asker, int(str(delivery.candidate.ranks[0])))
            answers.setdefault(key, []).append(delivery.candidate)
            charged += delivery.seconds
    assert answers == {(asker, rank): [candidate(asker, rank)] for asker, rank in asked}
    assert set(scored.values()) <= {1}
    assert charged == pytest.approx(2.0 * len(scored)), "what was spent is charged once"


def test_what_a_former_process_scored_is_not_scored_again() -> None:
    memory = ScoreMemory()
    memory.remember([Score((3,), {"loss": 0.5}, seconds=2.0)])
    fresh, (known,) = memory.ask("a", [candidate("a", 3), candidate("a", 4)])
    assert fresh == [candidate("a", 4)]
    assert (known.candidate, known.first, known.seconds) == (candidate("a", 3), False, 0.0)


def test_a_stopped_candidate_is_scored_again_for_those_who_must_know_more() -> None:
    memory = ScoreMemory()
    bounds = {"easy": 0.2, "early": 0.7, "strict": 0.9, "late": None}
    for asker in ("early", "strict", "easy"):
        memory.ask(asker, [candidate(asker, 3)])
    stopped = Score((3,), seconds=1.0, status="stopped", at_most=0.5)
    told = memory.told([stopped], lambda asker, _: bounds[asker])
    assert [(one.candidate, one.score) for own in told.values() for one in own] == [
        (candidate("early", 3), stopped),
        (candidate("strict", 3), stopped),
    ]
    assert memory.again() == [("easy", candidate("easy", 3))]
    assert memory.again() == []
    fresh, known = memory.ask("late", [candidate("late", 3)])
    assert (fresh, known) == ([], []), "it is on its way"
    score = Score((3,), {"loss": 0.5}, seconds=2.0)
    told = memory.told([score], lambda asker, _: bounds[asker])
    assert {asker: [one.score for one in own] for asker, own in told.items()} == {"easy": [score], "late": [score]}
    assert memory.ask("early", [candidate("early", 3)])[1][0].score == score


def test_a_score_in_one_precision_answers_for_no_other() -> None:
    memory = ScoreMemory()
    rough = Score((3,), {"loss": 0.4}, precision="bfloat16")
    memory.remember([rough])
    fresh, known = memory.ask("a", [candidate("a", 3)])
    assert [one.precision for one in fresh] == ["float32"]
    assert known == []
    assert memory.told([rough], no_bound) == {}
    exact = Score((3,), {"loss": 0.5})
    assert [one.score for one in memory.told([exact], no_bound)["a"]] == [exact]
    _, known = memory.ask("b", [replace(candidate("b", 3), precision="bfloat16"), candidate("b", 3)])
    assert [one.score for one in known] == [rough, exact]
