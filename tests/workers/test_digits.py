"""Scikit-learn's digits as a data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.digits import digits


def test_sizes_and_values() -> None:
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    image, label = test[0]
    assert (image.shape, image.dtype) == ((1, 8, 8), torch.float32)
    assert isinstance(label, int)
    assert image.min() >= 0
    assert image.max() <= 1


def test_every_image_is_on_one_side() -> None:
    sides = [digits(split) for split in ("train", "test")]
    images = torch.cat([torch.stack([side[i][0] for i in range(len(side))]) for side in sides])
    assert len(images) == 1797
    assert len(images.unique(dim=0)) == 1797


def test_the_split_is_fixed_and_even_over_classes() -> None:
    test = digits("test")
    assert np.array_equal(test.labels, digits("test").labels)
    counts = np.bincount(test.labels)
    assert len(counts) == 10
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_another_split() -> None:
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'validation'"):
        digits("validation")
