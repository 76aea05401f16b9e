"""How the candidates of a run are scored: chosen once for all evaluators, on a device like theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray

from search_spaces.rank_space import RankVector
from workers.evaluator import Shared, open_subject
from workers.scoring import choose_scoring, reason_against_bfloat16, reason_against_stopping
from workers.subject import Subject
from workers.task_results import results_of
from workers.ways import Way

__all__ = ["Choice", "Question", "choose", "choose_on_gpu"]


@dataclass(frozen=True)
class Question:
    """What is to be chosen.

    Attributes:
        candidates: on which ways are compared; at least one.
        rough: the same for bfloat16; empty where nobody wants it.
        stop_by: the objective by which children would be stopped early; empty for not at all.
    """

    candidates: Sequence[RankVector]
    rough: Sequence[RankVector] = ()
    stop_by: str = ""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        way: how candidates are scored.
        reason: why no faster way; empty for the fastest.
        against_bfloat16: why not in bfloat16; empty where that is possible, None where nobody wants it.
        against_stopping: why nobody is stopped early; None where nobody is to be.
    """

    way: Way
    reason: str
    against_bfloat16: str | None = None
    against_stopping: str | None = None


def choose(subject: Subject, question: Question) -> Choice:
    """Checks the ways of scoring against assembled networks, on the subject's device.

    Raises:
        ConfigError: no way gives what the assembled network gives.
    """
    way, reason = choose_scoring(subject, question.candidates)
    rough = reason_against_bfloat16(way, subject, question.rough) if question.rough else None
    stopping = None
    if question.stop_by and way != "plain":
        stopping = reason_against_stopping(way, replace(subject, stop_by=question.stop_by), question.candidates[0])
    return Choice(way, reason, rough, stopping)


def choose_on_gpu(shared: Shared, question: Question) -> Choice:
    """The same where an evaluator of this kind would run; it is given back before evaluators start.

    Raises:
        ConfigError: no way does; or the GPU cannot be used.
    """
    task = ray.remote(num_cpus=shared.threads, num_gpus=shared.gpus, max_calls=1)(_choose_there)
    (choice,) = results_of([task.remote(shared, question)])
    assert isinstance(choice, Choice)
    return choice


def _choose_there(shared: Shared, question: Question) -> Choice:
    return choose(open_subject(shared), question)
