"""Scores candidates as the resuming way does, and has children that go on alike go on together, in one launch.

A child that differs from its parent in one layer takes the parent's ranks again in all layers after it. So at every
layer the networks under way are sorted by their rank there, and those of one rank are laid behind each other along the
batch's dimension: a layer is called once for every rank that occurs, not once for every child. That is for GPUs, which
a single child of a small network leaves idle; on a CPU the cache is worth more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from search_spaces.rank_space import Rank, RankVector
from workers.batch import Batch
from workers.forward_graph import CannotBeCut, Env, ForwardGraph
from workers.memory_reuse import Shape
from workers.resuming_scorer import ResumingScorer, in_float32
from workers.sliced_scorer import Child, Look, Passes

__all__ = ["JoiningScorer"]

TOGETHER_BYTES = 1 << 30
"""Of activations that go through the network together on a CPU; on a GPU half of what is free."""

LIVE = 4
"""Values as large as the largest activation that one network under way may hold at once: a layer's input and output,
what a sum still needs, and a copy while they are laid behind each other."""


class JoiningScorer(ResumingScorer):
    """Holds one model as a graph of steps, and the validation batch in slices; as `ResumingScorer`, which see.

    Kernels may be chosen by the number of samples in a call, so that the last digits of a score can depend on which
    children came with it.

    Raises:
        CannotBeCut: the forward calls a layer more than once, keeps a value over a layer in which samples do not lie
            one behind the other, or does not return tensors of one entry a sample.
    """

    def _first_pass(self, batch: Batch) -> list[Shape | None]:
        """As its parent's; finds out what of every value belongs to a sample."""
        shapes = super()._first_pass(batch)
        calls = [step.slot for step in self._graph.steps if step.slot is not None]
        if len(calls) > len(self._calls):
            raise CannotBeCut("joined, its forward must call every layer once")
        two, three = (self._values(batch, samples) for samples in (2, 3))
        self._by_sample = [_grows(*pair) for pair in zip(two, three, strict=True)]
        if not _all_grow(two[-1], three[-1]):
            raise CannotBeCut("joined, its output must be tensors with one entry a sample")
        for index in _held_over_cuts(self._graph, {start for start, _ in self._calls}):
            if not self._by_sample[index] and _kind(two[index]) != _kind(three[index]):
                name = self._graph.steps[index].name
                raise CannotBeCut(f"joined, its {name} would be needed for each network by itself")
        self._together = max(1, self._memory() // (LIVE * self.sample_bytes))  # samples
        return shapes

    def _values(self, batch: Batch, samples: int) -> list[Any]:
        """What the steps give for so many samples, the batch's first ones over and over: forms in place of tensors."""
        few = self._laid_out(batch.at(torch.arange(samples, device=self._device) % len(batch)))
        env = self._graph.begin(few.inputs)
        found: list[Any] = []
        with torch.no_grad():
            for index, step in enumerate(self._graph.steps):
                env[index] = step.run(env)
                found.append(fx.node.map_aggregate(env[index], _form))
                for dead in step.free:
                    env[dead] = None
        return found

    def _memory(self) -> int:
        """Bytes that activations may take."""
        if self._device.type != "cuda":
            return TOGETHER_BYTES
        free, _ = torch.cuda.mem_get_info(self._device)
        return free // 2

    def _visit(self, parent: RankVector, children: list[Child], slices: Any, look: Look) -> list[Child]:
        """As its parent's; the time, which is of all together, is shared out evenly."""
        super()._visit(parent, children, slices, look)
        each = sum(child.seconds for child in children) / max(1, len(children))
        for child in children:
            child.seconds = each
        return children

    def _open_slice(self, parent: RankVector, part: Batch, children: list[Child]) -> Passes:
        """As many together as memory holds; fewer from then on where it turns out to hold less."""
        left = children
        while left:
            count = max(1, self._together // len(part))
            some = left[:count]
            try:
                ended = list(self._pass(part, some))
            except torch.OutOfMemoryError as error:
                if len(some) > 1:
                    self._together = len(part) * (len(some) // 2)
                    continue
                ended = [(some[0], error)]
            left = left[count:]
            yield from ended

    def _pass(self, part: Batch, children: list[Child]) -> Passes:
        """One pass of all children, layer by layer."""
        steps, size = len(self._graph.steps), len(part)
        starts = [*(start for start, _ in self._calls), steps]
        bunches = [_Bunch(self._graph.begin(part.inputs), [children])]
        yield from self._run(bunches, 0, starts[0])
        for (start, index), stop in zip(self._calls, starts[1:], strict=True):
            bunches = [self._bunch(picks, size) for picks in _picked_by_rank(bunches, index)]
            yield from self._run(bunches, start, stop)
        for bunch in bunches:
            outputs = bunch.env[-1] if self._dtype is None else in_float32(bunch.env[-1])
            for place, alike in enumerate(bunch.networks):
                piece = _piece(outputs, place * size, (place + 1) * size)
                yield from ((child, piece) for child in alike)

    def _run(self, bunches: list[_Bunch], start: int, stop: int) -> Passes:
        """Takes all through some steps; those that fail end here, and leave the list."""
        for bunch in list(bunches):
            try:
                self._ranks = bunch.networks[0][0].ranks
                self._graph.run(bunch.env, start, stop)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # all of them share these steps
                bunches.remove(bunch)
                yield from ((child, error) for alike in bunch.networks for child in alike)

    def _bunch(self, picks: list[_Pick], size: int) -> _Bunch:
        """Networks of several bunches as one, in this order; the values of one whole bunch are taken as they are.

        Args:
            size: samples of the slice.
        """
        networks = [pick.children for pick in picks]
        runs = _runs(picks)
        (first, start, stop), *others = runs
        if not others and (start, stop) == (0, len(first.networks)):
            return _Bunch(first.env.copy(), networks)
        env: Env = [None] * len(first.env)
        for index, value in enumerate(first.env):
            if value is not None and self._by_sample[index]:
                env[index] = _laid_behind([one.env[index][a * size : b * size] for one, a, b in runs])
            elif value is not None:
                env[index] = _the_same([one.env[index] for one, _, _ in runs])
        return _Bunch(env, networks)


@dataclass
class _Bunch:
    """Networks under way together, which have taken one rank in the last layer.

    Attributes:
        env: their values; where they belong to samples, one network's behind the other's.
        networks: by place, the children that share its values so far.
    """

    env: Env
    networks: list[list[Child]]


@dataclass(frozen=True)
class _Pick:
    """Children that share the values at one place of a bunch, and go on with one rank."""

    bunch: _Bunch
    place: int
    children: list[Child]


def _picked_by_rank(bunches: Sequence[_Bunch], index: int) -> list[list[_Pick]]:
    """All children by their rank in a layer, in the order in which their values lie."""
    found: dict[Rank | None, list[_Pick]] = {}
    for bunch in bunches:
        for place, alike in enumerate(bunch.networks):
            by_rank: dict[Rank | None, list[Child]] = {}
            for child in alike:
                by_rank.setdefault(child.ranks[index], []).append(child)
            for rank, children in by_rank.items():
                found.setdefault(rank, []).append(_Pick(bunch, place, children))
    return list(found.values())


def _runs(picks: Sequence[_Pick]) -> list[tuple[_Bunch, int, int]]:
    """Places from, up to and not including, that lie behind each other in one bunch."""
    found: list[tuple[_Bunch, int, int]] = []
    for pick in picks:
        if found and found[-1][0] is pick.bunch and found[-1][2] == pick.place:
            found[-1] = (pick.bunch, found[-1][1], pick.place + 1)
        else:
            found.append((pick.bunch, pick.place, pick.place + 1))
    return found


def _laid_behind(pieces: list[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _the_same(values: list[Any]) -> Any:
    """A value that belongs to no sample, which all bunches have."""
    first, *others = values
    for other in others:
        if other is not first and not _equal(first, other):
            raise RuntimeError("joined, networks differ in a value that belongs to no sample")
    return first


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _piece(outputs: Any, start: int, stop: int) -> Any:
    """One network's outputs."""
    return fx.node.map_aggregate(outputs, lambda one: one[start:stop] if isinstance(one, torch.Tensor) else one)


@dataclass(frozen=True)
class _Form:
    """Of a tensor: all but its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _form(value: Any) -> Any:
    return _Form(tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


def _grows(two: Any, three: Any) -> bool:
    """Whether a step's value, for two and for three samples, is a tensor with one entry a sample."""
    if not (isinstance(two, _Form) and isinstance(three, _Form)):
        return False
    return two.shape[:1] == (2,) and three.shape == (3, *two.shape[1:])


def _all_grow(two: Any, three: Any) -> bool:
    """Whether an output is made of such tensors alone."""
    if isinstance(two, Mapping) and isinstance(three, Mapping):
        return len(two) > 0 and all(_all_grow(two[name], three[name]) for name in two)
    if isinstance(two, tuple | list) and isinstance(three, tuple | list):
        return len(two) > 0 and all(_all_grow(*pair) for pair in zip(two, three, strict=True))
    return _grows(two, three)


def _kind(value: Any) -> Any:
    """What must not depend on the number of samples where a value belongs to none."""
    return value if isinstance(value, _Form | bool | int | float | str | type(None)) else object()


def _held_over_cuts(graph: ForwardGraph, cuts: set[int]) -> Iterator[int]:
    """Steps whose values are still needed where the networks are sorted."""
    alive: set[int] = set()
    needed: set[int] = set()
    for index, step in enumerate(graph.steps):
        if index in cuts:
            needed |= alive
        alive.add(index)
        alive -= set(step.free)
    return iter(sorted(needed))
