"""Training data in memory: one tensor of inputs and one of labels, cut into parts and batches by number alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from search_spaces.errors import ConfigError
from workers.batch import Batch, Inputs
from workers.datasets import MapStyleDataset
from workers.splits import collect

__all__ = ["Normalisation", "Samples", "generator", "read_samples"]

READ_AT_ONCE = 2048
"""Samples that are decoded to float32 at once on their way into memory."""


@dataclass(frozen=True)
class Normalisation:
    """What is done to 8-bit images before a network sees them: (x / 255 - mean) / std.

    Attributes:
        mean, std: one value per channel, on the scale 0..1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples, or some of them, kept once however many parts are made.

    Attributes:
        inputs: `(M, ...)`: uint8 images `(M, C, H, W)`, or tensors of any kind that the network takes as they are, or a
            dict of such tensors by the name of the forward's argument.
        labels: `(M,)` int64.
        normalisation: of uint8 images; None scales them to 0..1.
        chosen: `(N,)` int64, which of the M samples these are; None is all of them.
    """

    inputs: Inputs
    labels: torch.Tensor
    normalisation: Normalisation | None = None
    chosen: torch.Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Number of samples N."""
        return len(self.labels) if self.chosen is None else len(self.chosen)

    @property
    def are_images(self) -> bool:
        """Whether inputs are one tensor `(M, C, H, W)`, which can be cropped and flipped."""
        return isinstance(self.inputs, torch.Tensor) and self.inputs.dim() == 4

    def to(self, device: torch.device | str) -> Samples:
        """The same samples on a device."""
        whole = Batch(self.inputs, self.labels).to(device)
        chosen = None if self.chosen is None else self.chosen.to(device)
        return replace(self, inputs=whole.inputs, labels=whole.labels, chosen=chosen)

    def part(self, numbers: torch.Tensor) -> Samples:
        """Some of these samples, by their numbers `(n,)` from 0 to N - 1; nothing is copied but the numbers."""
        numbers = numbers.to(self.labels.device)
        return replace(self, chosen=numbers if self.chosen is None else self.chosen[numbers])

    def split(self, shares: Sequence[float], seed: int) -> list[Samples]:
        """Disjoint random parts, the same for a seed on every machine.

        Args:
            shares: of the samples, each above 0, at most 1 in all.

        Raises:
            ConfigError: a part would be empty.
        """
        if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"shares must be above 0 and at most 1 in all, got {list(shares)}")
        order = torch.randperm(len(self), generator=generator(seed, 0, "split"))
        parts, start, total = [], 0, 0.0
        for share in shares:
            total += share
            end = round(total * len(self))
            if end <= start:
                raise ConfigError(
                    "data.train", f"{len(self)} samples cannot be split {list(shares)}; give more samples"
                )
            parts.append(self.part(order[start:end]))
            start = end
        return parts

    def batch(self, numbers: torch.Tensor) -> Batch:
        """The samples with these numbers, `(n,)`, inputs as they are stored."""
        rows = numbers if self.chosen is None else self.chosen[numbers]
        if isinstance(self.inputs, Mapping):
            inputs: Inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        else:
            inputs = self.inputs[rows]
        return Batch(inputs, self.labels[rows])

    def shuffled(self, size: int, order: torch.Generator) -> Iterator[torch.Tensor]:
        """Numbers of one epoch's batches, each of `size` samples in random order; what is left over is dropped.

        All batches have one shape; another epoch drops other samples. Fewer samples than `size` are one batch.
        """
        numbers = torch.randperm(len(self), generator=order).to(self.labels.device)
        size = min(size, len(self))
        return iter(numbers[: len(self) // size * size].split(size))

    def in_order(self, size: int) -> Iterator[torch.Tensor]:
        """Numbers of all samples, `size` at a time."""
        return iter(torch.arange(len(self), device=self.labels.device).split(size))


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A generator on the CPU that depends on nothing but its arguments.

    Every epoch makes its own: training that goes on from an epoch draws what an undisturbed one does, on any device.
    """
    mixed = torch.Generator()
    words = [seed % 2**32, seed >> 32, epoch, *purpose.encode()]
    state = 0xCBF29CE484222325
    for word in words:  # FNV-1a over the words: neighbouring seeds and epochs have nothing in common
        state = ((state ^ word) * 0x100000001B3) % 2**64
    return mixed.manual_seed(state ^ (state >> 31))


def read_samples(
    dataset: MapStyleDataset,
    numbers: Sequence[int] | None = None,
    normalisation: Normalisation | None = None,
    key: str = "data.train",
) -> Samples:
    """Reads samples into memory, 8-bit images as uint8: a quarter of float32, and exactly the same pixels.

    Args:
        dataset: opened without normalisation, so that images are multiples of 1/255 from 0 to 1.
        numbers: which samples, in their order; None takes all.
        normalisation: of the images, done on the device later.
        key: config key of the data set, for messages.

    Raises:
        ConfigError: a sample that cannot be read, differs in shape, or is no image where `normalisation` is given.
    """
    wanted = list(range(len(dataset)) if numbers is None else numbers)
    parts = []
    for start in range(0, max(1, len(wanted)), READ_AT_ONCE):
        part = collect(dataset, wanted[start : start + READ_AT_ONCE], key)
        parts.append(Batch(_eight_bit(part.inputs), part.labels))
    if isinstance(parts[0].inputs, Mapping):
        inputs: Inputs = {name: torch.cat([one.inputs[name] for one in parts]) for name in parts[0].inputs}  # type: ignore[index]
    else:
        # One part may be 8-bit by chance where another is not.
        tensors = [one.inputs for one in parts if isinstance(one.inputs, torch.Tensor)]
        if len({tensor.dtype for tensor in tensors}) > 1:
            tensors = [tensor / 255 if tensor.dtype is torch.uint8 else tensor for tensor in tensors]
        inputs = torch.cat(tensors)
        if normalisation is not None and inputs.dtype is not torch.uint8:
            raise ConfigError(key, "samples are no 8-bit images, so they cannot be normalised on the device")
    return Samples(inputs, torch.cat([one.labels for one in parts]).long(), normalisation)


def _eight_bit(inputs: Inputs) -> Inputs:
    """Images whose pixels are multiples of 1/255 as uint8; everything else as it is."""
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        return inputs
    levels = (inputs * 255).round()
    exact = bool(((levels >= 0) & (levels <= 255)).all()) and torch.equal(levels / 255, inputs)
    return levels.to(torch.uint8) if exact else inputs
