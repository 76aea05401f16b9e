"""Gathers the second moments of many layers' inputs in one forward pass over a calibration batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.errors import ConfigError
from search_spaces.layers import Layer, Stage
from search_spaces.moments import Moment
from search_spaces.survey import without_fused_attention
from workers.batch import Batch, run_model

__all__ = ["SLICE_SIZE", "MomentSum", "finished_moments", "second_moments", "sum_moments"]

SLICE_SIZE = 64
"""Samples per forward pass."""

CHUNK_NUMBERS = 1 << 20
"""Numbers of patches that are unfolded at once: 4 MiB in float32, much of which the cache still holds for the product.

Measured on a CIFAR ResNet-20, one thread: chunks of 16 MiB take 1.25 times as long.
"""

_FEWEST = 1024
"""Patches at once however long they are: adding each product to the sums would cost as much as making it."""

_NARROWEST = 256
"""Patches count as at least this long, so that no float32 product sums over more than 4,096 of them."""


@dataclass
class MomentSum:
    """Sums over the patches seen so far.

    Attributes:
        second: `(n, n)`, sum of p p^T, float64.
        total: `(n,)`, sum of p, float64.
        patches: how many.
    """

    second: torch.Tensor
    total: torch.Tensor
    patches: int

    @classmethod
    def nothing(cls, size: int) -> MomentSum:
        """Of no patches of `size` numbers."""
        return cls(torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64), 0)

    def add_columns(self, columns: torch.Tensor) -> None:
        """Adds patches, `(n, P)`; their products are taken in float32, or in float64 where they are float64."""
        columns = columns if columns.dtype is torch.float64 else columns.float()
        self.second += columns @ columns.T
        self.total += columns.sum(1)
        self.patches += columns.shape[1]

    def add(self, other: MomentSum) -> None:
        """Adds another sum to this one."""
        self.second += other.second
        self.total += other.total
        self.patches += other.patches


def second_moments(
    model: nn.Module, layers: Sequence[Layer], batch: Batch, slice_size: int = SLICE_SIZE
) -> dict[str, Moment]:
    """Moments of every layer's input patches over a calibration batch.

    Memory: n^2 float64 numbers for a layer whose patches have n, one slice's activations, and few patches at a time.

    Args:
        model: the dense network; left in eval mode, otherwise as it was.
        layers: of this model.
        batch: its labels are not looked at.
        slice_size: samples per forward pass.

    Returns:
        By layer name; a module that is called several times has the patches of all calls.

    Raises:
        ConfigError: the batch is empty, a layer is never called, or its inputs are NaN or infinite (the first such
            layer in the order of calls is named).
    """
    return finished_moments(sum_moments(model, layers, batch, slice_size))


def sum_moments(
    model: nn.Module, layers: Sequence[Layer], batch: Batch, slice_size: int = SLICE_SIZE
) -> dict[str, MomentSum]:
    """As `second_moments`, before the division by the number of patches: sums of parts of a batch can be added."""
    if not len(batch):
        raise ConfigError("data.calibration_size", "the calibration batch is empty; give at least 1 sample")
    sums = {layer.name: MomentSum.nothing(layer.dense.parameters // layer.dense.out_channels) for layer in layers}
    model.eval()
    # Not inference mode: what is summed in it could not be added to outside.
    with ExitStack() as stack, without_fused_attention(), torch.no_grad():
        for layer in layers:
            module = model.get_submodule(layer.name)
            hook = _summing_hook(layer, sums[layer.name], batch)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for part in batch.split(slice_size):
            run_model(model, part.inputs)
    return sums


def finished_moments(sums: Mapping[str, MomentSum]) -> dict[str, Moment]:
    """Moments from sums, by layer name.

    Raises:
        ConfigError: a layer was never called, or its inputs are so large that their squares overflow.
    """
    moments = {}
    for name, found in sums.items():
        if not found.patches:
            raise ConfigError("model", f"layer {name} is never called on the calibration batch; exclude it")
        if not bool(torch.isfinite(found.second).all()):
            raise ConfigError("model", f"the inputs of layer {name} are so large that their squares overflow")
        second = (found.second + found.second.T) / (2 * found.patches)
        moments[name] = Moment(second, found.total / found.patches, found.patches)
    return moments


def _summing_hook(layer: Layer, found: MomentSum, batch: Batch) -> Callable[..., None]:
    def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value: torch.Tensor = (args[0] if args else kwargs["input"]).detach()
        if not bool(torch.isfinite(value).all()):
            raise _not_finite(layer, batch)
        for columns in _columns(layer.dense, value):
            found.add_columns(columns)

    return add


def _not_finite(layer: Layer, batch: Batch) -> ConfigError:
    """Blames the data where they are the cause."""
    inputs = batch.inputs if isinstance(batch.inputs, dict) else {"": batch.inputs}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in inputs.values()):
        return ConfigError(
            "data.calibration_size",
            f"the calibration batch has NaN or infinite values, which layer {layer.name} is the first to get; "
            "mend the training data",
        )
    return ConfigError(
        "model",
        f"the inputs of layer {layer.name} are NaN or infinite on the calibration batch; check the weights before it",
    )


def _columns(stage: Stage, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """Patches that a layer sees in its inputs, `(n, P)`, a chunk at a time."""
    if stage.linear:
        for rows in inputs.reshape(-1, stage.in_channels).split(_at_once(stage.in_channels)):
            yield rows.T
        return
    images = _padded(stage, inputs if inputs.dim() == 4 else inputs.unsqueeze(0))
    height, width = (_positions(stage, axis, images.shape[2 + axis]) for axis in (0, 1))
    most = _at_once(stage.in_channels * stage.kernel[0] * stage.kernel[1])
    rows_at_once = max(1, min(height, most // width))
    for few in images.split(max(1, most // (rows_at_once * width))):
        for top in range(0, height, rows_at_once):
            last = min(top + rows_at_once, height) - 1
            bottom = last * stage.stride[0] + stage.dilation[0] * (stage.kernel[0] - 1) + 1
            band = few[:, :, top * stage.stride[0] : bottom]
            patches = F.unfold(band, stage.kernel, stage.dilation, stride=stage.stride)
            yield patches.transpose(0, 1).reshape(patches.shape[1], -1)


def _at_once(length: int) -> int:
    """How many patches of so many numbers are taken at once."""
    return max(_FEWEST, CHUNK_NUMBERS // max(length, _NARROWEST))


def _padded(stage: Stage, images: torch.Tensor) -> torch.Tensor:
    """Images `(N, C, H, W)` with the stage's padding around them."""
    margins: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last dimension
        if stage.padding == "same":  # as torch has it: of an odd number, the greater half comes after
            both = stage.dilation[axis] * (stage.kernel[axis] - 1)
            margins += [both // 2, both - both // 2]
        else:
            one = 0 if stage.padding == "valid" else int(stage.padding[axis])
            margins += [one, one]
    if not any(margins):
        return images
    return F.pad(images, margins, mode="constant" if stage.padding_mode == "zeros" else stage.padding_mode)


def _positions(stage: Stage, axis: int, size: int) -> int:
    """Output positions along an axis of `size` padded pixels."""
    return (size - stage.dilation[axis] * (stage.kernel[axis] - 1) - 1) // stage.stride[axis] + 1
