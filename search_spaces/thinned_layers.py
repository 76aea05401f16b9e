"""What a network costs whose layers lost filters as well as rank: soft counts while they are learned, whole ones after.

For `channel_svd` on a layer of `c` input channels, `d` outputs and `k` kernel positions, at rank r:

    parameters r (k c + d), dense k c d;  multiply-accumulates the same times output positions p;
    activation volume p (r + d), dense p d

Compression is one minus a ratio of sums over layers. (LeSS' eq. 4.10 has k twice and sums ratios; see methods.md.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from search_spaces.costs import COST_NAMES
from search_spaces.layers import Layer

__all__ = ["Channels", "ThinnedLayer", "ThinnedNetwork", "thinned_layer"]


@dataclass(frozen=True)
class Channels:
    """One side of a layer.

    Attributes:
        fixed: channels that stay.
        groups: (group, channels of this side for each of the group's), for those that go with a group's filters.
    """

    fixed: int
    groups: tuple[tuple[int, int], ...] = ()

    def count(self, sizes: Sequence[Any]) -> Any:
        """Channels left where groups have these sizes: numbers, or differentiable tensors."""
        return self.fixed + sum(sizes[group] * each for group, each in self.groups)


@dataclass(frozen=True)
class ThinnedLayer:
    """A layer whose channels depend on groups of filters.

    Attributes:
        inputs, outputs: its sides.
        kernel: positions of the kernel.
        positions: outputs of one filter in a forward pass of one sample.
    """

    inputs: Channels
    outputs: Channels
    kernel: int
    positions: int

    def dense(self, cost: str, sizes: Sequence[Any]) -> Any:
        """Cost of the layer as it is."""
        outputs = self.outputs.count(sizes)
        if cost == "volume":
            return self.positions * outputs
        return self._times(cost) * self.kernel * self.inputs.count(sizes) * outputs

    def factored(self, cost: str, sizes: Sequence[Any], rank: Any) -> Any:
        """Cost of two stages with `rank` channels between them."""
        outputs = self.outputs.count(sizes)
        if cost == "volume":
            return self.positions * (rank + outputs)
        return self._times(cost) * rank * (self.kernel * self.inputs.count(sizes) + outputs)

    def _times(self, cost: str) -> int:
        return self.positions if cost == "macs" else 1


def thinned_layer(layer: Layer, inputs: Channels, outputs: Channels) -> ThinnedLayer:
    """A layer with these sides."""
    dense = layer.dense
    positions = layer.volume((dense,)) // dense.out_channels
    return ThinnedLayer(inputs, outputs, dense.kernel[0] * dense.kernel[1], positions)


@dataclass(frozen=True)
class ThinnedNetwork:
    """The budget of a network of such layers.

    A `Price` whose variables are the groups and then the layers: level n of a group leaves n + 1 filters, level n of a
    layer is rank n + 1. A layer stays dense where its rank does not lower every cost of the budget.

    Attributes:
        layers: in the space's order.
        sizes: filters of each group.
        targets: (cost, C_d) of every limit; costs of `COST_NAMES`.
    """

    layers: tuple[ThinnedLayer, ...]
    sizes: tuple[int, ...]
    targets: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        unknown = [cost for cost, _ in self.targets if cost not in COST_NAMES]
        if unknown:
            raise ValueError(f"{unknown[0]} does not follow from shapes; known: {', '.join(COST_NAMES)}")

    @cached_property
    def whole(self) -> tuple[float, ...]:
        """What the dense network costs, by limit."""
        return tuple(sum(layer.dense(cost, self.sizes) for layer in self.layers) for cost, _ in self.targets)

    @cached_property
    def full(self) -> tuple[int, ...]:
        """By layer, the rank of the full decomposition."""
        return tuple(
            min(layer.outputs.count(self.sizes), layer.kernel * layer.inputs.count(self.sizes)) for layer in self.layers
        )

    @cached_property
    def factorable(self) -> tuple[bool, ...]:
        """By layer, whether rank 1 lowers every cost of the budget; under a budget of volume no rank does."""
        return tuple(self.shrinks(layer, self.sizes, 1) for layer in range(len(self.layers)))

    def soft(self, sizes: Sequence[Any], ranks: Sequence[Any]) -> list[Any]:
        """By limit, the share of the dense network's cost, B.

        Every layer that can be factored counts as factored, so that every rank counts; above break-even it costs more
        than the dense layer.
        """
        shares = []
        for (cost, _), whole in zip(self.targets, self.whole, strict=True):
            parts = [
                layer.factored(cost, sizes, rank) if factorable else layer.dense(cost, sizes)
                for layer, factorable, rank in zip(self.layers, self.factorable, ranks, strict=True)
            ]
            shares.append(sum(parts) / whole)
        return shares

    def shrinks(self, layer: int, sizes: Sequence[int], rank: int) -> bool:
        """Whether a rank lowers every cost of the budget."""
        shape = self.layers[layer]
        return all(shape.factored(cost, sizes, rank) < shape.dense(cost, sizes) for cost, _ in self.targets)

    def ranks(self, levels: Sequence[int]) -> tuple[int | None, ...]:
        """The layers' ranks at these levels; None is dense."""
        sizes = self.kept(levels)
        chosen = (level + 1 for level in levels[len(self.sizes) :])
        return tuple(rank if self.shrinks(index, sizes, rank) else None for index, rank in enumerate(chosen))

    def kept(self, levels: Sequence[int]) -> tuple[int, ...]:
        """The groups' filters at these levels."""
        return tuple(level + 1 for level in levels[: len(self.sizes)])

    def compression(self, cost: str, sizes: Sequence[int], ranks: Sequence[int | None]) -> float:
        """C over the space's layers, of any shape cost."""
        whole = sum(layer.dense(cost, self.sizes) for layer in self.layers)
        left = sum(self._cost(index, cost, sizes, rank) for index, rank in enumerate(ranks))
        return float(1 - left / whole)

    def used(self, levels: Sequence[int]) -> tuple[float, ...]:
        """The share of every limit in use."""
        totals = [0.0] * len(self.targets)
        for layer in range(len(self.layers)):
            for limit, cost in enumerate(self._costs(layer, levels)):
                totals[limit] += cost
        return tuple(total / allowed for total, allowed in zip(totals, self._allowed, strict=True))

    def used_after(
        self, levels: Sequence[int], used: tuple[float, ...], variable: int, level: int
    ) -> tuple[float, ...]:
        """The share in use once one variable has changed."""
        changed = [*levels[:variable], level, *levels[variable + 1 :]]
        after = list(used)
        for layer in self._affected[variable]:
            pairs = zip(self._costs(layer, changed), self._costs(layer, levels), self._allowed, strict=True)
            for limit, (new, old, allowed) in enumerate(pairs):
                after[limit] += (new - old) / allowed
        return tuple(after)

    @cached_property
    def _allowed(self) -> tuple[float, ...]:
        return tuple((1 - target) * whole for (_, target), whole in zip(self.targets, self.whole, strict=True))

    @cached_property
    def _affected(self) -> tuple[tuple[int, ...], ...]:
        """By variable, the layers whose cost depends on it."""
        by_group = tuple(
            tuple(
                index
                for index, layer in enumerate(self.layers)
                if any(one == group for one, _ in (*layer.inputs.groups, *layer.outputs.groups))
            )
            for group in range(len(self.sizes))
        )
        return (*by_group, *((index,) for index in range(len(self.layers))))

    def _costs(self, layer: int, levels: Sequence[int]) -> list[float]:
        sizes, level = self.kept(levels), levels[len(self.sizes) + layer]
        rank = level + 1 if self.shrinks(layer, sizes, level + 1) else None
        return [self._cost(layer, cost, sizes, rank) for cost, _ in self.targets]

    def _cost(self, layer: int, cost: str, sizes: Sequence[int], rank: int | None) -> float:
        shape = self.layers[layer]
        return float(shape.dense(cost, sizes) if rank is None else shape.factored(cost, sizes, rank))
