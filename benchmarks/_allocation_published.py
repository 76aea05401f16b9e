"""ALDS' allocation as it was published (Liebenwein et al., NeurIPS 2021; their code torchprune, MIT), written anew.

It alternates: ranks at a constant error for fixed numbers of slices (Brent's root-finding on the threshold), then for
every layer the number of slices with the least error at a constant size; 4 rounds from each of 15 starts. What their
code does besides is done here too, because it is part of what is compared: the second step reads the error of one rank
less than it would choose; the root lies on a jump, so that the budget may be overshot; starts out of reach are halved;
rounding is lowered where the second step overshoots. Numbers that they print, for networks run on torch 2.15 with
their commit 14b392c, are in `PUBLISHED`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

from search_spaces.schemes.slice_spectra import divisors, slice_spectra

__all__ = ["PUBLISHED", "Published", "PublishedAllocation", "SlicedLayer", "sliced_layer"]

SEEDS, ROUNDS, FIRST = 15, 4, (3, 5, 7, 9)
TOLERANCE = 0.005
"""What a size may miss the budget by, as a share of it, where the root-finding has no bracket."""

FloatArray = NDArray[np.float64]


class Published(NamedTuple):
    """The largest relative error over the layers.

    Attributes:
        torchprune: of the authors' allocation, seed 0, run once.
        exact: the exact optimum as it was computed apart from this project, in a study of their code.
    """

    torchprune: float
    exact: float


PUBLISHED: Mapping[tuple[str, float], Published] = {
    ("resnet20", 0.3): Published(0.1629, 0.1558),
    ("resnet20", 0.5): Published(0.2119, 0.2092),
    ("resnet20", 0.7): Published(0.2972, 0.2928),
    ("resnet20", 0.8): Published(0.3482, 0.3435),
    ("resnet32", 0.3): Published(0.1597, 0.1578),
    ("resnet32", 0.5): Published(0.2186, 0.2128),
    ("resnet32", 0.7): Published(0.2980, 0.2875),
    ("resnet32", 0.8): Published(0.3470, 0.3392),
    ("resnet56", 0.3): Published(0.1622, 0.1598),
    ("resnet56", 0.5): Published(0.2196, 0.2162),
    ("resnet56", 0.7): Published(0.2962, 0.2900),
    ("resnet56", 0.8): Published(0.3495, 0.3398),
    ("tv_resnet18", 0.3): Published(0.2416, 0.2416),
    ("tv_resnet18", 0.5): Published(0.2664, 0.2664),
    ("tv_resnet18", 0.7): Published(0.2849, 0.2849),
    ("tv_resnet18", 0.8): Published(0.3397, 0.3116),
    ("tv_resnet50", 0.5): Published(0.3488, 0.3331),
    ("tv_resnet50", 0.8): Published(0.6210, 0.5965),
}
"""By network and share of the weights that goes. The torchvision networks' weights are those of seed 0."""


class _OutOfReachError(Exception):
    """The root-finding has no bracket, or no number of slices fits a layer's size."""


@dataclass(frozen=True)
class SlicedLayer:
    """One folded weight.

    Attributes:
        rows: its height m.
        columns: its width n.
        errors: by the number of slices k, descending: `(q,)`, entry j is the error of rank j, from 0 on.
    """

    rows: int
    columns: int
    errors: Mapping[int, FloatArray]

    def per_rank(self, k: int) -> int:
        """Weights that one more rank in each of k slices costs."""
        return k * self.rows + self.columns

    def nearest(self, k: int) -> int:
        """The possible number of slices nearest to k; the larger of two."""
        return min(self.errors, key=lambda possible: abs(possible - k))

    def size(self, k: int, j: int) -> int:
        """What (k, j) is charged: at most the dense layer."""
        return min(j * self.per_rank(k), self.rows * self.columns)

    def error(self, k: int, j: int) -> float:
        """The error of (k, j), 0 where the layer stays dense."""
        if j * self.per_rank(k) >= self.rows * self.columns or j == len(self.errors[k]):
            return 0.0
        return float(self.errors[k][j])


def sliced_layer(weight: torch.Tensor) -> SlicedLayer:
    """All error rows of a weight, a linear one taken as a 1 x 1 convolution."""
    matrix = weight.flatten(1)
    ks = divisors(weight.shape[1])[::-1]
    spectra = slice_spectra(matrix, ks)
    largest = spectra[1][0, 0]
    errors = {k: (spectra[k].amax(0) / largest).numpy() for k in ks}
    return SlicedLayer(matrix.shape[0], matrix.shape[1], errors)


@dataclass(frozen=True)
class Start:
    """Numbers of slices with the ranks that constant error gives them.

    Attributes:
        threshold: that error, as the root-finding found it; it is what starts are compared by.
    """

    ks: tuple[int, ...]
    js: tuple[int, ...]
    threshold: float


