"""The rank space: which ranks every layer may take and what a rank vector costs. Pure Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

__all__ = ["Cost", "LayerRanks", "Rank", "RankSpace", "RankVector", "number", "rank_from", "rank_vector_from"]

Rank: TypeAlias = int | tuple[int, ...]
"""How far one layer is truncated: a number, or `(k, j)` where the layer is sliced (k slices, rank j in each)."""

RankVector: TypeAlias = tuple[Rank | None, ...]
"""One rank per layer, in the order of the space; `None` is dense."""


def number(rank: Rank) -> int:
    """The rank of a scheme whose ranks are numbers.

    Raises:
        TypeError: it is a tuple, the rank of another scheme.
    """
    if not isinstance(rank, int):
        raise TypeError(f"expected a number as rank, got {rank}")
    return rank


def rank_from(value: Any) -> Rank | None:
    """A rank as JSON or Parquet gives it back: a number, a list of numbers (one alone is a number), or nothing."""
    if isinstance(value, Iterable):
        numbers = tuple(int(one) for one in value)
        return numbers if len(numbers) > 1 else numbers[0]
    return None if value is None or value != value else int(value)


def rank_vector_from(values: Iterable[Any]) -> RankVector:
    """A rank vector as JSON or Parquet gives it back."""
    return tuple(rank_from(value) for value in values)


class Cost(Protocol):
    """What a rank vector costs: a sum over layers, so that a child costs its parent plus one difference.

    It may be any number, and need neither grow with the rank nor lie below the dense layer's.
    """

    @property
    def name(self) -> str:
        """`parameters`, `macs`, `volume`, `latency@orin`, ..."""

    @property
    def elsewhere(self) -> float:
        """Of the network outside the space's layers (grouped or excluded ones): part of its cost, never of C(r)."""

    def of(self, layer: int, rank: Rank | None) -> float:
        """Cost of one layer (by index) at one rank; `None` is the dense layer."""


@dataclass(frozen=True)
class LayerRanks:
    """The ranks of one layer as a ladder: the higher a rung, the higher its cost and the smaller its error.

    Attributes:
        name: the layer's name in the model.
        full: the highest rung; where rungs are the ranks themselves, the rank of the full decomposition.
        useful: the highest rung that still shrinks the layer in every cost that counts; 0 if none does.
        ladder: the ranks of the rungs 1 to `useful` where they are not just these numbers.
    """

    name: str
    full: int
    useful: int
    ladder: tuple[Rank, ...] | None = None

    def at(self, rung: int) -> Rank | None:
        """The rank of a rung; None (dense) above `useful`, where factorising would not shrink the layer."""
        if rung > self.useful:
            return None
        return rung if self.ladder is None else self.ladder[rung - 1]

    @property
    def offered(self) -> Sequence[Rank]:
        """Every rank that shrinks the layer, from the lowest rung up."""
        return range(1, self.useful + 1) if self.ladder is None else self.ladder[: self.useful]

    def below(self, rung: int, step: int) -> int:
        """The rung that a step down leads to, at least 1: so many rungs lower.

        Where a ladder holds only some of the numbers (those just below a device's jumps), a step is still counted in
        ranks: the highest rung whose rank is so much lower, and from a dense layer the highest rung.
        """
        if self.ladder is None or not all(isinstance(rank, int) for rank in self.ladder):
            return max(1, rung - step)
        if rung > len(self.ladder):
            return max(1, min(rung - 1, len(self.ladder)))
        most = number(self.ladder[rung - 1]) - step
        return max(1, sum(number(rank) <= most for rank in self.ladder[: rung - 1]))


@dataclass(frozen=True)
class RankSpace:
    """Every layer's ranks and the costs of a rank vector.

    Attributes:
        layers: in the model's order; rank vectors are aligned to it.
        costs: by name.
    """

    layers: tuple[LayerRanks, ...]
    costs: Mapping[str, Cost] = field(compare=False)

    @property
    def dense(self) -> RankVector:
        """The rank vector of the network as it came."""
        return (None,) * len(self.layers)

    @property
    def smallest(self) -> RankVector:
        """The lowest rung of every layer that has one: rank 1 wherever that shrinks a layer."""
        return self.at([1] * len(self.layers))

    def cheapest(self, name: str) -> RankVector:
        """The rank vector of least cost: each layer by itself, because a measured cost need not grow with the rank."""
        of = self.costs[name].of
        return tuple(
            min((None, *layer.offered), key=lambda rank, index=index: of(index, rank))  # type: ignore[misc]
            for index, layer in enumerate(self.layers)
        )

    def at(self, rungs: Sequence[int]) -> RankVector:
        """The rank vector of one rung per layer: `None` wherever that would not shrink it (eq. 3.1's fallback)."""
        return tuple(layer.at(rung) for layer, rung in zip(self.layers, rungs, strict=True))

    def cost(self, name: str, ranks: RankVector) -> float:
        """Cost of the space's layers at `ranks`; whole numbers stay whole."""
        of = self.costs[name].of
        return sum(of(index, rank) for index, rank in enumerate(ranks))

    def network_cost(self, name: str, ranks: RankVector) -> float:
        """Cost of the whole network: the layers at `ranks` and what lies outside them."""
        return self.cost(name, ranks) + self.costs[name].elsewhere

    def compression(self, name: str, ranks: RankVector) -> float:
        """C(r) = 1 - cost(r) / cost(dense) over the space's layers; the thesis' eq. 3.1 for parameters."""
        return 1.0 - self.cost(name, ranks) / self.dense_cost[name]

    def largest_step(self, name: str) -> float:
        """The most that C(r) changes when one layer moves by one rung."""
        of, widest = self.costs[name].of, 0.0
        for index, layer in enumerate(self.layers):
            costs = [of(index, rank) for rank in (*layer.offered, None)]
            widest = max([widest, *(abs(after - before) for before, after in pairwise(costs))])
        return widest / self.dense_cost[name]

    @cached_property
    def dense_cost(self) -> Mapping[str, float]:
        """Cost of the dense layers, by cost name."""
        return {name: self.cost(name, self.dense) for name in self.costs}
