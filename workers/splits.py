"""Which samples a search judges by: a validation set drawn from the training data, never from the test data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from search_spaces.errors import ConfigError
from workers.batch import Batch, stack
from workers.datasets import MapStyleDataset
from workers.digests import digest

__all__ = ["batches", "collect", "data_fingerprint", "draw_calibration", "draw_validation"]


def draw_validation(dataset: MapStyleDataset, size: int, seed: int, key: str = "data.validation_size") -> list[int]:
    """Draws a validation set: by seed, without replacement, as many samples of every class as there can be.

    Classes differ by one sample at most, unless one has no more to give. The samples are in the order drawn, class
    after class in turn, so every beginning of the list is a validation set as well, and that of a smaller `size`.
    A data set that does not tell its labels is drawn from evenly.

    Args:
        dataset: with `labels`, an `(N,)` integer array or None.
        size: samples to draw.
        seed: the same seed draws the same samples on every machine.
        key: config key of the size, for messages.

    Raises:
        ConfigError: a size below 1, or above the number of samples.
    """
    available = len(dataset)
    if size < 1:
        raise ConfigError(key, f"empty validation split (size {size}); give at least 1")
    if size > available:
        raise ConfigError(key, f"asks for {size} samples, but the training data has {available}; give at most that")
    generator = np.random.Generator(np.random.PCG64(seed))
    shuffled = generator.permutation(available)
    labels = getattr(dataset, "labels", None)
    if labels is None:
        return [int(i) for i in shuffled[:size]]
    classes, class_of = np.unique(np.asarray(labels)[shuffled], return_inverse=True)
    turn = np.empty(available, dtype=np.int64)  # how many of its class come before a sample
    for number in range(len(classes)):
        members = np.flatnonzero(class_of == number)
        turn[members] = np.arange(len(members))
    place = generator.permutation(len(classes))  # which classes come first, so which get one sample more
    order = np.lexsort((place[class_of], turn))
    return [int(i) for i in shuffled[order[:size]]]


def draw_calibration(dataset: MapStyleDataset, size: int, seed: int, besides: Sequence[int]) -> list[int]:
    """Draws a calibration set: by seed, without replacement, evenly whatever the labels, and none of `besides`.

    Raises:
        ConfigError: there are not that many samples.
    """
    key, taken = "data.calibration_size", set(besides)
    left = len(dataset) - len(taken)
    if size > left:
        raise ConfigError(
            key,
            f"asks for {size} samples, but beside the validation batch train has {left}; give at most that",
        )
    shuffled = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(dataset))
    return [int(i) for i in shuffled if int(i) not in taken][:size]


def collect(dataset: MapStyleDataset, indices: Sequence[int] | None, key: str = "data") -> Batch:
    """Reads samples into one batch, in the order of `indices`.

    Args:
        dataset: its samples are pairs (input, label) or dicts with "labels".
        indices: numbers of the samples; None takes all.
        key: config key of the data set, for messages.

    Raises:
        ConfigError: a sample that cannot be read, or that differs in shape from the others.
    """
    wanted = range(len(dataset)) if indices is None else indices
    samples: dict[int, Any] = {}
    for i in sorted(set(wanted)):  # in the files' order: each of their parts is then read once
        samples[i] = dataset[i]
    return stack([samples[i] for i in wanted], key)


def batches(dataset: MapStyleDataset, size: int, key: str = "data.test") -> Iterator[Batch]:
    """The whole data set in batches of `size` samples (the last one may be smaller), read one at a time.

    Raises:
        ConfigError: as `collect`.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    for start in range(0, len(dataset), size):
        yield collect(dataset, range(start, min(start + size, len(dataset))), key)


def data_fingerprint(batch: Batch) -> str:
    """SHA-256, in hexadecimal, over the inputs and labels of a batch: names, dtypes, shapes and bytes."""
    inputs = batch.inputs if isinstance(batch.inputs, dict) else {"inputs": batch.inputs}
    return digest([*sorted(inputs.items()), ("labels", batch.labels)])
