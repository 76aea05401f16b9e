"""What LeSS and transfer masks share: which filters may go, what is left of the budget, and the smaller network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from search_spaces.assembly import assemble, replace_layers
from search_spaces.budget_filling import Price, fill_budget
from search_spaces.costs import COST_NAMES
from search_spaces.errors import ConfigError, InfeasibleBudgetError
from search_spaces.layers import Layer
from search_spaces.priced_ladders import PricedLadders
from search_spaces.rank_space import LayerRanks, Rank, RankVector, number
from search_spaces.schemes.contract import Factors
from search_spaces.survey import stage_of
from search_spaces.thinned_layers import Channels, ThinnedNetwork, thinned_layer
from workers.batch import Inputs
from workers.batch_norms import reestimate
from workers.training.augmentation import ready
from workers.training.contract import Compressed, Setup
from workers.training.filter_groups import filter_groups
from workers.training.filter_removal import FilterGroup, spread, without_filters
from workers.training.rank_tables import interpolated, rank_tables
from workers.training.samples import generator

__all__ = ["Learned", "Thinned", "Thinning", "example_inputs", "take_statistics"]

TOLERANCE = 0.01
"""Share of the budget that a result may leave unused."""

STATISTICS_BATCHES, STATISTICS_SIZE = 8, 128
"""Training samples over which batch norms' statistics are taken again."""


@dataclass(frozen=True)
class Learned:
    """What was learned of one group's filters, or of one layer's singular values.

    Attributes:
        order: `(n,)`, their numbers, the most valuable first.
        count: how many of them the soft network has.
    """

    order: torch.Tensor
    count: float

    @property
    def worths(self) -> list[float]:
        """By place in the order: the factor that `count` must be multiplied by for the place to be within it."""
        return [max(self.count, 1e-3) / place for place in range(1, len(self.order) + 1)]


@dataclass(frozen=True)
class Thinned:
    """A choice within the budget.

    Attributes:
        kept: per group, `(size,)` booleans.
        ranks: one per layer; None is dense.
        components: one per layer, booleans: the singular values that stay, in a dense layer too.
    """

    kept: tuple[torch.Tensor, ...]
    ranks: RankVector
    components: tuple[torch.Tensor, ...]


