"""A layer's weights made ready for one rank: truncated, batch norm folded in, in the memory layout that is fast."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from search_spaces.rank_space import Rank
from search_spaces.schemes.truncation import multiplied_out, stage_weights
from workers.slot import Slot

__all__ = ["PREPARED_BYTES", "PREPARED_BYTES_ON_GPU", "Fold", "PreparedLayers", "fold_of"]

LANES = 16
"""Channels that a vector unit handles at once (AVX-512 in float32): a rank of 17 costs what one of 32 does."""

DEARER = 1.15
"""How much dearer a multiply-accumulate is in a cascade: two calls, and one more pass over memory.

Measured on 3 x 3 convolutions of 16 to 512 channels: cascades of 0.83 of the dense layer's multiply-accumulates take
0.84 to 0.97 of its time, those of 0.92 take 1.10 and more.
"""

PREPARED_BYTES = 64 << 20
"""Private memory of prepared weights, by default."""

PREPARED_BYTES_ON_GPU = 1 << 30
"""The same on a GPU, where nothing is shared between evaluators anyway."""


@dataclass(frozen=True)
class Fold:
    """An eval-mode batch norm as y = scale * x + shift per channel, `(channels,)` float64 each."""

    scale: torch.Tensor
    shift: torch.Tensor


def fold_of(norm: nn.BatchNorm2d) -> Fold | None:
    """The batch norm as scale and shift; None where it uses the batch's own statistics, or computes something else."""
    if type(norm).forward is not nn.BatchNorm2d.forward or "forward" in vars(norm) or _has_hooks(norm):
        return None
    if norm.running_mean is None or norm.running_var is None or norm.training:
        return None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    weight = torch.ones_like(deviation) if norm.weight is None else norm.weight.double()
    bias = torch.zeros_like(deviation) if norm.bias is None else norm.bias.double()
    scale = weight / deviation
    shift = bias - norm.running_mean.double() * scale
    return Fold(scale, shift)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


Forward = Callable[[torch.Tensor], torch.Tensor]


class PreparedLayers:
    """Prepares layers on demand and keeps the latest ones, up to a limit.

    Whether a rank runs as a cascade or multiplied out follows from shapes alone, so that every evaluator computes the
    same floating-point operations.

    Layers whose dense weights together exceed the limit are not prepared at all: every slice of the batch would
    prepare them again. They run on views of the shared weights and factors, as slots do.

    Args:
        slots: all that may be asked for.
        limit_bytes: private memory that prepared weights may take.
        channels_last: lay convolutions' weights out, and so their outputs, with the channels last in memory.
        dtype: that layers compute in, whatever they are given; None computes in that of their weights.

    Attributes:
        on_views: whether layers run on views.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        limit_bytes: int = PREPARED_BYTES,
        channels_last: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._limit, self._held, self._dtype = limit_bytes, 0, dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._kept: OrderedDict[tuple[Slot, Rank | None], tuple[Forward, int]] = OrderedDict()
        self._folds: dict[Slot, Fold] = {}
        self.on_views = sum(self._bytes(slot.module.weight) for slot in slots) > limit_bytes

    def fold(self, slot: Slot, norm: nn.BatchNorm2d) -> bool:
        """Makes the slot's output include a batch norm of it from now on; False where that cannot be."""
        fold = fold_of(norm)
        if fold is None or self.on_views or not isinstance(slot.module, nn.Conv2d):
            return False
        self._folds[slot] = fold
        return True

    def forward(self, slot: Slot, rank: Rank | None) -> Forward:
        """What computes the slot's output (and its folded batch norm's) at a rank.

        Raises:
            ValueError: the layer has no such rank.
        """
        if self.on_views:
            return lambda inputs: _run_slot(slot, rank, inputs)
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
        if rank is not None and rank not in slot.scheme.ranks(slot.layer):
            raise ValueError(f"{slot.layer.name} has no rank {rank}")
        fold = self._folds.get(slot)
        if rank is not None and _cascade_is_cheaper(slot, rank):
            weights = list(stage_weights(slot.scheme, slot.layer, slot.factors, rank))
            modules: list[nn.Module] = list(slot.stages(rank))
        elif rank is not None:
            weights, modules = [multiplied_out(slot.scheme, slot.layer, slot.factors, rank)], [slot.module]
        else:
            weights, modules = [slot.module.weight], [slot.module]
        bias = slot.bias(rank)
        if fold is not None:
            weights[-1], bias = _folded(weights[-1], bias, fold, self._dtype or weights[-1].dtype)
        if self._dtype is not None:
            weights = [weight.to(self._dtype) for weight in weights]
            bias = None if bias is None else bias.to(self._dtype)
        weights = [_laid_out(weight, self._format) for weight in weights]
        calls = [
            _call(module, weight, bias if position == len(weights) - 1 else None)
            for position, (module, weight) in enumerate(zip(modules, weights, strict=True))
        ]
        if self._dtype is not None:
            calls.insert(0, _cast(self._dtype))
        return _chain(calls), sum(map(self._bytes, weights))

    def _bytes(self, weight: torch.Tensor) -> int:
        """That a weight takes once it is prepared."""
        return weight.numel() * (self._dtype or weight.dtype).itemsize


def _folded(
    weight: torch.Tensor, bias: torch.Tensor | None, fold: Fold, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a layer and the batch norm after it, rounded once from float64."""
    scaled = weight.double() * fold.scale.view(-1, *[1] * (weight.dim() - 1))
    shift = fold.shift if bias is None else bias.double() * fold.scale + fold.shift
    return scaled.to(dtype), shift.to(dtype)


def _cascade_is_cheaper(slot: Slot, rank: Rank) -> bool:
    """Whether the cascade, with its rank rounded up to whole vectors, takes clearly fewer multiply-accumulates.

    Never where the layer is sliced: a convolution of many small groups takes longer than the dense one.
    """
    if not isinstance(rank, int):
        return False
    dense = slot.layer.dense
    rounded = -(-rank // LANES) * LANES
    cascade = sum(stage.parameters for stage in slot.scheme.stages(slot.layer, rounded))
    padded = -(-dense.out_channels // LANES) * LANES * (dense.parameters // dense.out_channels)
    return cascade * DEARER < padded


def _laid_out(weight: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """The weight in a memory layout; itself where it has it."""
    if weight.dim() != 4:
        return weight.contiguous()
    # Not `contiguous`: of a 1 x 1 kernel it accepts strides that make torch lay the output out otherwise.
    strides = torch.empty_like(weight, device="meta", memory_format=memory_format).stride()
    return weight if weight.stride() == strides else weight.clone(memory_format=memory_format)


def _run_slot(slot: Slot, rank: Rank | None, inputs: torch.Tensor) -> torch.Tensor:
    slot.rank = rank
    return Slot.forward(slot, inputs)


def _call(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> Forward:
    if isinstance(module, nn.Linear):
        return lambda inputs: functional.linear(inputs, weight, bias)
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        return lambda inputs: module._conv_forward(inputs, weight, bias)
    stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
    return lambda inputs: torch.conv2d(inputs, weight, bias, stride, padding, dilation, groups)


def _cast(dtype: torch.dtype) -> Forward:
    return lambda inputs: inputs.to(dtype)


def _chain(calls: list[Forward]) -> Forward:
    if len(calls) == 1:
        return calls[0]
    if len(calls) == 2:
        first, second = calls
        return lambda inputs: second(first(inputs))
    return lambda inputs: functools.reduce(lambda value, call: call(value), calls, inputs)
