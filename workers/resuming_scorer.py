"""Scores candidates by resuming their parent's forward pass at the changed layer: the plain way's values, faster.

The parent's pass goes once through the network, a slice of the batch at a time. Wherever a child differs, the child
goes on from there with the parent's values, which are shared and never written to; then the parent moves on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from search_spaces.candidates import Score
from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, logits
from workers.causes import cause
from workers.forward_graph import CannotBeCut, Env, Step, trace_forward
from workers.prepared_layer import PreparedLayers, fold_of
from workers.scorer import Change, Metric, child_of, judge
from workers.slot import Slot, open_slots

__all__ = ["ResumingScorer"]

SLICE_BYTES = 1 << 20
"""Largest activation of a slice: half a usual second-level cache, where a layer finds what the last one wrote."""


@dataclass
class _Child:
    """A child on its way through the slices."""

    position: int
    ranks: RankVector
    change: Change
    start: int
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failure: Score | None = None


class ResumingScorer:
    """Holds one model as a graph of steps, and the validation batch in slices.

    Args:
        model: the dense network in eval mode; its layers are replaced by slots. Nothing here writes to its
            parameters or the factors.
        layers, schemes: the space's, aligned.
        factors: by layer name.
        batch: the validation batch.
        metric: judges outputs; it must be a mean over samples, or `slice_size` the whole batch.
        slice_size: samples per pass; None chooses it by the activations' size.
        limit_bytes: of prepared weights; see `PreparedLayers`.

    Raises:
        CannotBeCut: the model's forward cannot be resumed; the plain way remains.
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
        limit_bytes: int = 64 << 20,
    ) -> None:
        self._model = model.eval().requires_grad_(False)
        self._slots = open_slots(self._model, list(layers), list(schemes), dict(factors))
        self._graph = trace_forward(self._model, batch.inputs)
        missing = [slot.layer.name for slot in self._slots if slot not in self._graph.first_call]
        if missing:
            raise CannotBeCut(f"its traced forward never calls {', '.join(missing)}")
        self._prepared = PreparedLayers(limit_bytes)
        self._metric = metric
        self._dense: RankVector = (None,) * len(self._slots)
        self._index_of = {slot: index for index, slot in enumerate(self._slots)}
        self._fold_norms()
        self._ranks: RankVector = self._dense
        self._bind_slots()
        self._size = len(batch)
        with torch.inference_mode():
            self._slices = [_laid_out(part) for part in batch.split(slice_size or self._slice_size(batch))]
            self._references = [self._reference(part) for part in self._slices]

    def score(self, parent: RankVector, changes: Sequence[Change]) -> list[Score]:
        """Scores the children of one parent, each given by how it differs from it; in their order."""
        children = [self._child(parent, change, position) for position, change in enumerate(changes)]
        in_order = sorted(children, key=lambda child: child.start)
        with torch.inference_mode():
            for part, reference in zip(self._slices, self._references, strict=True):
                self._pass(parent, in_order, part, reference)
        return [self._score(child) for child in children]

    def _child(self, parent: RankVector, change: Change, position: int) -> _Child:
        starts = [self._graph.first_call[self._slots[index]] for index, rank in change.items() if rank != parent[index]]
        end = len(self._graph.steps) - 1
        return _Child(position, child_of(parent, change), change, min(starts, default=end))

    def _pass(self, parent: RankVector, children: list[_Child], part: Batch, reference: torch.Tensor) -> None:
        """Takes one slice through the parent and all its children that have not failed."""
        graph, end = self._graph, len(self._graph.steps)
        env = graph.begin(part.inputs)
        reached = 0
        for child in children:
            if child.failure is not None:
                continue
            started = time.perf_counter()
            try:
                self._ranks = parent
                graph.run(env, reached, child.start)
                reached = child.start
                self._ranks = child.ranks
                own: Env = env.copy()
                graph.run(own, reached, end)
                values = judge(own[-1], part, self._metric, reference)
            except Exception as error:  # one bad candidate never ends a run
                child.failure = Score(child.ranks, status="error", reason=cause(error))
                continue
            finally:
                child.seconds += time.perf_counter() - started
            if values is None:
                child.failure = Score(child.ranks, status="nan", reason="the network's outputs are not finite")
                continue
            for name, value in values.items():
                child.totals[name] = child.totals.get(name, 0.0) + value * len(part)

    def _score(self, child: _Child) -> Score:
        if child.failure is not None:
            return Score(child.ranks, {}, child.seconds, status=child.failure.status, reason=child.failure.reason)
        return Score(child.ranks, {name: total / self._size for name, total in child.totals.items()}, child.seconds)

    def _bind_slots(self) -> None:
        """Makes every step that calls a slot use the prepared layer at the rank in force."""
        for step in self._graph.steps:
            if step.slot is not None:
                step.run = self._slot_call(step.slot, step.source)

    def _slot_call(self, slot: Slot, source: int) -> Callable[[Env], object]:
        index, prepared = self._index_of[slot], self._prepared
        return lambda env: prepared.forward(slot, self._ranks[index])(env[source])

    def _fold_norms(self) -> None:
        """Folds batch norms that read nothing but the output of a slot, which nobody else reads."""
        steps = self._graph.steps
        calls: dict[int, int] = {}
        for step in steps:
            if step.module is not None:
                calls[id(step.module)] = calls.get(id(step.module), 0) + 1
        for step in steps:
            if not isinstance(step.module, nn.BatchNorm2d) or calls[id(step.module)] > 1:
                continue
            source: Step = steps[step.source]
            if source.slot is None or source.users != 1 or calls[id(source.module)] > 1:
                continue
            fold = fold_of(step.module)
            if fold is not None:
                self._prepared.fold(source.slot, fold)
                step.run = _same(step.source)

    def _reference(self, part: Batch) -> torch.Tensor:
        """The dense network's log-probabilities in float32."""
        env = self._graph.begin(part.inputs)
        self._ranks = self._dense
        self._graph.run(env, 0, len(self._graph.steps))
        return torch.log_softmax(logits(env[-1]).float(), dim=-1)

    def _slice_size(self, batch: Batch) -> int:
        """Samples whose largest activation fits `SLICE_BYTES`: measured on one sample."""
        env = self._graph.begin(batch.example().inputs)
        largest = 1
        self._ranks = self._dense
        for index, step in enumerate(self._graph.steps):
            env[index] = step.run(env)
            if isinstance(env[index], torch.Tensor) and step.module is not None:
                largest = max(largest, env[index].numel() * env[index].element_size())
        return max(1, min(len(batch), SLICE_BYTES // largest))


def _same(source: int) -> Callable[[Env], object]:
    return lambda env: env[source]


def _laid_out(part: Batch) -> Batch:
    """Images with their channels last in memory: convolutions are up to three times faster so."""
    if isinstance(part.inputs, torch.Tensor) and part.inputs.dim() == 4:
        return Batch(part.inputs.contiguous(memory_format=torch.channels_last), part.labels)
    return part