class Thinning:
    """The structure of a set-up's network as masks see it, and its budget.

    Where a limit is a measured latency no filter is removed. The table says what a layer with all its filters takes at
    each rank; what it takes with fewer is not in it, and between few channels and many a device's time is no straight
    line: the budget could not be vouched for. Of such a limit ranks alone are learned, their cost is linear between the
    ranks that were measured, and the result has measured ranks only. How close these come is the device's affair: its
    step, not `TOLERANCE`.

    Args:
        setup: of `channel_svd` on every layer: there ranks and filters are independent.
        filters: whether filters may be removed at all.
        method: its name, for messages.

    Attributes:
        groups: the filters that may be removed.
        refused: why others may not, by layer.
        factorable: by layer, whether any rank lowers what the budget limits.

    Raises:
        ConfigError: another scheme.
        InfeasibleBudgetError: no choice meets the budget, or none comes within `TOLERANCE` of one that shapes decide.
    """

    def __init__(self, setup: Setup, method: str, filters: bool = True) -> None:
        other = next((one.name for one in setup.schemes if one.name != "channel_svd"), None)
        if other is not None:
            raise ConfigError("sweep.scheme", f"{method} factorises by channel_svd, got {other}")
        self._setup = setup
        by_shape = all(cost in COST_NAMES for cost, _ in setup.budget.targets)
        self.groups: tuple[FilterGroup, ...] = ()
        self.refused: Mapping[str, str] = {}
        if filters and by_shape:
            names = [layer.name for layer in setup.layers]
            found = filter_groups(setup.network, example_inputs(setup), names)
            self.groups, self.refused = found.groups, found.refused
        self.shapes = ThinnedNetwork(
            tuple(thinned_layer(layer, *_sides(layer, self.groups)) for layer in setup.layers),
            tuple(group.size for group in self.groups),
            setup.budget.targets if by_shape else (),
        )
        self._tables = None if by_shape else rank_tables(setup)
        self._ladders = PricedLadders(setup.space, setup.budget, _ladders(setup.space.layers))
        self.factorable = self.shapes.factorable if by_shape else tuple(bool(one.offered) for one in setup.space.layers)
        self._check(method)

    def shares(self, sizes: Sequence[torch.Tensor], ranks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """By limit, the soft share of the dense network's cost.

        Args:
            sizes: soft number of filters in each group.
            ranks: soft rank of each layer.
        """
        if self._tables is None:
            return self.shapes.soft(sizes, ranks)
        return [interpolated(table, ranks) for table in self._tables]

    def miss(self, sizes: Sequence[torch.Tensor], ranks: Sequence[torch.Tensor]) -> torch.Tensor:
        """(B - B_d)^2 of the limit that is furthest from being met, B and B_d in shares of the dense network's cost.

        On both sides, as in the thesis: masks that overshoot the budget come back to it.
        """
        targets = [1 - target for _, target in self._setup.budget.targets]
        shares = self.shares(sizes, ranks)
        return torch.stack([share - target for share, target in zip(shares, targets, strict=True)]).max().square()

    def choose(self, filters: Sequence[Learned], components: Sequence[Learned]) -> Thinned:
        """The choice that spends the budget.

        All that was learned is scaled alike: soft counts times one factor, so that a network that had not come down to
        the budget keeps its proportions, and one below it grows. Single units fill the rest.

        Args:
            filters: per group.
            components: per layer, its singular values.
        """
        found = self._fill([one.worths for one in filters], [one.worths for one in components])
        assert found is not None, "the least network was found to fit when the method began"
        kept = tuple(_chosen(one.order, count) for one, count in zip(filters, found.filters, strict=True))
        own = tuple(_chosen(one.order, count) for one, count in zip(components, found.components, strict=True))
        return Thinned(kept, found.ranks, own)

    def soft_compression(self, sizes: Sequence[torch.Tensor], ranks: Sequence[torch.Tensor]) -> dict[str, float]:
        """C of the soft counts, by limit."""
        shares = zip(self._setup.budget.targets, self.shares(sizes, ranks), strict=True)
        return {f"soft_{cost}": 1 - float(share) for (cost, _), share in shares}

    def compression(self, thinned: Thinned) -> dict[str, float]:
        """C by cost name; of costs that know ranks alone only where no filter was removed."""
        sizes = [int(mask.sum()) for mask in thinned.kept]
        ranks = [None if rank is None else number(rank) for rank in thinned.ranks]
        found = {name: self.shapes.compression(name, sizes, ranks) for name in COST_NAMES}
        if not self.groups:
            space = self._setup.space
            found |= {name: space.compression(name, thinned.ranks) for name in space.costs}
        return found

    def structure(self, thinned: Thinned) -> dict[str, object]:
        """In JSON's types: the filters kept in every group, by its first layer, and C by cost name."""
        kept = {
            group.root: mask.nonzero().flatten().tolist() for group, mask in zip(self.groups, thinned.kept, strict=True)
        }
        return {"filters": kept, "compression": self.compression(thinned)}

    def architecture(self, compressed: Compressed) -> nn.Module:
        """A network of the shape that `build` gives, uninitialised where it is factorised."""
        kept = []
        for group in self.groups:
            mask = torch.zeros(group.size, dtype=torch.bool)
            mask[compressed.structure["filters"][group.root]] = True
            kept.append(mask)
        network, layers = self.without(copy.deepcopy(self._setup.network).cpu(), kept)
        return replace_layers(network, layers, self._setup.schemes, compressed.ranks)

    def without(self, network: nn.Module, kept: Sequence[torch.Tensor]) -> tuple[nn.Module, tuple[Layer, ...]]:
        """A copy of a network that lacks filters, and its layers."""
        thin = without_filters(network, example_inputs(self._setup), self.groups, kept)
        layers = []
        for layer in self._setup.layers:
            stage = stage_of(thin.get_submodule(layer.name))
            assert stage is not None
            layers.append(replace(layer, dense=stage))
        return thin, tuple(layers)

    def channels_left(self, layer: Layer, kept: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of a layer's input and output channels, `(in,)` and `(out,)` booleans."""
        sides = {"in": torch.ones(layer.dense.in_channels), "out": torch.ones(layer.dense.out_channels)}
        for group, mask in zip(self.groups, kept, strict=True):
            for member in group.members:
                if member.name == layer.name:
                    sides[member.side] = sides[member.side] * spread(member, mask.float(), sides[member.side])
        return sides["in"] > 0, sides["out"] > 0

    def build(
        self, network: nn.Module, layers: Sequence[Layer], factors: Mapping[str, Factors], thinned: Thinned
    ) -> Compressed:
        """The factorised network, its batch norms' statistics taken again.

        Args:
            network, layers: of `without`.
            factors: of those of the layers that have a rank.
        """
        small = assemble(network, layers, self._setup.schemes, thinned.ranks, factors)
        take_statistics(small, self._setup)
        return Compressed(small, thinned.ranks, self.structure(thinned))

    def _fill(self, filters: Sequence[Sequence[float]], components: Sequence[Sequence[float]]) -> _Filled | None:
        """The filled budget; None where not even the least fits."""
        if self._tables is None:
            levels = fill_budget([one[1:] for one in (*filters, *components)], self.shapes, TOLERANCE)
            if levels is None:
                return None
            own = tuple(level + 1 for level in levels[len(self.groups) :])
            return _Filled(self.shapes.kept(levels), self.shapes.ranks(levels), own, max(self.shapes.used(levels)))
        worths = [_of_ladder(ladder, one) for ladder, one in zip(self._ladders.ladders, components, strict=True)]
        levels = fill_budget(worths, self._ladders, TOLERANCE, self._ladders.start())
        if levels is None:
            return None
        ranks = self._ladders.ranks(levels)
        own = tuple(full if rank is None else number(rank) for rank, full in zip(ranks, self.shapes.full, strict=True))
        return _Filled((), ranks, own, max(self._ladders.used(levels)))

    def _check(self, method: str) -> None:
        """Whether the budget can be met, and closely: known before anything is trained."""
        even = [Learned(torch.arange(size), float(size)).worths for size in self.shapes.sizes]
        components = [Learned(torch.arange(full), float(full)).worths for full in self.shapes.full]
        found = self._fill(even, components)
        if found is not None and (self._tables is not None or found.used >= 1 - TOLERANCE):
            return
        price: Price = self.shapes if self._tables is None else self._ladders
        variables = len(components) + (len(even) if self._tables is None else 0)
        least = price.used([0] * variables)
        worst = max(range(len(least)), key=least.__getitem__)
        cost, target = self._setup.budget.targets[worst]
        closest = 1 - (1 - target) * (least[worst] if found is None else found.used)
        means = "filters and ranks" if self.groups else "ranks (no filter can be removed)"
        reached = f"can reach {closest:.4f} at most" if found is None else f"comes no closer than {closest:.4f}"
        raise InfeasibleBudgetError(
            f"sweep.budget.{cost}",
            f"{method} cannot reach a compression of {target:.4g}: by {means} it {reached}",
            {cost: closest},
        )


@dataclass(frozen=True)
class _Filled:
    """Filters per group, ranks and singular values per layer, and the share of the tightest limit that they use."""

    filters: tuple[int, ...]
    ranks: RankVector
    components: tuple[int, ...]
    used: float


def _chosen(order: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the first `count` of an order."""
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def example_inputs(setup: Setup) -> Inputs:
    """Two training samples as the network takes them, on the CPU."""
    count = min(2, len(setup.train))
    batch = setup.train.batch(torch.arange(count, device=setup.train.labels.device)).to("cpu")
    return ready(batch.inputs, setup.train.normalisation)


def take_statistics(network: nn.Module, setup: Setup) -> None:
    """Batch norms' statistics of a network on the CPU, taken again on training samples; it is left in eval mode."""
    draw = generator(setup.seed, 0, "statistics")
    numbers = list(setup.train.shuffled(STATISTICS_SIZE, draw))[:STATISTICS_BATCHES]
    batches = (setup.train.batch(one).to("cpu").inputs for one in numbers)
    reestimate(network, (ready(one, setup.train.normalisation) for one in batches))


def _sides(layer: Layer, groups: Sequence[FilterGroup]) -> tuple[Channels, Channels]:
    sides = []
    for side, count in (("in", layer.dense.in_channels), ("out", layer.dense.out_channels)):
        shares: list[tuple[int, int]] = []
        for index, group in enumerate(groups):
            places = sum(len(one.places) for one in group.members if one.name == layer.name and one.side == side)
            if places:
                shares.append((index, places // group.size))
        fixed = count - sum(groups[index].size * each for index, each in shares)
        sides.append(Channels(fixed, tuple(shares)))
    return sides[0], sides[1]


def _ladders(layers: Sequence[LayerRanks]) -> tuple[tuple[Rank | None, ...], ...]:
    return tuple((*layer.offered, None) for layer in layers)


def _of_ladder(ladder: Sequence[Rank | None], components: Sequence[float]) -> list[float]:
    """Worths of a ladder's levels from 1 on: that of the last singular value that a rank adds."""
    return [components[-1] if rank is None else components[number(rank) - 1] for rank in ladder[1:]]
