"""Chooses how a model is scored: by resuming its forward pass where that is possible and right, else the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from search_spaces.assembly import assemble
from search_spaces.candidates import Score
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, accuracy, run_model
from workers.forward_graph import CannotBeCut
from workers.resuming_scorer import ResumingScorer
from workers.scorer import Change, Metric, PlainScorer, judge

__all__ = ["Scorer", "Subject", "Way", "choose_scoring", "make_scorer"]

Way = Literal["resumed", "plain"]
"""`resumed`: go on from the parent's values at the changed layer. `plain`: one whole pass per candidate."""

CHECKED = 8
"""Samples on which the fast way is compared with assembled networks."""


class Scorer(Protocol):
    """What scores the children of a parent."""

    def score(self, parent: RankVector, changes: Sequence[Change]) -> list[Score]:
        """Scores in the order of the changes."""


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        model: makes a fresh copy of the dense network (views of the weights, own buffers).
        layers, schemes, factors, batch, metric: as the scorers take them.
        slice_size: samples per forward pass, where the user set it.
    """

    model: Callable[[], nn.Module]
    layers: Sequence[Layer]
    schemes: Sequence[Scheme]
    factors: Mapping[str, Factors]
    batch: Batch
    metric: Metric
    slice_size: int | None


def make_scorer(way: Way, subject: Subject, batch: Batch | None = None) -> Scorer:
    """A scorer.

    Args:
        way: how.
        batch: instead of the subject's.

    Raises:
        CannotBeCut: the forward cannot be resumed.
    """
    scored = batch or subject.batch
    arguments = (subject.model(), subject.layers, subject.schemes, subject.factors, scored, subject.metric)
    if way == "plain":
        return PlainScorer(*arguments, subject.slice_size)
    slice_size = subject.slice_size
    if slice_size is None and subject.metric is not accuracy:
        slice_size = len(scored)  # nobody says that the user's metric is a mean over samples
    return ResumingScorer(*arguments, slice_size)


def choose_scoring(subject: Subject, candidates: Sequence[RankVector]) -> tuple[Way, str]:
    """Checks the model and the fast way before anything is scored.

    Every layer is changed once in a child of every given parent, on a few samples, and compared with the plain
    pass of the assembled network.

    Returns:
        The way, and where it is the plain one, why, in one clause.

    Raises:
        ConfigError: even the plain way does not give what the assembled network gives: the forward is random, keeps
            state, or changes its inputs.
    """
    few = next(subject.batch.split(min(CHECKED, len(subject.batch))))
    _check_repeatable(subject, few)
    plain = make_scorer("plain", subject, few)
    for ranks in candidates:
        if not _agree(plain.score(ranks, [{}])[0], _assembled(subject, ranks, few)):
            raise ConfigError(
                "model",
                "scoring and the assembled network disagree: its forward keeps state, changes its inputs, or reads its "
                "layers' weights elsewhere; make it a function of its input",
            )
    try:
        fast = make_scorer("resumed", subject, few)
    except CannotBeCut as reason:
        return "plain", str(reason)
    for parent in candidates:
        changes: list[Change] = [{index: 1 if rank is None else None} for index, rank in enumerate(parent)]
        for resumed, whole in zip(fast.score(parent, changes), plain.score(parent, changes), strict=True):
            if not _agree(resumed, whole):
                return "plain", "resumed at a layer, it does not compute what it computes from the start"
    return "resumed", ""


def _check_repeatable(subject: Subject, few: Batch) -> None:
    """Two passes of the same network over the same samples give the same, or the model is random.

    Raises:
        ConfigError: they do not.
    """
    dense: RankVector = (None,) * len(subject.layers)
    first, second = (_assembled(subject, dense, few) for _ in range(2))
    if first.values != second.values:
        raise ConfigError(
            "model",
            "two passes over the same samples give different outputs: dropout left on, or something else random in its "
            "forward; scores would mean nothing",
        )


def _assembled(subject: Subject, ranks: RankVector, batch: Batch) -> Score:
    """The score of the network that would be handed over, by one plain pass."""
    with torch.inference_mode():
        network = assemble(subject.model(), subject.layers, subject.schemes, ranks, subject.factors)
        values = judge(run_model(network, batch.inputs), batch, subject.metric, None)
    return Score(ranks, status="nan") if values is None else Score(ranks, values)


def _agree(one: Score, other: Score) -> bool:
    """Whether losses differ by less than 1e-3 relative: far above rounding, far below a wrong layer."""
    if not one.ok or not other.ok:
        return one.status == other.status
    return abs(one.values["loss"] - other.values["loss"]) <= 1e-3 * max(1.0, abs(other.values["loss"]))
