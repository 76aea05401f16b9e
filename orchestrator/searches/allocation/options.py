"""What an allocation chooses from (every layer's options) and what it gives (a rank vector with a note)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from search_spaces.error_curves import ErrorCurve
from search_spaces.rank_space import Rank, RankSpace, RankVector

__all__ = ["Allocation", "Choice", "FloatArray", "LayerOptions", "allocated", "layer_options", "usable"]

FloatArray = NDArray[np.float64]
Choice = Sequence[int]
"""One option per layer, by index."""


@dataclass(frozen=True, eq=False)
class LayerOptions:
    """What one layer may become: its shrinking ranks and, last, the dense layer.

    All arrays are float64: costs are whole numbers up to 2^53 or measured times, and neither may lose digits.

    Attributes:
        name: the layer's name in the model.
        ranks: `(options,)`; the last one is None, the dense layer.
        errors: `(options,)`, the relative error by one measure, 0 for the dense layer.
        costs: `(options,)` each, by cost name.
        singular_values: of the layer's whole matrix, descending; may be empty.
        matrix_shape: (m, n) of that matrix.
    """

    name: str
    ranks: tuple[Rank | None, ...]
    errors: FloatArray
    costs: Mapping[str, FloatArray]
    singular_values: FloatArray
    matrix_shape: tuple[int, int]

    def only(self, keep: NDArray[np.bool_]) -> LayerOptions:
        """The options marked in `keep`, `(options,)`."""
        if keep.all():
            return self
        ranks = tuple(rank for rank, kept in zip(self.ranks, keep, strict=True) if kept)
        costs = {name: cost[keep] for name, cost in self.costs.items()}
        return replace(self, ranks=ranks, errors=self.errors[keep], costs=costs)


@dataclass(frozen=True)
class Allocation:
    """A rank vector within the budget and how it was come by.

    Attributes:
        ranks: one rank per layer.
        note: in JSON's types: the certificate, penalty or threshold, whether proven optimal.
    """

    ranks: RankVector
    note: Mapping[str, object]


def layer_options(
    space: RankSpace, curves: Sequence[ErrorCurve], matrix_shapes: Sequence[tuple[int, int]]
) -> list[LayerOptions]:
    """Every layer's options: the ranks of its error curve that the space offers, and the dense layer.

    Args:
        curves, matrix_shapes: aligned with the space's layers.
    """
    return [
        _options(space, index, curve, shape)
        for index, (curve, shape) in enumerate(zip(curves, matrix_shapes, strict=True))
    ]


def _options(space: RankSpace, index: int, curve: ErrorCurve, shape: tuple[int, int]) -> LayerOptions:
    layer = space.layers[index]
    offered = set(layer.offered)
    kept = [(rank, error) for rank, error in zip(curve.ranks, curve.errors, strict=True) if rank in offered]
    ranks: tuple[Rank | None, ...] = (*(rank for rank, _ in kept), None)
    return LayerOptions(
        layer.name,
        ranks,
        np.array([*(error for _, error in kept), 0.0], dtype=np.float64),
        {
            name: np.array([cost.of(index, rank) for rank in ranks], dtype=np.float64)
            for name, cost in space.costs.items()
        },
        np.asarray(curve.singular_values, dtype=np.float64),
        shape,
    )


def usable(
    options: Sequence[LayerOptions], values: Sequence[FloatArray] | None = None
) -> tuple[list[LayerOptions], list[FloatArray]]:
    """The options whose value and costs are finite, with their values.

    Args:
        values: `(options,)` per layer, what the options are judged by; their errors where left out.

    Raises:
        ValueError: there are no layers, a dense layer has no finite value or cost, or values do not match options.
    """
    kept_options, kept_values = [], []
    if not options:
        raise ValueError("an allocation needs at least one layer")
    judged = [layer.errors for layer in options] if values is None else values
    for layer, value in zip(options, judged, strict=True):
        number = np.asarray(value, dtype=np.float64)
        if number.shape != (len(layer.ranks),):
            raise ValueError(f"{layer.name}: {len(layer.ranks)} options need as many values, got shape {number.shape}")
        keep = np.isfinite(number)
        for cost in layer.costs.values():
            keep &= np.isfinite(cost)
        if layer.ranks[-1] is not None or not keep[-1]:
            raise ValueError(f"{layer.name}: the last option must be the dense layer, with a finite value and cost")
        kept_options.append(layer.only(keep))
        kept_values.append(number[keep])
    return kept_options, kept_values


def allocated(options: Sequence[LayerOptions], choice: Choice, note: Mapping[str, object]) -> Allocation:
    """The allocation that a choice of options means."""
    return Allocation(tuple(layer.ranks[index] for layer, index in zip(options, choice, strict=True)), note)
