"""Scikit-learn's handwritten digits: a data set that needs no download, for the demo, the tests and first tries."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

__all__ = ["Digits", "digits"]

SPLITS = ("train", "test")
TEST_SIZE = 360
"""Of 1797 images: 36 a class, give or take one."""
SPLIT_SEED = 0
"""Fixed: another split would let one run's test images into another run's training."""


class Digits(Dataset[tuple[torch.Tensor, int]]):
    """Images `(1, 8, 8)` float32 from 0 to 1, with the digit they show.

    Attributes:
        labels: `(N,)` int64.
    """

    def __init__(self, images: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        self._images = torch.from_numpy(images).to(torch.float32).div_(16).unsqueeze(1)  # 0..16 in the original
        self.labels = labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Image and label number `i`."""
        return self._images[i], int(self.labels[i])


def digits(split: str = "train") -> Digits:
    """One side of a fixed, class-stratified split: 1437 images to train on, 360 to test on.

    Args:
        split: "train" or "test".

    Raises:
        ValueError: another split.

    Example:
        >>> len(digits("test"))
        360
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    from sklearn.datasets import load_digits  # seconds that only users of these digits need spend
    from sklearn.model_selection import train_test_split

    loaded = load_digits()
    numbers = np.arange(len(loaded.target))
    sides = train_test_split(numbers, test_size=TEST_SIZE, stratify=loaded.target, random_state=SPLIT_SEED)
    chosen = np.sort(sides[SPLITS.index(split)])
    return Digits(loaded.images[chosen], loaded.target[chosen].astype(np.int64))
