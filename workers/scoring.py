"""Chooses how a model is scored: the fastest way that is possible and gives what the assembled network gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import nn

from search_spaces.candidates import Precision, Score
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.rank_space import Rank, RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, accuracy, logits
from workers.causes import cause
from workers.early_stop import STOP_RULES, STOP_SLICE, StopRule
from workers.out_of_place import CannotBeCut
from workers.repeatability import assembled_outputs, check_repeatable, metric_writes, same_outputs
from workers.replaying_scorer import ReplayingScorer
from workers.resuming_scorer import ResumingScorer
from workers.scorer import Change, Metric, PlainScorer

__all__ = [
    "Scorer",
    "Subject",
    "Way",
    "choose_scoring",
    "make_scorer",
    "reason_against_bfloat16",
    "reason_against_stopping",
]

Way = Literal["resumed", "replayed", "plain"]
"""How candidates are scored.

`resumed`: go on from the parent's values at the changed layer. `replayed`: run the forward as it is written, with the
parent's outputs of the layers before the changed one. `plain`: one whole pass per candidate.
"""

_FAST: Mapping[Way, type[ResumingScorer] | type[ReplayingScorer]] = {
    "resumed": ResumingScorer,
    "replayed": ReplayingScorer,
}

CHECKED = 8
"""Samples on which the fast ways are compared with the plain one, child by child."""

WHOLE_BYTES = 4 << 30
"""A fast way's slices are compared with the whole batch at once where its largest activation is no larger than this."""


