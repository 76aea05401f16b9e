"""Specifies what is seen of a forward pass: reads of values, ways to memory, and the largest tensor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from workers.forward_watch import watch

x = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "read",
    [
        lambda: 1 if x.sum() > 0 else 2,
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: float(x[0, 0]),
        lambda: [1, 2][x.argmin()],
        lambda: x[x > 3],
        lambda: x.nonzero(),
        lambda: torch.equal(x, x),
        lambda: torch.allclose(x, x),
        lambda: x.unique(),
        lambda: x.numpy(),
        lambda: np.asarray(x),
    ],
)
def test_reads_of_values_are_seen(read: Callable[[], object]) -> None:
    assert watch(read).reads_values


@pytest.mark.parametrize(
    "compute",
    [
        lambda: x @ x.T,
        lambda: 1 if x.shape[0] > 2 else 2,
        lambda: len(x),
        lambda: x[torch.tensor([0, 2])],
        lambda: torch.where(x > 0, x, 0.0),
        lambda: torch.nn.functional.dropout(x),
        lambda: x.clone().view(-1).relu_(),
    ],
)
def test_what_does_not_read_values_is_not_taken_for_it(compute: Callable[[], object]) -> None:
    seen = watch(compute)
    assert not seen.reads_values
    assert not seen.reaches_memory


@pytest.mark.parametrize("reach", [lambda: x.data, lambda: x.numpy(), lambda: x.data_ptr(), lambda: np.asarray(x)])
def test_ways_to_memory_are_seen(reach: Callable[[], object]) -> None:
    assert watch(reach).reaches_memory


def test_the_largest_new_tensor_counts_not_views() -> None:
    assert watch(lambda: (x @ x.T, x + 1, x.expand(100, 3, 4))).largest_bytes == 12 * 4
