"""Scores candidates on the validation batch: the plain way, one whole forward pass for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from search_spaces.candidates import Score
from search_spaces.layers import Layer
from search_spaces.rank_space import Rank, RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, logits, run_model
from workers.slot import open_slots

__all__ = ["Change", "Metric", "PlainScorer", "child_of", "judge", "judge_in_slices"]

Metric: TypeAlias = Callable[[object, Batch], float]
"""The user's judgement of a network: a function of its outputs and the batch; higher is better."""

Change: TypeAlias = Mapping[int, Rank | None]
"""How a child differs from its parent: new ranks by layer index."""


class PlainScorer:
    """Holds one model whose layers take any rank, and the validation batch.

    Args:
        model: the dense network in eval mode; its layers are replaced by slots. Its parameters and the factors may
            be views of shared memory: nothing here writes to them.
        layers, schemes: the space's, aligned.
        factors: by layer name.
        batch: the validation batch.
        metric: judges outputs.
        slice_size: samples per forward pass; values are averaged over the slices by their size. A metric that is no
            mean over samples needs the whole batch at once (the default).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        schemes: Sequence[Scheme],
        factors: Mapping[str, Factors],
        batch: Batch,
        metric: Metric,
        slice_size: int | None = None,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._slots = open_slots(self._model, list(layers), list(schemes), dict(factors))
        self._slices = list(batch.split(slice_size or len(batch)))
        self._metric = metric
        with torch.inference_mode():
            self._references = [self._log_probabilities(one) for one in self._slices]

    def score(
        self, parent: RankVector, changes: Sequence[Change], bounds: Sequence[float | None] | None = None
    ) -> list[Score]:
        """Scores the children of one parent, each given by how it differs from it; in their order.

        A child whose forward raises, or whose outputs are not finite, gets a score that says so. One pass takes the
        whole batch, so nobody is stopped: `bounds` change nothing.
        """
        return [self._score_one(child_of(parent, change)) for change in changes]

    def _score_one(self, ranks: RankVector) -> Score:
        started = time.perf_counter()
        try:
            values = self._evaluate(ranks)
        except Exception as error:  # one bad candidate never ends a run
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return Score(ranks, seconds=time.perf_counter() - started, status="error", reason=reason)
        elapsed = time.perf_counter() - started
        if values is None:
            return Score(ranks, seconds=elapsed, status="nan", reason="the network's outputs are not finite")
        return Score(ranks, values, elapsed)

    def _evaluate(self, ranks: RankVector) -> dict[str, float] | None:
        """Means over the batch of accuracy, loss and KL; None where an output is not finite."""
        for slot, rank in zip(self._slots, ranks, strict=True):
            slot.rank = rank
        return judge_in_slices(self._model, self._slices, self._metric, self._references)

    def _log_probabilities(self, part: Batch) -> torch.Tensor:
        """The dense network's log-probabilities in float32."""
        return torch.log_softmax(logits(run_model(self._model, part.inputs)).float(), dim=-1)


def judge_in_slices(
    model: nn.Module, parts: Iterable[Batch], metric: Metric, references: Sequence[torch.Tensor] | None = None
) -> dict[str, float] | None:
    """Values of a network on a batch that comes in parts: means weighted by the parts' sizes; None if not finite.

    Args:
        references: the dense network's log-probabilities for every part; None leaves `kl` out.
    """
    totals: dict[str, float] = {}
    size = 0
    for position, part in enumerate(parts):
        reference = None if references is None else references[position]
        with torch.inference_mode():
            values = judge(run_model(model, part.inputs), part, metric, reference)
        if values is None:
            return None
        size += len(part)
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value * len(part)
    return {name: total / size for name, total in totals.items()}


def judge(outputs: object, part: Batch, metric: Metric, reference: torch.Tensor | None) -> dict[str, float] | None:
    """Values of one batch's outputs.

    Logits are turned to float32 first: a half-precision softmax would blur near-ties.

    Args:
        reference: log-probabilities of the dense network, `(N, classes)`; None leaves `kl` out.

    Returns:
        `accuracy`, `loss` (mean cross-entropy in nats) and `kl` (mean KL(dense || candidate) in nats), or None
        where an output or the metric is not finite.
    """
    raw = logits(outputs).float()
    if not bool(torch.isfinite(raw).all()):
        return None
    log_probabilities = torch.log_softmax(raw, dim=-1)
    flat = log_probabilities.reshape(-1, log_probabilities.shape[-1])
    values = {
        "accuracy": float(metric(outputs, part)),
        "loss": float(torch.nn.functional.nll_loss(flat, part.labels.reshape(-1).long())),
    }
    if not math.isfinite(values["accuracy"]):
        return None
    if reference is not None:
        gap = reference.exp() * (reference - log_probabilities)
        values["kl"] = float(gap.sum(-1).mean())
    return values


def child_of(parent: RankVector, change: Change) -> RankVector:
    """The child's rank vector."""
    return tuple(change.get(index, rank) for index, rank in enumerate(parent))
