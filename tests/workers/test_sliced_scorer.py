"""Specifies what the fast ways share: sizes of slices, and sums over them. The ways themselves have their own files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.sliced_scorer import SLICE_BYTES, Child, slice_size_for


@given(samples=st.integers(1, 5000), sample_bytes=st.integers(0, 4 * SLICE_BYTES))
def test_slices_fit_the_cache_and_are_of_like_size(samples: int, sample_bytes: int) -> None:
    size = slice_size_for(samples, sample_bytes)
    assert 1 <= size <= samples
    assert size * sample_bytes <= SLICE_BYTES or size == 1
    slices = -(-samples // size)
    assert size - 1 < samples / slices <= size  # no smaller size gives as few slices


@pytest.mark.parametrize(("samples", "sample_bytes", "size"), [(256, 65536, 43), (256, 1, 256), (256, 1 << 30, 1)])
def test_sizes_by_hand(samples: int, sample_bytes: int, size: int) -> None:
    assert slice_size_for(samples, sample_bytes) == size


def test_hits_are_counted_exactly_whatever_their_shares_round_to() -> None:
    child = Child(())
    for hits in (4, 2):  # of 49 in each of two slices
        child.totals["accuracy"] = child.totals.get("accuracy", 0.0) + hits / 49 * 49
    assert child.totals["accuracy"] != 6
    assert child.score(98).values["accuracy"] == 6 / 98


def test_a_failure_is_the_score() -> None:
    child = Child((3, None), {"loss": 1.0}, seconds=2.0)
    child.fail("nan", "why")
    score = child.score(10)
    assert (score.ranks, score.status, score.reason, score.seconds, score.values) == ((3, None), "nan", "why", 2.0, {})