class Scorer(Protocol):
    """What scores the children of a parent."""

    def score(
        self, parent: RankVector, changes: Sequence[Change], bounds: Sequence[float | None] | None = None
    ) -> list[Score]:
        """Scores in the order of the changes; who cannot reach its bound may be stopped (see `Bound`)."""


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        model: makes a fresh copy of the dense network (views of the weights, own buffers).
        layers, schemes, factors, batch, metric: as the scorers take them.
        slice_size: samples per forward pass, where the user set it.
        stop_by: the objective by which children are stopped early; empty for not at all.
    """

    model: Callable[[], nn.Module]
    layers: Sequence[Layer]
    schemes: Sequence[Scheme]
    factors: Mapping[str, Factors]
    batch: Batch
    metric: Metric
    slice_size: int | None
    stop_by: str = ""

    @property
    def stop_rule(self) -> StopRule | None:
        """How children are stopped; None where they cannot be, because scores are not sums over single samples."""
        labels = self.batch.labels
        one_label = labels.dim() == 1 and not labels.is_floating_point() and bool((labels >= 0).all())
        in_slices = self.metric is accuracy and self.slice_size is None and one_label
        return STOP_RULES.get(self.stop_by) if in_slices else None


def make_scorer(way: Way, subject: Subject, precision: Precision = "float32") -> Scorer:
    """A scorer.

    Args:
        precision: of the passes; see `reason_against_bfloat16`.

    Raises:
        CannotBeCut: the forward cannot be scored in this way.
    """
    if precision == "bfloat16":
        return _make_in_bfloat16(subject)
    if way == "plain":
        return PlainScorer(*_arguments(subject), subject.slice_size)
    return _make_fast(way, subject)


def _make_fast(way: Way, subject: Subject) -> ResumingScorer | ReplayingScorer:
    return _FAST[way](*_arguments(subject), _slice_size(subject), stop_rule=subject.stop_rule)


def _slice_size(subject: Subject) -> int | None:
    slice_size = subject.slice_size
    if slice_size is None and subject.metric is not accuracy:
        slice_size = len(subject.batch)  # nobody says that the user's metric is a mean over samples
    return slice_size


_Arguments = tuple[nn.Module, Sequence[Layer], Sequence[Scheme], Mapping[str, Factors], Batch, Metric]


def _arguments(subject: Subject) -> _Arguments:
    """What every scorer takes first."""
    return subject.model(), subject.layers, subject.schemes, subject.factors, subject.batch, subject.metric


def _in_float32(outputs: torch.Tensor | None) -> torch.Tensor | None:
    return None if outputs is None else outputs.float()


def choose_scoring(subject: Subject, candidates: Sequence[RankVector]) -> tuple[Way, str]:
    """Checks the model and the fast ways before anything is scored.

    Every layer is changed once in a child of every given parent, on a few samples, and the outputs are compared with
    the plain pass's; that is compared with the assembled network's; and the slices of the batch with the whole batch.

    Args:
        candidates: rank vectors; at least one.

    Returns:
        The way, and why the faster ones were not taken, in one clause; empty for the fastest.

    Raises:
        ConfigError: even the plain way does not give what the assembled network gives: the forward is random, keeps
            state, or changes its inputs.
    """
    few = replace(subject, batch=_first(subject.batch, CHECKED))
    check_repeatable(subject.model, few.batch)
    plain = _PlainOutputs(few)
    for ranks in candidates:
        expected = assembled_outputs(subject.model, subject.layers, subject.schemes, ranks, subject.factors, few.batch)
        if not same_outputs(plain(ranks, {}), expected):
            raise _stateful()
    first = plain(candidates[0], {})
    chosen, reasons = _fastest(subject, few, plain, candidates)
    if not same_outputs(plain(candidates[0], {}), first):
        raise _stateful()
    return chosen, "; ".join(reasons)


def reason_against_stopping(way: Way, subject: Subject, candidate: RankVector) -> str:
    """Why children cannot be stopped early by `subject.stop_by`, in one clause; empty if they can.

    Args:
        way: how candidates are scored, as chosen.
        candidate: a rank vector; on a few samples it must give the same in slices as at once.
    """
    if way == "plain":
        return "they are scored in one pass"
    if subject.metric is not accuracy:
        return "the metric may be no mean over samples"
    if subject.slice_size is not None:
        return "the slices of the batch are given"
    if subject.stop_rule is None or not _make_fast(way, subject).stops_early:
        return "scores are no sums over samples of one label each"
    part = replace(subject, batch=_first(subject.batch, 2 * STOP_SLICE))
    in_slices = _make_fast(way, replace(part, slice_size=STOP_SLICE))
    if not same_outputs(in_slices.outputs(candidate, [{}])[0], _PlainOutputs(part)(candidate, {})):
        return "what the model gives for a sample depends on the others in the batch"
    return ""


def reason_against_bfloat16(way: Way, subject: Subject, candidates: Sequence[RankVector]) -> str:
    """Why candidates cannot be scored in bfloat16, in one clause; empty if they can.

    As in `choose_scoring`, every layer is changed once in a child of every given parent, on a few samples; the outputs
    must agree with the plain pass's, in the model's own type, in half of bfloat16's digits. Types that differ further
    on, in a forward that makes tensors of its own, show in that pass.

    Args:
        way: how candidates are scored in float32, as chosen.
        candidates: rank vectors; at least one.
    """
    if way != "resumed":
        return "that takes a forward that can be resumed at every layer"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this processor does not compute in it"
    few = replace(subject, batch=_first(subject.batch, CHECKED))
    try:
        scorer = _make_in_bfloat16(few)
    except CannotBeCut as reason:
        return str(reason)
    plain = _PlainOutputs(few)
    for parent in candidates:
        changes = _one_by_one(subject, parent, candidates)
        for outputs, change in zip(scorer.outputs(parent, changes), changes, strict=True):
            if not same_outputs(outputs, _in_float32(plain(parent, change)), torch.bfloat16):
                return "what it computes there differs too much from what it computes in its own precision"
    return ""


def _make_in_bfloat16(subject: Subject) -> ResumingScorer:
    """Scores to the end: who stopped early by rough values would be judged by them."""
    return ResumingScorer(*_arguments(subject), _slice_size(subject), dtype=torch.bfloat16)


def _fastest(
    subject: Subject, few: Subject, plain: _PlainOutputs, candidates: Sequence[RankVector]
) -> tuple[Way, list[str]]:
    """The first fast way that is right, and why those before it are not."""
    if metric_writes(subject.model, subject.metric, few.batch):
        return "plain", ["the metric writes to the outputs that it judges"]
    reasons: list[str] = []
    for way in _FAST:
        reason = _reason_against(way, subject, few, plain, candidates)
        if not reason:
            return way, reasons
        if reason not in reasons:
            reasons.append(reason)
    return "plain", reasons


def _reason_against(
    way: Way, subject: Subject, few: Subject, plain: _PlainOutputs, candidates: Sequence[RankVector]
) -> str:
    """Why a fast way does not do, in one clause; empty if it does."""
    try:
        scorer = _make_fast(way, subject)
        sizes = scorer.slice_sizes
        halves = -(-len(few.batch) // 2) if len(sizes) > 1 and subject.slice_size is None else few.slice_size
        small = _make_fast(way, replace(few, slice_size=halves))
    except CannotBeCut as reason:
        return str(reason)
    except Exception as error:  # whatever the user's forward does where it is cut
        return f"{way}, its forward fails ({cause(error)})"
    if len(sizes) > 1:
        # Where the whole batch would take too much memory, what shows in twice a slice has to do.
        whole = len(subject.batch) * scorer.sample_bytes <= WHOLE_BYTES
        part = subject if whole else replace(subject, batch=_first(subject.batch, 2 * sizes[0]))
        in_slices = scorer if whole else _make_fast(way, replace(part, slice_size=sizes[0]))
        if not same_outputs(in_slices.outputs(candidates[-1], [{}])[0], _PlainOutputs(part)(candidates[-1], {})):
            return "what it gives for a sample depends on the others in the batch"
    for parent in candidates:
        changes = _one_by_one(subject, parent, candidates)
        for fast, change in zip(small.outputs(parent, changes), changes, strict=True):
            if not same_outputs(fast, plain(parent, change)):
                return f"{way}, it does not compute what it computes in one pass"
    return ""


def _one_by_one(subject: Subject, parent: RankVector, candidates: Sequence[RankVector]) -> list[Change]:
    """Children of a parent that differ from it in one layer each: dense where it is not, some rank where it is."""
    return [
        {index: _some_rank(subject, index, candidates) if rank is None else None} for index, rank in enumerate(parent)
    ]


def _some_rank(subject: Subject, index: int, candidates: Sequence[RankVector]) -> Rank | None:
    """Rank 1 of a layer, or one that a candidate has where ranks are no plain numbers; None where there is none."""
    if isinstance(subject.schemes[index].ranks(subject.layers[index]), range):
        return 1
    return next((ranks[index] for ranks in candidates if ranks[index] is not None), None)


class _PlainOutputs:
    """The plain way's logits; None for a network whose forward raises or whose outputs are not finite."""

    def __init__(self, subject: Subject) -> None:
        self._seen: list[torch.Tensor] = []
        self._scorer = make_scorer("plain", replace(subject, metric=self._note))

    def __call__(self, parent: RankVector, change: Change) -> torch.Tensor | None:
        self._seen.clear()
        score = self._scorer.score(parent, [change])[0]
        return torch.cat(self._seen) if score.ok else None

    def _note(self, outputs: object, _part: Batch) -> float:
        self._seen.append(logits(outputs).clone())
        return 0.0


def _first(batch: Batch, samples: int) -> Batch:
    return next(batch.split(min(samples, len(batch))))


def _stateful() -> ConfigError:
    return ConfigError(
        "model",
        "scoring and the assembled network disagree: its forward keeps state, changes its inputs, or reads its "
        "layers' weights elsewhere; make it a function of its input",
    )
