"""The ways in which candidates can be scored, and what scores them in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import nn

from search_spaces.candidates import Precision, Score
from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, accuracy
from workers.joining_scorer import JoiningScorer
from workers.replaying_scorer import ReplayingScorer
from workers.resuming_scorer import ResumingScorer
from workers.scorer import Change, Metric, PlainScorer
from workers.subject import Subject

__all__ = ["RESUMABLE", "Scorer", "Way", "fast_ways", "make_fast_scorer", "make_rough_scorer", "make_scorer"]

Way = Literal["joined", "resumed", "replayed", "plain"]
"""How candidates are scored.

`joined`: as `resumed`, and children that go on alike go on together, many in one launch: for GPUs. `resumed`: go on
from the parent's values at the changed layer. `replayed`: run the forward as it is written, with the parent's outputs
of the layers before the changed one. `plain`: one whole pass per candidate.
"""

_FAST: Mapping[Way, type[ResumingScorer] | type[ReplayingScorer]] = {
    "joined": JoiningScorer,
    "resumed": ResumingScorer,
    "replayed": ReplayingScorer,
}

RESUMABLE: tuple[Way, ...] = ("joined", "resumed")
"""Those that compute once what candidates of several parents have in common, and can do so in bfloat16."""


class Scorer(Protocol):
    """What scores the children of a parent."""

    def score(
        self, parent: RankVector, changes: Sequence[Change], bounds: Sequence[float | None] | None = None
    ) -> list[Score]:
        """Scores in the order of the changes; who cannot reach its bound may be stopped (see `Bound`)."""


def fast_ways(device: torch.device) -> list[Way]:
    """The ways that are tried before the plain one, the fastest first.

    On a CPU children go on one by one: what one layer wrote is still in the cache when the next one reads it.
    """
    return [way for way in _FAST if way != "joined" or device.type != "cpu"]


def make_scorer(way: Way, subject: Subject, precision: Precision = "float32") -> Scorer:
    """A scorer.

    Args:
        precision: of the passes; bfloat16 for those of `RESUMABLE` alone. There all are scored to the end: who stopped
            early by rough values would be judged by them.

    Raises:
        CannotBeCut: the forward cannot be scored in this way.
    """
    if precision == "bfloat16":
        return make_rough_scorer(way, subject)
    if way == "plain":
        return PlainScorer(*_arguments(subject), subject.slice_size)
    return make_fast_scorer(way, subject)


def make_fast_scorer(way: Way, subject: Subject) -> ResumingScorer | ReplayingScorer:
    """A scorer in float32 that goes by slices of the batch.

    Raises:
        CannotBeCut: the forward cannot be scored in this way.
    """
    return _FAST[way](*_arguments(subject), _slice_size(subject), stop_rule=subject.stop_rule)


def make_rough_scorer(way: Way, subject: Subject) -> ResumingScorer:
    """A scorer in bfloat16, by a way of `RESUMABLE`.

    Raises:
        CannotBeCut: the forward cannot be scored in this way.
    """
    made = JoiningScorer if way == "joined" else ResumingScorer
    return made(*_arguments(subject), _slice_size(subject), dtype=torch.bfloat16)


def _slice_size(subject: Subject) -> int | None:
    slice_size = subject.slice_size
    if slice_size is None and subject.metric is not accuracy:
        slice_size = len(subject.batch)  # nobody says that the user's metric is a mean over samples
    return slice_size


_Arguments = tuple[nn.Module, Sequence[Layer], Sequence[Scheme], Mapping[str, Factors], Batch, Metric]


def _arguments(subject: Subject) -> _Arguments:
    """What every scorer takes first."""
    return subject.model(), subject.layers, subject.schemes, subject.factors, subject.batch, subject.metric
