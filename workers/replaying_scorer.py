"""Scores candidates by running the model's own forward, without computing again what a child shares with its parent.

It needs nothing of the forward but that it is a function of its inputs: control flow, dicts, `*args` and modules that
torch.fx does not look into are all right, because the forward runs as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, logits, run_model
from workers.causes import cause
from workers.forward_watch import watch
from workers.out_of_place import CannotBeCut
from workers.prepared_layer import PREPARED_BYTES, PreparedLayers
from workers.remembered_calls import RememberedCalls
from workers.repeatability import same_outputs
from workers.scorer import Change, Metric
from workers.sliced_scorer import Child, SlicedScorer, channels_last, slice_size_for
from workers.slot import Slot, open_slots

__all__ = ["ReplayingScorer"]

REMEMBERED_BYTES = 256 << 20
"""Activations of one slice that may be remembered, by default."""


class ReplayingScorer(SlicedScorer):
    """Holds one model whose modules remember what they gave the parent, and the validation batch in slices.

    The calls of modules are counted as the forward makes them. Until a child calls a layer that differs from the
    parent's, its forward sees exactly what the parent's saw; so those calls return what the parent's returned, and
    only what the forward itself computes between them (sums, attention by hand) is computed again. The child with the
    latest change goes first and leaves what it computed on the way to the others.

    Memory: `limit_bytes` of remembered outputs of one slice, and what one forward pass of a slice takes. A call
    whose output does not fit is computed again by every child; the earliest calls, which serve most children, are
    remembered first. A forward that reads values (`if x.sum() > 0`) gets the whole batch at once unless `slice_size`
    is given, because its control flow may depend on all samples.

    Args:
        model: the dense network in eval mode; its layers are replaced by slots. Nothing here writes to its
            parameters or the factors.
        layers, schemes: the space's, aligned.
        factors: by layer name.
        batch: the validation batch.
        metric: judges outputs; it must be a mean over samples, or `slice_size` the whole batch.
        slice_size: samples per pass; None chooses it by the activations' size.
        limit_bytes: of remembered outputs.
        prepared_bytes: of prepared weights; see `PreparedLayers`.

    Raises:
        CannotBeCut: the forward does not run on two samples, or could write to what is remembered unseen.
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
        limit_bytes: int = REMEMBERED_BYTES,
        prepared_bytes: int = PREPARED_BYTES,
    ) -> None:
        super().__init__(metric)
        self._model = model.eval().requires_grad_(False)
        self._slots = open_slots(self._model, list(layers), list(schemes), dict(factors))
        self._limit_bytes, self._prepared_bytes = limit_bytes, prepared_bytes
        self._dense: RankVector = (None,) * len(self._slots)
        self._parent = self._ranks = self._dense
        self._memory: RememberedCalls | None = None
        self._first_call: dict[int, int] = {}
        self.written: set[int] = set()
        self._take_over_calls()
        few = next(batch.split(min(2, len(batch))))
        self._lay_out(channels_last=False)
        if not self._prepared.on_views:  # shared weights lie as they were stored: every call would copy them
            expected = self._dense_outputs(few)
            self._lay_out(channels_last=True)
            if not same_outputs(self._dense_outputs(few), expected):  # `view` fails so, and `flatten` gives no view
                self._lay_out(channels_last=False)
        automatic = self._slice_size(few, len(batch))
        self._set_slices(batch, slice_size or automatic, self._dense)

    def _lay_out(self, channels_last: bool) -> None:
        """Chooses the memory layout of images."""
        self._channels_last = channels_last
        self._prepared = PreparedLayers(self._slots, self._prepared_bytes, channels_last)

    def _dense_outputs(self, few: Batch) -> torch.Tensor | None:
        """The dense network's logits; None where the forward raises."""
        with self._mode():
            try:
                outputs = self._open_slice(self._dense, self._laid_out(few))(Child(self._dense, 0))
            except Exception:
                return None
            return logits(outputs).clone()

    def _slice_size(self, few: Batch, samples: int) -> int:
        """Watches a pass of a few samples: the order of calls, the largest activation, and what forbids slices."""
        self._ranks = self._dense
        try:
            with self._mode():
                seen = watch(lambda: run_model(self._model, self._laid_out(few).inputs))
        except Exception as error:
            raise CannotBeCut(f"its forward does not run on {len(few)} samples ({cause(error)})") from None
        if seen.reaches_memory:
            raise CannotBeCut("its forward takes .data or an array of a tensor, where it could write unseen")
        self.sample_bytes = max(1, seen.largest_bytes // len(few))
        return samples if seen.reads_values else slice_size_for(samples, self.sample_bytes)

    def _mode(self) -> AbstractContextManager[object]:
        return torch.no_grad()  # not inference mode: its tensors do not count how often they were written to

    def _laid_out(self, part: Batch) -> Batch:
        return channels_last(part) if self._channels_last else part

    def _start(self, parent: RankVector, change: Change) -> int:
        """The number of the first changed call as the first pass counted; a guess where control flow is at work."""
        end = len(self._first_call)
        return min(
            (self._first_call.get(index, end) for index, rank in change.items() if rank != parent[index]), default=end
        )

    def _in_order(self, children: list[Child]) -> list[Child]:
        """The latest change first."""
        return sorted(children, key=lambda child: -child.start)

    def _open_slice(self, parent: RankVector, part: Batch) -> Callable[[Child], object]:
        memory = RememberedCalls(self._limit_bytes, self.written)

        def run(child: Child) -> object:
            memory.begin()
            self._memory, self._parent, self._ranks = memory, parent, child.ranks
            try:
                return run_model(self._model, part.inputs)
            finally:
                self._memory = None

        return run

    def _take_over_calls(self) -> None:
        """Makes slots, and the largest modules without slots, ask this scorer for what they return.

        Their `forward` is replaced in the instance, as torch allows.
        """
        for index, slot in enumerate(self._slots):
            slot.__dict__["forward"] = partial(self._call_slot, index)
        for module in {id(module): module for module in _without_slots(self._model)}.values():
            module.__dict__["forward"] = partial(self._call_module, module, module.forward)

    def _call_slot(self, index: int, input: torch.Tensor) -> torch.Tensor:
        """The argument is called what torch's layers call it."""
        self._first_call.setdefault(index, len(self._first_call))
        compute = self._computation(index, self._ranks)
        if self._memory is None:
            return compute(input)
        if self._ranks[index] != self._parent[index]:
            self._memory.diverge()
        output: torch.Tensor = self._memory.call(self._slots[index], lambda: compute(input))
        return output

    def _call_module(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._memory is None:
            return forward(*args, **kwargs)
        return self._memory.call(module, lambda: forward(*args, **kwargs), (args, kwargs))

    def _computation(self, index: int, ranks: RankVector) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda inputs: self._prepared.forward(self._slots[index], ranks[index])(inputs)


def _without_slots(model: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a model that have no slot in them."""
    for part in model.children():
        if not any(isinstance(one, Slot) for one in part.modules()):
            if not isinstance(part, torch.jit.ScriptModule):
                yield part
        elif not isinstance(part, Slot):
            yield from _without_slots(part)
