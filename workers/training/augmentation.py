"""Augmentation of a whole batch on the device it lies on: padded random crops, flips, then normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from workers.batch import Inputs
from workers.training.samples import Normalisation

__all__ = ["Augmentation", "ready"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images.

    Attributes:
        padding: pixels of zeros around an image, out of which a random crop of its old size is cut; 0 crops nothing.
        flip: whether every second image, on average, is mirrored left to right.
    """

    padding: int = 4
    flip: bool = True

    def __call__(self, images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """`(N, C, H, W)` of any dtype to the same shape and dtype, in channels_last memory.

        Every image is cut out by one indexing operation: rows and columns (backwards where it is flipped) by number.

        Args:
            draw: on the CPU, so that every device sees the same crops.
        """
        count, _, height, width = images.shape
        tops, lefts = (torch.randint(2 * self.padding + 1, (count, 1), generator=draw) for _ in range(2))
        flips = torch.rand(count, 1, generator=draw) < 0.5
        columns = torch.arange(width).expand(count, -1)
        if self.flip:
            columns = torch.where(flips, columns.flip(1), columns)
        rows = (tops + torch.arange(height)).to(images.device)
        columns = (lefts + columns).to(images.device)
        padded = F.pad(images, [self.padding] * 4) if self.padding else images
        every = torch.arange(count, device=images.device).view(-1, 1, 1)
        # Indices on both sides of the channels: torch puts the channels last, which is the layout wanted anyway.
        return padded[every, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def ready(inputs: Inputs, normalisation: Normalisation | None) -> Inputs:
    """What the network takes: uint8 images as float32, scaled to 0..1 and normalised, in channels_last memory."""
    if not isinstance(inputs, torch.Tensor) or inputs.dtype is not torch.uint8:
        return inputs
    images = inputs.to(torch.float32, memory_format=torch.channels_last)
    if normalisation is None:
        return images.div_(255)
    mean = torch.tensor(normalisation.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(normalisation.std, device=images.device).view(-1, 1, 1)
    return images.sub_(mean * 255).div_(std * 255)
