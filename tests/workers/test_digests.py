"""Digests of tensors: equal for equal tensors only."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch

from workers.digests import digest


def test_the_bytes_it_is_made_of_which_later_versions_must_keep_to_resume_older_runs() -> None:
    tensors = [("weight", torch.tensor([[1.0, -2.0]])), ("count", torch.tensor(3))]
    weight = b"'weight' torch.float32 (1, 2)\n" + struct.pack("<2f", 1.0, -2.0)
    count = b"'count' torch.int64 ()\n" + struct.pack("<q", 3)
    assert digest(tensors) == hashlib.sha256(weight + count).hexdigest()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_every_kind_of_number(dtype: torch.dtype) -> None:
    assert digest([("x", torch.zeros(3, dtype=dtype))]) != digest([("x", torch.ones(3, dtype=dtype))])


def test_no_numbers_at_all() -> None:
    assert digest([("x", torch.zeros(0, 2))]) != digest([("x", torch.zeros(2, 0))])


def test_memory_layout_does_not_count() -> None:
    x = torch.rand(3, 4)
    assert digest([("x", x)]) == digest([("x", x.t().contiguous().t())])


def test_the_border_between_tensors_counts() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    assert digest([("x", a), ("y", b)]) != digest([("x", a[:1]), ("y", torch.tensor([2.0, 3.0]))])


def test_a_name_cannot_imitate_another_tensor() -> None:
    empty = torch.zeros(0)
    assert digest([("x' torch.float32 (0,)\n'y", empty)]) != digest([("x", empty), ("y", empty)])
