"""The validation set: drawn by seed, evenly over classes; and reading samples into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from search_spaces.errors import ConfigError
from workers.batch import Batch
from workers.digits import digits
from workers.splits import batches, collect, data_fingerprint, draw_validation


class Samples:
    """Pairs (number, label); remembers which were read."""

    def __init__(self, labels: list[int], told: bool = True) -> None:
        self._all = labels
        self.labels: NDArray[np.int64] | None = np.array(labels) if told else None
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.read.append(i)
        return torch.tensor([float(i)]), self._all[i]


LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


class TestDrawValidation:
    @given(labels=LABELS, seed=st.integers(0, 2**32), data=st.data())
    def test_without_replacement_and_as_even_as_the_classes_allow(
        self, labels: list[int], seed: int, data: st.DataObject
    ) -> None:
        size = data.draw(st.integers(1, len(labels)))
        drawn = draw_validation(Samples(labels), size, seed)
        assert len(set(drawn)) == len(drawn) == size
        assert set(drawn) <= set(range(len(labels)))
        there, taken = np.bincount(labels, minlength=6), np.bincount([labels[i] for i in drawn], minlength=6)
        most = taken.max()
        assert all(taken[c] >= most - 1 or taken[c] == there[c] for c in range(6))

    @given(labels=LABELS, seed=st.integers(0, 2**32))
    def test_a_smaller_set_is_the_beginning_of_a_larger_one(self, labels: list[int], seed: int) -> None:
        everything = draw_validation(Samples(labels), len(labels), seed)
        assert sorted(everything) == list(range(len(labels)))
        for size in range(1, len(labels)):
            assert draw_validation(Samples(labels), size, seed) == everything[:size]

    def test_the_same_seed_draws_the_same_on_every_machine(self) -> None:
        labels = [i % 3 for i in range(30)]
        assert draw_validation(Samples(labels), 6, seed=0) == [21, 10, 2, 6, 4, 11]
        assert draw_validation(Samples(labels), 6, seed=1) == [16, 11, 21, 7, 20, 3]

    def test_no_sample_is_read(self) -> None:
        samples = Samples([0, 1] * 10)
        draw_validation(samples, 4, seed=0)
        assert samples.read == []

    @given(size=st.integers(1, 20), seed=st.integers(0, 2**32))
    def test_a_data_set_that_does_not_tell_its_labels(self, size: int, seed: int) -> None:
        drawn = draw_validation(Samples([0] * 20, told=False), size, seed)
        assert len(set(drawn)) == size
        assert drawn == draw_validation(Samples([0] * 20, told=False), size, seed)

    def test_the_digits(self) -> None:
        train = digits("train")
        drawn = draw_validation(train, 256, seed=0)
        assert sorted(np.bincount(train.labels[drawn]).tolist()) == [25] * 4 + [26] * 6

    @pytest.mark.parametrize("size", [0, -5])
    def test_an_empty_split(self, size: int) -> None:
        with pytest.raises(ConfigError, match=r"^data\.validation_size: empty validation split .*give at least 1$"):
            draw_validation(Samples([0, 1]), size, seed=0)

    def test_more_than_there_are(self) -> None:
        with pytest.raises(ConfigError, match="asks for 3 samples, but the training data has 2; give at most that"):
            draw_validation(Samples([0, 1]), 3, seed=0)


class TestCollect:
    def test_in_the_order_asked_for_though_read_in_the_order_of_the_files(self) -> None:
        samples = Samples([5, 6, 7, 8])
        batch = collect(samples, [3, 0, 2, 0])
        assert batch.labels.tolist() == [8, 5, 7, 5]
        assert batch.inputs.flatten().tolist() == [3, 0, 2, 0]  # type: ignore[union-attr]
        assert samples.read == [0, 2, 3]

    def test_all(self) -> None:
        assert collect(Samples([5, 6, 7]), None).labels.tolist() == [5, 6, 7]

    def test_none_at_all(self) -> None:
        with pytest.raises(ConfigError, match=r"^data\.test: no samples"):
            collect(Samples([5]), [], "data.test")


class TestBatches:
    @given(samples=st.integers(0, 20), size=st.integers(1, 25))
    def test_together_they_are_the_data_set(self, samples: int, size: int) -> None:
        parts = list(batches(Samples(list(range(samples))), size))
        assert [label for part in parts for label in part.labels.tolist()] == list(range(samples))
        assert all(len(part) == size for part in parts[:-1])

    def test_only_one_is_read_at_a_time(self) -> None:
        samples = Samples([0] * 10)
        next(batches(samples, 4))
        assert samples.read == [0, 1, 2, 3]

    def test_at_least_one_sample_each(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            next(batches(Samples([0]), 0))


class TestDataFingerprint:
    def test_equal_for_equal_data(self) -> None:
        assert data_fingerprint(collect(digits("test"), [1, 2])) == data_fingerprint(collect(digits("test"), [1, 2]))

    @pytest.mark.parametrize("indices", [[2, 1], [1], [1, 3]])
    def test_another_choice_or_order_changes_it(self, indices: list[int]) -> None:
        assert data_fingerprint(collect(digits("test"), indices)) != data_fingerprint(collect(digits("test"), [1, 2]))

    def test_labels_count(self) -> None:
        inputs = torch.zeros(2, 1)
        fingerprints = {data_fingerprint(Batch(inputs, torch.tensor(labels))) for labels in ([0, 0], [0, 1])}
        assert len(fingerprints) == 2

    def test_the_order_of_a_dicts_entries_does_not(self) -> None:
        entries: dict[str, Any] = {"a": torch.zeros(1), "b": torch.ones(1)}
        turned = dict(reversed(entries.items()))
        labels = torch.tensor([0])
        assert data_fingerprint(Batch(entries, labels)) == data_fingerprint(Batch(turned, labels))
