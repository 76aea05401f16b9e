"""Chooses how a model is scored: the fastest way that is possible and gives what the assembled network gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from search_spaces.errors import ConfigError
from search_spaces.rank_space import Rank, RankVector
from workers.batch import Batch, accuracy, logits
from workers.causes import cause
from workers.early_stop import STOP_SLICE
from workers.out_of_place import CannotBeCut
from workers.repeatability import assembled_outputs, check_repeatable, metric_writes, same_outputs
from workers.scorer import Change
from workers.subject import Subject
from workers.ways import RESUMABLE, Way, fast_ways, make_fast_scorer, make_rough_scorer, make_scorer

__all__ = ["choose_scoring", "reason_against_bfloat16", "reason_against_stopping"]

CHECKED = 8
"""Samples on which the fast ways are compared with the plain one, child by child."""

WHOLE_BYTES = 4 << 30
"""A fast way's slices are compared with the whole batch at once where its largest activation is no larger than this."""


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
    few = subject.first(CHECKED)
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
    if subject.device.type != "cpu":
        return "on a GPU many of them go through the network together"
    if subject.metric is not accuracy:
        return "the metric may be no mean over samples"
    if subject.slice_size is not None:
        return "the slices of the batch are given"
    if subject.stop_rule is None or not make_fast_scorer(way, subject).stops_early:
        return "scores are no sums over samples of one label each"
    part = subject.first(2 * STOP_SLICE)
    in_slices = make_fast_scorer(way, replace(part, slice_size=STOP_SLICE))
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
    if way not in RESUMABLE:
        return "that takes a forward that can be resumed at every layer"
    if not _computes_bfloat16(subject.device):
        return "this processor does not compute in it"
    few = subject.first(CHECKED)
    try:
        scorer = make_rough_scorer(way, few)
    except CannotBeCut as reason:
        return str(reason)
    plain = _PlainOutputs(few)
    for parent in candidates:
        changes = _one_by_one(subject, parent, candidates)
        for outputs, change in zip(scorer.outputs(parent, changes), changes, strict=True):
            if not same_outputs(outputs, _in_float32(plain(parent, change)), torch.bfloat16):
                return "what it computes there differs too much from what it computes in its own precision"
    return ""


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _in_float32(outputs: torch.Tensor | None) -> torch.Tensor | None:
    return None if outputs is None else outputs.float()


def _fastest(
    subject: Subject, few: Subject, plain: _PlainOutputs, candidates: Sequence[RankVector]
) -> tuple[Way, list[str]]:
    """The first fast way that is right, and why those before it are not."""
    if metric_writes(subject.model, subject.metric, few.batch):
        return "plain", ["the metric writes to the outputs that it judges"]
    reasons: list[str] = []
    for way in fast_ways(subject.device):
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
        scorer = make_fast_scorer(way, subject)
        sizes = scorer.slice_sizes
        halves = -(-len(few.batch) // 2) if len(sizes) > 1 and subject.slice_size is None else few.slice_size
        small = make_fast_scorer(way, replace(few, slice_size=halves))
    except CannotBeCut as reason:
        return str(reason)
    except Exception as error:  # whatever the user's forward does where it is cut
        return f"{way}, its forward fails ({cause(error)})"
    if len(sizes) > 1:
        # Where the whole batch would take too much memory, what shows in twice a slice has to do.
        whole = len(subject.batch) * scorer.sample_bytes <= WHOLE_BYTES
        part = subject if whole else subject.first(2 * sizes[0])
        in_slices = scorer if whole else make_fast_scorer(way, replace(part, slice_size=sizes[0]))
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


def _stateful() -> ConfigError:
    return ConfigError(
        "model",
        "scoring and the assembled network disagree: its forward keeps state, changes its inputs, or reads its "
        "layers' weights elsewhere; make it a function of its input",
    )
