"""Augmentation of a batch: the same images as cropping and flipping them one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from workers.training.augmentation import Augmentation, ready
from workers.training.samples import Normalisation, generator


def images(count: int = 64, channels: int = 3, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(1, 256, (count, channels, 6, 7), generator=torch.Generator().manual_seed(0)).to(dtype)


def one_by_one(batch: torch.Tensor, padding: int) -> list[list[torch.Tensor]]:
    """Every crop and its mirror image that each picture can become."""
    height, width = batch.shape[2:]
    possible = []
    for picture in F.pad(batch, [padding] * 4):
        crops = [
            picture[:, top : top + height, left : left + width]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        possible.append([*crops, *(crop.flip(2) for crop in crops)])
    return possible


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 2])
def test_every_image_becomes_one_of_its_crops_or_their_mirror_images(dtype: torch.dtype, padding: int) -> None:
    batch = images(dtype=dtype)
    augmented = Augmentation(padding)(batch, generator(0, 0, "augmentation"))
    assert augmented.shape == batch.shape
    assert augmented.dtype is dtype
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    found = []
    for picture, possible in zip(augmented, one_by_one(batch, padding), strict=True):
        found.append(next(place for place, other in enumerate(possible) if torch.equal(picture, other)))
    crops = (2 * padding + 1) ** 2
    assert len({place % crops for place in found}) > crops / 3
    assert 10 < sum(place >= crops for place in found) < 54


def test_nothing_to_do_leaves_images_alone() -> None:
    assert torch.equal(Augmentation(0, flip=False)(images(), generator(0, 0, "a")), images())
    crops = Augmentation(1, flip=False)(images(), generator(0, 0, "a"))
    for picture, possible in zip(crops, one_by_one(images(), 1), strict=True):
        assert any(torch.equal(picture, other) for other in possible[:9])


def test_draws_are_the_generators() -> None:
    first, again, other = (Augmentation()(images(), generator(0, epoch, "a")) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_become_what_the_network_takes() -> None:
    batch = images(channels=1)
    torch.testing.assert_close(ready(batch, None), batch.float() / 255)
    normalised = ready(batch, Normalisation((0.4,), (0.2,)))
    torch.testing.assert_close(normalised, (batch.float() / 255 - 0.4) / 0.2)
    values = torch.randn(3, 5)
    assert ready(values, None) is values
