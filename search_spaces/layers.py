"""A layer that may be factorised, described by numbers alone, and the thin stages that stand for it.

Torch-free on purpose: costs and searches need shapes, not tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Call", "Layer", "Padding", "Stage"]

Padding = tuple[int, int] | Literal["same", "valid"]


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass of a single sample.

    Attributes:
        height, width: input size; a linear layer over P positions is `(1, P)`.
        count: how many such inputs one sample causes (windows folded into the batch dimension).
    """

    height: int
    width: int
    count: int = 1


@dataclass(frozen=True)
class Stage:
    """One `Conv2d` or `Linear` (a 1 x 1 convolution in this description) of a cascade.

    `weight_shape` is torch's: `(out, in / groups, kernel height, kernel width)`.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    linear: bool = False

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the stage's weight tensor; two-dimensional for a linear stage."""
        matrix = (self.out_channels, self.in_channels // self.groups)
        return matrix if self.linear else (*matrix, *self.kernel)

    @property
    def parameters(self) -> int:
        """Weights without bias."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width for an input of `height` x `width` (torch's Conv2d arithmetic)."""
        return self._along(0, height), self._along(1, width)

    def _along(self, axis: int, size: int) -> int:
        if self.padding == "same":
            return size
        pad = 0 if self.padding == "valid" else self.padding[axis]
        return (size + 2 * int(pad) - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1


@dataclass(frozen=True)
class Layer:
    """A `Conv2d` with groups = 1 or a `Linear` that may be factorised.

    Attributes:
        name: dotted name in the model; the first one for a shared module.
        aliases: the other names of a shared module (it is one layer, counted once).
        dense: the layer itself as a stage.
        bias: whether it has a bias (kept by the last stage of a cascade, not counted by eq. 3.1).
        calls: its uses in one forward pass of one sample.
    """

    name: str
    dense: Stage
    bias: bool
    calls: tuple[Call, ...]
    aliases: tuple[str, ...] = ()

    @property
    def linear(self) -> bool:
        """Whether it is a `Linear`."""
        return self.dense.linear

    def parameters(self, stages: Sequence[Stage]) -> int:
        """Weights of a cascade that stands for this layer."""
        return sum(stage.parameters for stage in stages)

    def macs(self, stages: Sequence[Stage]) -> int:
        """Multiply-accumulates of one sample through a cascade that stands for this layer."""
        return sum(stage.parameters * positions for stage, positions in self._positions(stages))

    def volume(self, stages: Sequence[Stage]) -> int:
        """Activation volume: numbers that the cascade's stages put out for one sample (LeSS)."""
        return sum(stage.out_channels * positions for stage, positions in self._positions(stages))

    def _positions(self, stages: Sequence[Stage]) -> list[tuple[Stage, int]]:
        """Every stage with the output positions it computes for one sample, over all calls."""
        pairs = []
        for call in self.calls:
            height, width = call.height, call.width
            for stage in stages:
                height, width = stage.output_size(height, width)
                pairs.append((stage, height * width * call.count))
        return pairs
