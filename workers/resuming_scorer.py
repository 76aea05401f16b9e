"""Scores candidates by computing once what they have in common: the plain way's values, faster.

The candidates of a call go through the network together, a slice of the batch at a time, as one pass that branches:
wherever their ranks differ for the first time, every rank goes on from there with the values so far, which are shared
and never written to. Children of one parent leave its pass one by one; the parents of a beam share what they agree on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx, nn

from search_spaces.layers import Layer
from search_spaces.rank_space import Rank, RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch
from workers.causes import cause
from workers.early_stop import StopRule
from workers.forward_graph import CannotBeCut, Env, ForwardGraph, trace_forward
from workers.memory_reuse import Shape, reuse_memory
from workers.prepared_layer import PREPARED_BYTES, PREPARED_BYTES_ON_GPU, PreparedLayers
from workers.scorer import Metric
from workers.sliced_scorer import Child, Passes, SlicedScorer, slice_size_for
from workers.slot import Slot, open_slots

__all__ = ["ResumingScorer", "in_float32"]


class ResumingScorer(SlicedScorer):
    """Holds one model as a graph of steps, and the validation batch in slices.

    Memory: of one slice, the values that are still needed wherever the pass has branched and others wait.

    Args:
        model: the dense network in eval mode; its layers are replaced by slots. Nothing here writes to its
            parameters or the factors.
        layers, schemes: the space's, aligned.
        factors: by layer name.
        batch: the validation batch.
        metric: judges outputs; it must be a mean over samples, or `slice_size` the whole batch.
        slice_size: samples per pass; None chooses it by the activations' size.
        limit_bytes: of prepared weights; see `PreparedLayers`. None is what the device can spare.
        stop_rule: of the objective, where children may be stopped early: the metric is `accuracy` then, every sample
            has one label, and no user chose the slices.
        dtype: floating-point type of the passes; None is the model's own. In another one weights are rounded once,
            when they are prepared, whatever else the forward holds is cast, and the outputs are judged in float32.

    Raises:
        CannotBeCut: the model's forward cannot be resumed; other ways remain.
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
        limit_bytes: int | None = None,
        stop_rule: StopRule | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(metric, stop_rule)
        self._dtype, self._device = dtype, batch.labels.device
        on_cpu = self._device.type == "cpu"
        if limit_bytes is None:
            limit_bytes = PREPARED_BYTES if on_cpu else PREPARED_BYTES_ON_GPU
        # A GPU has fast kernels for images laid out so in half precision alone.
        self._channels_last = on_cpu or dtype is not None
        model = model.eval().requires_grad_(False)
        self._slots = open_slots(model, list(layers), list(schemes), dict(factors))
        self._graph = trace_forward(model, batch.inputs)
        missing = [slot.layer.name for slot in self._slots if slot not in self._graph.first_call]
        if missing:
            raise CannotBeCut(f"its traced forward never calls {', '.join(missing)}")
        self._prepared = PreparedLayers(self._slots, limit_bytes, self._channels_last, dtype)
        if dtype is not None and self._prepared.on_views:
            raise CannotBeCut(f"its layers' weights take more than {limit_bytes >> 20} MiB, so that none is held ready")
        self._calls = sorted((self._graph.first_call[slot], index) for index, slot in enumerate(self._slots))
        dense: RankVector = (None,) * len(self._slots)
        self._ranks = dense
        folded = _fold_norms(self._graph, self._prepared)
        if dtype is not None:
            self._graph.cast(dtype)
        self._bind_slots()
        shapes = self._first_pass(batch)
        self.reused = reuse_memory(self._graph, folded, shapes)
        self._set_slices(batch, slice_size or slice_size_for(len(batch), self.sample_bytes, self._device), dense)

    def _mode(self) -> AbstractContextManager[object]:
        return torch.inference_mode()

    def _laid_out(self, part: Batch) -> Batch:
        # Shared weights lie as they were stored; for images laid out otherwise every call would copy them.
        part = part.channels_last() if self._channels_last and not self._prepared.on_views else part
        return part if self._dtype is None else part.cast(self._dtype)

    def _open_slice(self, parent: RankVector, part: Batch, children: list[Child]) -> Passes:
        return self._branch(self._graph.begin(part.inputs), 0, 0, children)

    def _branch(self, env: Env, reached: int, layer: int, children: list[Child]) -> Passes:
        """Passes of children that agree so far.

        Args:
            env: the values at step `reached`, which are its own to forget.
            layer: in the order of calls, the first in which they may differ.
        """
        while True:
            layer = self._first_difference(children, layer)
            stop = self._calls[layer][0] if layer < len(self._calls) else len(self._graph.steps)
            try:
                self._ranks = children[0].ranks
                self._graph.run(env, reached, stop)
            except Exception as error:  # all of them share these steps
                yield from ((child, error) for child in children)
                return
            if layer == len(self._calls):
                outputs = env[-1] if self._dtype is None else in_float32(env[-1])
                yield from ((child, outputs) for child in children)
                return
            *fewer, most = sorted(_by_rank(children, self._calls[layer][1]), key=len)
            for some in fewer:
                yield from self._branch(env.copy(), stop, layer + 1, some)
            reached, layer, children = stop, layer + 1, most

    def _first_difference(self, children: list[Child], layer: int) -> int:
        """The first layer from `layer` on, in the order of calls, whose rank they do not share; past all if none."""
        ranks, others = children[0].ranks, children[1:]
        while layer < len(self._calls):
            index = self._calls[layer][1]
            if any(child.ranks[index] != ranks[index] for child in others):
                break
            layer += 1
        return layer

    def _bind_slots(self) -> None:
        """Makes every step that calls a slot use the prepared layer at the rank in force."""
        index_of = {slot: index for index, slot in enumerate(self._slots)}
        for step in self._graph.steps:
            if step.slot is not None:
                step.run = self._slot_call(step.slot, index_of[step.slot], step.source)

    def _slot_call(self, slot: Slot, index: int, source: int) -> Callable[[Env], object]:
        prepared = self._prepared
        return lambda env: prepared.forward(slot, self._ranks[index])(env[source])

    def _first_pass(self, batch: Batch) -> list[Shape | None]:
        """Takes two samples through the dense network; the shape and type of every step's value.

        Finds the largest activation on the way.

        Raises:
            CannotBeCut: a step fails, or writes to a value that it was given.
        """
        few = self._laid_out(next(batch.split(2)))
        env = self._graph.begin(few.inputs)
        shapes: list[Shape | None] = []
        largest = 1
        with torch.no_grad():  # not inference mode: its tensors do not count how often they were written to
            for index, step in enumerate(self._graph.steps):
                before = _versions(env)
                try:
                    env[index] = step.run(env)
                except Exception as error:
                    raise CannotBeCut(f"its forward does not run step by step ({cause(error)})") from None
                if any(version != tensor._version for tensor, version in before):
                    raise CannotBeCut(f"{step.name} writes to a value that it was given")
                value = env[index]
                is_tensor = isinstance(value, torch.Tensor)
                shapes.append((tuple(value.shape), value.dtype) if is_tensor else None)
                if is_tensor and not step.is_given:
                    largest = max(largest, value.numel() * value.element_size() // len(few))
                for dead in step.free:
                    env[dead] = None
        self.sample_bytes = largest
        return shapes


def in_float32(outputs: Any) -> Any:
    """The outputs with every floating-point tensor in float32."""

    def widened(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return fx.node.map_aggregate(outputs, widened)


def _by_rank(children: list[Child], index: int) -> list[list[Child]]:
    """The children by their rank in a layer."""
    found: dict[Rank | None, list[Child]] = {}
    for child in children:
        found.setdefault(child.ranks[index], []).append(child)
    return list(found.values())


def _versions(env: Env) -> list[tuple[torch.Tensor, int]]:
    """Every tensor of the environment with its count of writes."""
    found: list[tuple[torch.Tensor, int]] = []

    def note(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not value.is_inference():
            found.append((value, value._version))
        return value

    fx.node.map_aggregate([value for value in env if value is not None], note)
    return found


def _fold_norms(graph: ForwardGraph, prepared: PreparedLayers) -> dict[int, int]:
    """Folds batch norms that read nothing but the output of a slot, which nobody else reads.

    Returns:
        By the index of each such step, which only hands the value on now, the index of the slot's.
    """
    calls: dict[int, int] = {}
    for step in graph.steps:
        if step.module is not None:
            calls[id(step.module)] = calls.get(id(step.module), 0) + 1
    folded: dict[int, int] = {}
    for index, step in enumerate(graph.steps):
        if not isinstance(step.module, nn.BatchNorm2d) or calls[id(step.module)] > 1 or step.source < 0:
            continue
        source = graph.steps[step.source]
        if source.slot is None or source.users != 1 or calls[id(source.module)] > 1:
            continue
        if prepared.fold(source.slot, step.module):
            step.run = _same(step.source)
            folded[index] = step.source
    return folded


def _same(source: int) -> Callable[[Env], object]:
    return lambda env: env[source]