class PublishedAllocation:
    """The heuristic for one network and budget.

    Args:
        budget: the most weights that the layers together may have; it can be overshot.
        seed: of the starts drawn at random; the authors draw from numpy's global generator, of the same kind.
    """

    def __init__(self, layers: Sequence[SlicedLayer], budget: float, seed: int = 0) -> None:
        self._layers, self._budget = layers, int(budget)
        self._draw = np.random.RandomState(seed)
        self._dense = np.array([layer.rows * layer.columns for layer in layers])
        self._longest = max(len(row) for layer in layers for row in layer.errors.values())
        self._rounding = 0.5

    def run(self) -> Start:
        """The best of all starts.

        Raises:
            RuntimeError: none can be brought within reach of the budget.
        """
        found = self._best()
        if found is None:
            reachable = self._size(self._constant_error([1] * len(self._layers), strict=False))
            self._budget = int((0.995 if self._budget > reachable else 1.005) * reachable)
            found = self._best()
        if found is None:
            raise RuntimeError("the published allocation finds none near this budget")
        return found

    def size(self, found: Start) -> int:
        """Weights of an allocation, counted anew."""
        return self._size(found)

    def error(self, found: Start) -> float:
        """The largest error over the layers, read anew."""
        return max(layer.error(k, j) for layer, k, j in zip(self._layers, found.ks, found.js, strict=True))

    def _size(self, found: Start) -> int:
        return sum(layer.size(k, j) for layer, k, j in zip(self._layers, found.ks, found.js, strict=True))

    def _best(self) -> Start | None:
        best: Start | None = None
        for number in range(SEEDS):
            try:
                found = self._improved(self._reachable(self._seed(number)))
            except _OutOfReachError:
                continue
            if best is None or found.threshold < best.threshold:
                best = found
        return best

    def _seed(self, number: int) -> list[int]:
        if number < len(FIRST):
            return [layer.nearest(FIRST[number]) for layer in self._layers]
        ks = []
        for layer in self._layers:
            ks.append(int(self._draw.choice(list(layer.errors))))
            self._draw.choice(1)  # the folding, of which there is one: drawn as the authors draw it
        return ks

    def _reachable(self, ks: Sequence[int]) -> Start:
        """Ranks at constant error; slices are halved until there are some."""
        self._rounding = 0.5
        while True:
            try:
                return self._constant_error(ks)
            except _OutOfReachError:
                halves = [k // 2 for k in ks]
                if not any(halves):
                    raise
                ks = [layer.nearest(k) for layer, k in zip(self._layers, halves, strict=True)]

    def _improved(self, start: Start) -> Start:
        """After all rounds; the start itself where these end with a larger threshold."""
        current = start
        for _ in range(ROUNDS):
            try:
                current = self._round(current)
            except _OutOfReachError:
                break
        return start if start.threshold < current.threshold else current

    def _round(self, current: Start) -> Start:
        while True:
            ks = [self._constant_size(*one) for one in zip(self._layers, current.ks, current.js, strict=True)]
            try:
                return self._constant_error(ks)
            except _OutOfReachError:
                self._rounding -= 0.2
                if self._rounding < -0.51:
                    raise

    def _constant_error(self, ks: Sequence[int], *, strict: bool = True) -> Start:
        """Every layer's least rank with an error up to a threshold, at the threshold where the size is the budget."""
        rows = [layer.errors[k] for layer, k in zip(self._layers, ks, strict=True)]
        errors = np.zeros((len(rows), self._longest))
        for padded, row in zip(errors, rows, strict=True):
            padded[: len(row)] = row
        per_rank = np.array([layer.per_rank(k) for layer, k in zip(self._layers, ks, strict=True)])

        def ranks(threshold: float) -> NDArray[np.int64]:
            least: NDArray[np.int64] = np.maximum((errors > threshold).sum(1), 1)
            return least

        def left(threshold: float) -> float:
            return float(self._budget - np.minimum(ranks(threshold) * per_rank, self._dense).sum())

        low, high = float(errors.min()), 1.01 * float(errors.max())
        at_low, at_high = left(low), left(high)
        if np.sign(at_low) == np.sign(at_high):
            threshold, missed = min((low, abs(at_low)), (high, abs(at_high)), key=lambda end: end[1])
            if strict and missed > TOLERANCE * self._budget:
                raise _OutOfReachError
        else:
            threshold = float(brentq(left, low, high, maxiter=1000, xtol=1e-249, disp=False))
        return Start(tuple(ks), tuple(ranks(threshold).tolist()), threshold)

    def _constant_size(self, layer: SlicedLayer, k: int, j: int) -> int:
        """The number of slices with the least error at the size of (k, j), rounded; of equal ones the largest."""
        size = j * layer.per_rank(k)
        best, least = None, np.inf
        for possible, row in layer.errors.items():
            rank = min(int(np.floor(size / layer.per_rank(possible) + self._rounding)), len(row))
            # Entry j is the error of rank j: this reads that of one rank less, as the authors do.
            if rank >= 1 and row[rank - 1] < least:
                best, least = possible, row[rank - 1]
        if best is None:
            raise _OutOfReachError
        return best
