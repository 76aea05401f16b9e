"""A layer's weights made ready for one rank: truncated, batch norm folded in, in the memory layout that is fast."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from search_spaces.rank_space import Rank
from workers.slot import Slot

__all__ = ["Fold", "PreparedLayers", "fold_of"]

LANES = 16
"""Channels that a vector unit handles at once (AVX-512 in float32): a rank of 17 costs what one of 32 does."""

DEARER = 1.25
"""How much dearer a multiply-accumulate is in a cascade: two calls, and one more pass over memory."""


@dataclass(frozen=True)
class Fold:
    """An eval-mode batch norm as y = scale * x + shift per channel, `(channels,)` each."""

    scale: torch.Tensor
    shift: torch.Tensor


def fold_of(norm: nn.BatchNorm2d) -> Fold | None:
    """The batch norm as scale and shift, computed in float64; None where it uses the batch's own statistics."""
    if norm.running_mean is None or norm.running_var is None or norm.training:
        return None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    weight = torch.ones_like(deviation) if norm.weight is None else norm.weight.double()
    bias = torch.zeros_like(deviation) if norm.bias is None else norm.bias.double()
    scale = weight / deviation
    shift = bias - norm.running_mean.double() * scale
    return Fold(scale.to(norm.running_mean.dtype), shift.to(norm.running_mean.dtype))


Forward = Callable[[torch.Tensor], torch.Tensor]


class PreparedLayers:
    """Prepares layers on demand and keeps the latest ones, up to a limit.

    Whether a rank runs as a cascade or multiplied out follows from shapes alone, so that every evaluator computes the
    same floating-point operations.

    Args:
        limit_bytes: private memory that prepared weights may take; what does not fit is prepared again when needed.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._held = limit_bytes, 0
        self._kept: OrderedDict[tuple[Slot, Rank | None], tuple[Forward, int]] = OrderedDict()
        self._folds: dict[Slot, Fold] = {}

    def fold(self, slot: Slot, fold: Fold) -> None:
        """From now on the slot's output includes this batch norm."""
        self._folds[slot] = fold

    def forward(self, slot: Slot, rank: Rank | None) -> Forward:
        """What computes the slot's output (and its folded batch norm's) at a rank."""
        key = (slot, rank)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        made, size = self._prepare(slot, rank)
        if size <= self._limit:
            self._kept[key] = made, size
            self._held += size
            while self._held > self._limit:
                _, (_, freed) = self._kept.popitem(last=False)
                self._held -= freed
        return made

    def _prepare(self, slot: Slot, rank: Rank | None) -> tuple[Forward, int]:
        fold = self._folds.get(slot)
        if rank is not None and _cascade_is_cheaper(slot, rank):
            weights = list(slot.scheme.weights(slot.layer, slot.factors, rank))
            modules: list[nn.Module] = list(slot.stages)
        elif rank is not None:
            weights, modules = [slot.scheme.dense_weight(slot.layer, slot.factors, rank)], [slot.module]
        else:
            weights, modules = [slot.module.weight], [slot.module]
        last, bias = weights[-1], slot.module.bias
        if fold is not None:
            last = last * fold.scale.view(-1, *[1] * (last.dim() - 1))
            bias = fold.shift if bias is None else bias * fold.scale + fold.shift
        weights = [*(_laid_out(weight) for weight in weights[:-1]), _laid_out(last)]
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        calls = [
            _call(module, weight, bias if position == len(weights) - 1 else None)
            for position, (module, weight) in enumerate(zip(modules, weights, strict=True))
        ]
        return _chain(calls), size


def _cascade_is_cheaper(slot: Slot, rank: Rank) -> bool:
    """Whether the cascade, with its rank rounded up to whole vectors, takes clearly fewer multiply-accumulates."""
    dense = slot.layer.dense
    rounded = -(-rank // LANES) * LANES
    cascade = sum(stage.parameters for stage in slot.scheme.stages(slot.layer, rounded))
    padded = -(-dense.out_channels // LANES) * LANES * (dense.parameters // dense.out_channels)
    return cascade * DEARER < padded


def _laid_out(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight


def _call(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> Forward:
    if isinstance(module, nn.Linear):
        return lambda inputs: functional.linear(inputs, weight, bias)
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        return lambda inputs: module._conv_forward(inputs, weight, bias)
    stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
    return lambda inputs: torch.conv2d(inputs, weight, bias, stride, padding, dilation, groups)


def _chain(calls: list[Forward]) -> Forward:
    if len(calls) == 1:
        return calls[0]
    first, second = calls
    return lambda inputs: second(first(inputs))
