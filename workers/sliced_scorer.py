"""What the fast ways of scoring share: slices of the batch outside, the children of one parent inside."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch

from search_spaces.candidates import Score, Status
from search_spaces.rank_space import RankVector
from workers.batch import Batch, logits
from workers.causes import cause
from workers.early_stop import OrderedSlice, SampleOrders, StopRule, Tally, ordered_slices
from workers.scorer import Change, Metric, child_of, judge

__all__ = ["SLICE_BYTES", "Child", "Look", "Passes", "SlicedScorer", "slice_size_for"]

SLICE_BYTES = 3 << 20
"""Largest activation of a slice, so that a layer finds in the cache much of what the last one wrote.

Measured on CIFAR ResNets of 20 and 56 layers, one thread with 2 MiB of second-level cache: slices a third of this take
1.1 to 1.15 times as long, because of the cost of each call; beyond 4 MiB memory is slower than the cache.
"""

GPU_SLICE_BYTES = 256 << 20
"""The same on a GPU, where what counts is that a launch has enough to do."""

_NOT_FINITE = "the network's outputs are not finite"
_CPU = torch.device("cpu")


@dataclass
class Child:
    """A child on its way through the slices.

    Attributes:
        ranks: its rank vector.
        totals: by name, values times samples so far.
        seconds: spent on it so far.
        failure: why it has no score, once that is known.
    """

    ranks: RankVector
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failure: Score | None = None

    def fail(self, status: Status, reason: str) -> None:
        """No further slice is run for it."""
        self.failure = Score(self.ranks, status=status, reason=reason)

    def stop(self, tally: Tally) -> None:
        """No further slice is run for it: it is certain to miss its bound."""
        self.failure = Score(self.ranks, status="stopped", reason=tally.reason, at_most=tally.at_most)

    def score(self, size: int) -> Score:
        """Its score over `size` samples.

        Totals are rounded to 1e-9: children with the same number of hits in different slices must tie exactly, as
        they do where the batch is judged at once.
        """
        if self.failure is not None:
            return replace(self.failure, seconds=self.seconds)
        return Score(self.ranks, {name: round(total, 9) / size for name, total in self.totals.items()}, self.seconds)


Passes = Iterator[tuple[Child, object]]
"""Children as their passes end, each with the outputs of its network, or with the exception that ended it."""

Look = Callable[[Child, object, int], None]
"""Takes a child, its outputs, and the number of the slice."""


class SlicedScorer(ABC):
    """Scores children slice by slice, so that what they share of their parent is held for one slice only.

    That bounds memory however large the batch is: nothing grows with it but the inputs, the labels and the dense
    network's log-probabilities. The slices have `slice_size` samples where the user says so.

    Attributes:
        sample_bytes: of the largest activation of one sample, as far as it was seen.
    """

    sample_bytes: int

    def __init__(self, metric: Metric, stop_rule: StopRule | None) -> None:
        self._metric = metric
        self._slices: list[Batch] = []
        self._references: list[torch.Tensor] = []
        self._stop_rule = stop_rule
        self._orders = SampleOrders()

    @property
    def slice_sizes(self) -> list[int]:
        """Samples of every slice."""
        return [len(part) for part in self._slices]

    @property
    def stops_early(self) -> bool:
        """Whether children are stopped that cannot reach their bounds."""
        return self._stop_rule is not None

    def score(
        self, parent: RankVector, changes: Sequence[Change], bounds: Sequence[float | None] | None = None
    ) -> list[Score]:
        """Scores the children of one parent, each given by how it differs from it; in their order.

        A child whose forward raises, or whose outputs are not finite, gets a score that says so.

        Args:
            bounds: by child, see `Bound`; a child that is certain to be below is stopped. None stops nobody.
        """
        if bounds is not None and self._stop_rule is not None:
            return self._score_until_hopeless(self._stop_rule, parent, changes, bounds)

        def look(child: Child, outputs: object, position: int) -> None:
            part = self._slices[position]
            values = judge(outputs, part, self._metric, self._references[position])
            if values is None:
                child.fail("nan", _NOT_FINITE)
                return
            for name, value in values.items():
                child.totals[name] = child.totals.get(name, 0.0) + value * len(part)

        size = sum(self.slice_sizes)
        return [child.score(size) for child in self._visit(parent, _children(parent, changes), self._slices, look)]

    def outputs(self, parent: RankVector, changes: Sequence[Change]) -> list[torch.Tensor | None]:
        """The children's logits on the whole batch, `(N, ...)`; None for a child whose forward raises."""
        found: dict[int, list[torch.Tensor]] = {}

        def look(child: Child, outputs: object, _position: int) -> None:
            found.setdefault(id(child), []).append(logits(outputs).clone())

        children = self._visit(parent, _children(parent, changes), self._slices, look)
        return [None if child.failure is not None else torch.cat(found[id(child)]) for child in children]

    def _score_until_hopeless(
        self, rule: StopRule, parent: RankVector, changes: Sequence[Change], bounds: Sequence[float | None]
    ) -> list[Score]:
        """Scores slice by slice, the hardest samples of the parent first, and stops who is certain to miss its bound.

        Which order it is decides how soon a child is stopped, and nothing about the score of one that is not.
        """
        order = self._orders.of(parent)
        if order is None:
            self._sum_up(rule, parent, [Child(parent)], [None], torch.arange(self._size))
            order = self._orders.of(parent)
        children = _children(parent, changes)
        self._sum_up(rule, parent, children, bounds, torch.arange(self._size) if order is None else order)
        return [child.score(self._size) for child in children]

    def _sum_up(
        self,
        rule: StopRule,
        parent: RankVector,
        children: list[Child],
        bounds: Sequence[float | None],
        order: torch.Tensor,
    ) -> None:
        """Gives every child its totals, or the reason why there are none."""
        tallies = {
            id(child): Tally(rule, -math.inf if bound is None else bound, self._size)
            for child, bound in zip(children, bounds, strict=True)
        }
        at_hand: list[OrderedSlice] = []

        def parts() -> Iterable[Batch]:
            for one in ordered_slices(self._batch, self._all_references, order):
                at_hand[:] = [one]
                yield self._laid_out(one.part)

        def look(child: Child, outputs: object, _position: int) -> None:
            values = at_hand[0].values(outputs)
            if values is None:
                child.fail("nan", _NOT_FINITE)
                return
            tally = tallies[id(child)]
            tally.add(at_hand[0].places, values)
            if tally.hopeless:
                child.stop(tally)

        self._visit(parent, children, parts(), look)
        for child in children:
            if child.failure is None:
                child.totals = tallies[id(child)].totals()
                self._orders.remember(child.ranks, tallies[id(child)].hardness())

    def _visit(self, parent: RankVector, children: list[Child], slices: Iterable[Batch], look: Look) -> list[Child]:
        """Takes every slice through all children that have not failed; none once all have. Returns the children."""
        left = children
        if not left:
            return children
        with self._mode():
            for position, part in enumerate(slices):
                started = time.perf_counter()
                for child, outputs in self._open_slice(parent, part, left):
                    _take(child, outputs, look, position)
                    ended = time.perf_counter()
                    child.seconds += ended - started
                    started = ended
                left = [child for child in left if child.failure is None]
                if not left:
                    break
        return children

    def _set_slices(self, batch: Batch, slice_size: int, dense: RankVector) -> None:
        """Cuts the batch, and keeps the dense network's log-probabilities in float32 for every slice."""
        self._batch, self._size = batch, len(batch)
        found = []
        with self._mode():
            self._slices = [self._laid_out(part) for part in batch.split(slice_size)]
            for part in self._slices:
                found.append(torch.log_softmax(logits(self._outputs_of(dense, part)).float(), dim=-1))
        self._all_references = torch.cat(found)
        self._references = list(self._all_references.split(slice_size))

    @abstractmethod
    def _mode(self) -> AbstractContextManager[object]:
        """In which mode of autograd everything runs."""

    @abstractmethod
    def _laid_out(self, part: Batch) -> Batch:
        """The slice as the network takes it, in the memory layout that is fast."""

    @abstractmethod
    def _open_slice(self, parent: RankVector, part: Batch, children: list[Child]) -> Passes:
        """Takes one slice through the children, each of which comes once, in the order that serves them best."""

    def _outputs_of(self, ranks: RankVector, part: Batch) -> object:
        """Of one network on one slice; what its forward raises is raised."""
        ((_, outputs),) = self._open_slice(ranks, part, [Child(ranks)])
        if isinstance(outputs, Exception):
            raise outputs
        return outputs


def _children(parent: RankVector, changes: Sequence[Change]) -> list[Child]:
    return [Child(child_of(parent, change)) for change in changes]


def _take(child: Child, outputs: object, look: Look, position: int) -> None:
    try:
        if isinstance(outputs, Exception):
            raise outputs
        look(child, outputs, position)
    except Exception as error:  # one bad candidate never ends a run
        child.fail("error", cause(error))


def slice_size_for(samples: int, sample_bytes: int, device: torch.device = _CPU) -> int:
    """Samples per slice: as many as keep the largest activation within `SLICE_BYTES`, in slices of like size."""
    most_bytes = SLICE_BYTES if device.type == "cpu" else GPU_SLICE_BYTES
    most = max(1, min(samples, most_bytes // max(1, sample_bytes)))
    slices = -(-samples // most)
    return -(-samples // slices)
