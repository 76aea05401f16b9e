"""The rank space: which ranks every layer may take and what a rank vector costs. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias

__all__ = ["Cost", "LayerRanks", "Rank", "RankSpace", "RankVector"]

Rank: TypeAlias = int
RankVector: TypeAlias = tuple[Rank | None, ...]
"""One rank per layer, in the order of the space; `None` is dense."""


class Cost(Protocol):
    """What a rank vector costs: a sum over layers, so that a child costs its parent plus one difference.

    Attributes:
        name: `parameters`, `macs`, `volume`, ...
        elsewhere: cost of the network outside the layers of the space (grouped or excluded layers);
            part of the whole network's cost, never of C(r).
    """

    name: str
    elsewhere: float

    def of(self, layer: int, rank: Rank | None) -> float:
        """Cost of one layer (by index) at one rank; `None` is the dense layer."""


@dataclass(frozen=True)
class LayerRanks:
    """The ranks of one layer.

    Attributes:
        name: the layer's name in the model.
        full: rank of the full decomposition, min(m, n) of its matrix.
        useful: the largest rank that still shrinks the layer in every cost that counts; 0 if none does.
    """

    name: str
    full: int
    useful: int


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
        """Rank 1 wherever that shrinks a layer."""
        return self.normalise([1] * len(self.layers))

    def normalise(self, ranks: Sequence[Rank | None]) -> RankVector:
        """The rank vector with `None` wherever factorising would not shrink the layer (eq. 3.1's dense fallback)."""
        return tuple(
            rank if rank is not None and rank <= layer.useful else None
            for rank, layer in zip(ranks, self.layers, strict=True)
        )

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

    @cached_property
    def dense_cost(self) -> Mapping[str, float]:
        """Cost of the dense layers, by cost name."""
        return {name: self.cost(name, self.dense) for name in self.costs}
