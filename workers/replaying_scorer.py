"""Scores candidates by running the model's own forward, without computing again what a child shares with its parent.

It needs nothing of the forward but that it is a function of its inputs: control flow, dicts, `*args` and modules that
torch.fx does not look into are all right, because the forward runs as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme
from workers.batch import Batch, logits, run_model
from workers.causes import cause
from workers.early_stop import StopRule
from workers.forward_watch import watch
from workers.out_of_place import CannotBeCut
from workers.prepared_layer import PREPARED_BYTES, PreparedLayers
from workers.repeatability import same_outputs
from workers.scorer import Metric
from workers.sliced_scorer import Child, Passes, SlicedScorer, slice_size_for
from workers.slot import open_slots

__all__ = ["ReplayingScorer"]

REMEMBERED_BYTES = 256 << 20
"""Activations of one slice that may be remembered, by default."""


class ReplayingScorer(SlicedScorer):
    """Holds one model whose layers remember what they gave the parent, and the validation batch in slices.

    The calls of layers are counted as the forward makes them. Until a child calls a layer that differs from the
    parent's, its forward sees exactly what the parent's saw; so those calls return what the parent's returned, and
    only what lies between layers (norms, activations, attention) is computed again. The child with the latest change
    goes first and leaves what it computed on the way to the others.

    Memory: `limit_bytes` of remembered outputs of one slice, and what one forward pass of a slice takes. A call
    whose output does not fit is computed again by every child; the earliest calls, which serve most children, are
    remembered first. A forward that reads values (`if x.sum() > 0`) gets the whole batch at once unless `slice_size`
    is given, because its control flow may depend on all samples; its children are never stopped early.

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
        stop_rule: of the objective, where children may be stopped early: the metric is `accuracy` then, every sample
            has one label, and no user chose the slices.

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
        stop_rule: StopRule | None = None,
    ) -> None:
        super().__init__(metric, stop_rule)
        self._model = model.eval().requires_grad_(False)
        self._slots = open_slots(self._model, list(layers), list(schemes), dict(factors))
        self._limit_bytes, self._prepared_bytes = limit_bytes, prepared_bytes
        self._dense: RankVector = (None,) * len(self._slots)
        self._first_call: dict[int, int] = {}
        self.written: set[int] = set()
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
                outputs = self._outputs_of(self._dense, self._laid_out(few))
            except Exception:
                return None
            return logits(outputs).clone()

    def _slice_size(self, few: Batch, samples: int) -> int:
        """Watches a pass of a few samples: the order of calls, the largest activation, and what forbids slices."""
        self._answer_with(self._note_call)
        try:
            with self._mode():
                seen = watch(lambda: run_model(self._model, self._laid_out(few).inputs))
        except Exception as error:
            raise CannotBeCut(f"its forward does not run on {len(few)} samples ({cause(error)})") from None
        if seen.reaches_memory:
            raise CannotBeCut("its forward takes .data or an array of a tensor, where it could write unseen")
        self.sample_bytes = max(1, seen.largest_bytes // len(few))
        if seen.reads_values:
            self._stop_rule = None
        return samples if seen.reads_values else slice_size_for(samples, self.sample_bytes, few.labels.device)

    def _note_call(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        self._first_call.setdefault(index, len(self._first_call))
        return self._computation(index, self._dense)(inputs)

    def _mode(self) -> AbstractContextManager[object]:
        return torch.no_grad()  # not inference mode: its tensors do not count how often they were written to

    def _laid_out(self, part: Batch) -> Batch:
        return part.channels_last() if self._channels_last else part

    def _open_slice(self, parent: RankVector, part: Batch, children: list[Child]) -> Passes:
        """The latest change first."""
        replay = _Replay(parent, self._limit_bytes, self.written)
        for child in sorted(children, key=lambda one: -self._first_changed_call(parent, one.ranks)):
            replay.begin(child.ranks)
            self._answer_with(partial(self._replayed, replay, child.ranks))
            try:
                outputs = run_model(self._model, part.inputs)
            except Exception as error:  # one bad candidate never ends a run
                yield child, error
            else:
                yield child, outputs

    def _replayed(self, replay: _Replay, ranks: RankVector, index: int, inputs: torch.Tensor) -> torch.Tensor:
        return replay.call(index, self._computation(index, ranks), inputs)

    def _first_changed_call(self, parent: RankVector, ranks: RankVector) -> int:
        """The number of the first changed call as the first pass counted; a guess where control flow is at work."""
        end = len(self._first_call)
        pairs = enumerate(zip(parent, ranks, strict=True))
        return min((self._first_call.get(index, end) for index, (old, new) in pairs if old != new), default=end)

    def _computation(self, index: int, ranks: RankVector) -> _Compute:
        return lambda inputs: self._prepared.forward(self._slots[index], ranks[index])(inputs)

    def _answer_with(self, answer: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        """From now on a call of the slot `index` gives what `answer` does."""
        for index, slot in enumerate(self._slots):
            # In the instance, as torch allows; the argument is called what torch's layers call it.
            slot.__dict__["forward"] = partial(_answer_call, answer, index)


_Compute = Callable[[torch.Tensor], torch.Tensor]


def _answer_call(answer: Callable[[int, torch.Tensor], torch.Tensor], index: int, input: torch.Tensor) -> torch.Tensor:
    return answer(index, input)


@dataclass
class _Remembered:
    """What one call of the parent's layer `index` returned; how often that was written to when it was handed out."""

    index: int
    output: torch.Tensor
    version: int


class _Replay:
    """One slice of the batch: the outputs of the parent's layers, in the order of the calls.

    Args:
        parent: whose they are.
        limit_bytes: that they may take.
        written: numbers of the calls whose output the forward writes to; found here, and kept by who made this.
    """

    def __init__(self, parent: RankVector, limit_bytes: int, written: set[int]) -> None:
        self._parent, self._left, self._written = parent, limit_bytes, written
        self._remembered: dict[int, _Remembered] = {}
        self._ranks, self._calls, self._shares = parent, 0, True

    def begin(self, ranks: RankVector) -> None:
        """A new pass, of a child."""
        self._forget_written()
        self._ranks, self._calls, self._shares = ranks, 0, True

    def call(self, index: int, compute: _Compute, inputs: torch.Tensor) -> torch.Tensor:
        """The output of the layer `index`, called next."""
        self._shares = self._shares and self._ranks[index] == self._parent[index]
        if not self._shares:
            return compute(inputs)
        number = self._calls
        self._calls += 1
        kept = self._remembered.get(number)
        if kept is not None:
            if kept.index != index:
                raise RuntimeError("the forward calls layers in another order than before, with the same inputs")
            return kept.output.clone() if number in self._written else kept.output
        output = compute(inputs)
        if _bytes(output) > self._left:
            return output
        if output.is_inference():  # made in the forward's own inference mode: it does not count writes
            self._written.add(number)
        self._left -= _bytes(output)
        if number not in self._written:
            self._remembered[number] = _Remembered(index, output, output._version)
            return output
        self._remembered[number] = _Remembered(index, output, 0)
        return output.clone()

    def _forget_written(self) -> None:
        """Outputs that the last pass wrote to are no more what the parent's layers gave: from now on, clones go out."""
        for number, kept in list(self._remembered.items()):
            if number not in self._written and kept.output._version != kept.version:
                self._written.add(number)
                self._left += _bytes(kept.output)
                del self._remembered[number]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
