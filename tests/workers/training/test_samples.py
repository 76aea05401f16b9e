"""Samples in memory: the same pixels as the data set's, in a quarter of the room, cut by number into parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.errors import ConfigError
from workers.batch import Batch
from workers.datasets import PreparedDataset, digits
from workers.images import ImageToTensor
from workers.splits import collect
from workers.training.augmentation import ready
from workers.training.samples import Normalisation, Samples, generator, read_samples

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pictures:
    """Random RGB images; more than are read at once."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count) % 7

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        return Image.fromarray(pixels), int(self.labels[i])


def numbered(count: int) -> Samples:
    return Samples(torch.arange(count, dtype=torch.float32).view(count, 1), torch.arange(count))


def test_images_are_kept_as_uint8_and_come_out_as_the_data_set_gives_them() -> None:
    samples = read_samples(PreparedDataset(Pictures(2100), ImageToTensor(None, None, "data.train"), "data.train"))
    assert isinstance(samples.inputs, torch.Tensor)
    assert samples.inputs.dtype is torch.uint8
    normalise = {"mean": MEAN, "std": STD}
    expected = collect(PreparedDataset(Pictures(2100), ImageToTensor(normalise, None, "data"), "data"), None)
    assert torch.equal(samples.labels, expected.labels)
    torch.testing.assert_close(ready(samples.inputs, Normalisation(MEAN, STD)), expected.inputs, rtol=1e-5, atol=1e-5)


def test_some_samples_in_the_order_asked_for() -> None:
    pictures = PreparedDataset(Pictures(50), ImageToTensor(None, None, "data.train"), "data.train")
    whole, some = read_samples(pictures), read_samples(pictures, [40, 3, 3])
    assert torch.equal(some.inputs, whole.inputs[[40, 3, 3]])  # type: ignore[call-overload]


def test_anything_else_is_kept_as_it_is() -> None:
    samples = read_samples(digits("test"))  # levels of 1/16
    assert isinstance(samples.inputs, torch.Tensor)
    assert torch.equal(samples.inputs, collect(digits("test"), None).inputs)
    sentences = [{"ids": torch.tensor([i, i + 1]), "labels": i % 2} for i in range(5)]
    read = read_samples(sentences)
    assert read.inputs["ids"].tolist() == [[i, i + 1] for i in range(5)]  # type: ignore[index]
    assert not read.are_images
    assert read.batch(torch.tensor([4, 0])).inputs["ids"].tolist() == [[4, 5], [0, 1]]  # type: ignore[index]


def test_normalisation_of_what_is_no_image() -> None:
    with pytest.raises(ConfigError, match=r"^data\.train: samples are no 8-bit images"):
        read_samples(digits("test"), normalisation=Normalisation((0.5,), (0.5,)))


def test_parts_are_disjoint_and_the_same_for_a_seed() -> None:
    samples = numbered(101)
    first, second = samples.split([0.7, 0.3], seed=3)
    taken = [part.batch(torch.arange(len(part))).labels.tolist() for part in (first, second)]
    assert (len(first), len(second)) == (71, 30)
    assert sorted(taken[0] + taken[1]) == list(range(101))
    assert taken[0] != sorted(taken[0])
    again = samples.split([0.7, 0.3], seed=3)[1]
    assert again.batch(torch.arange(30)).labels.tolist() == taken[1]
    other = samples.split([0.7, 0.3], seed=4)[1]
    assert other.batch(torch.arange(30)).labels.tolist() != taken[1]
    # A part of a part, and nothing is copied but numbers.
    inner = second.split([0.5], seed=0)[0]
    assert set(inner.batch(torch.arange(len(inner))).labels.tolist()) < set(taken[1])
    assert inner.inputs is samples.inputs


def test_shares_that_make_no_parts() -> None:
    with pytest.raises(ConfigError, match=r"^data\.train: 3 samples cannot be split \[0\.9, 0\.1\]"):
        numbered(3).split([0.9, 0.1], seed=0)
    with pytest.raises(ValueError, match="at most 1 in all"):
        numbered(3).split([0.9, 0.2], seed=0)


def test_an_epoch_is_full_batches_in_random_order() -> None:
    batches = [part.tolist() for part in numbered(10).shuffled(3, generator(0, 0, "order"))]
    assert [len(part) for part in batches] == [3, 3, 3]
    assert len({number for part in batches for number in part}) == 9
    (whole,) = numbered(10).shuffled(64, generator(0, 0, "order"))
    assert sorted(whole.tolist()) == list(range(10))
    assert [part.tolist() for part in numbered(5).in_order(2)] == [[0, 1], [2, 3], [4]]


def test_generators_depend_on_seed_epoch_and_purpose_alone() -> None:
    def drawn(seed: int, epoch: int, purpose: str) -> int:
        return int(torch.randint(2**40, (1,), generator=generator(seed, epoch, purpose)))

    assert drawn(1, 2, "order") == drawn(1, 2, "order")
    every = {drawn(seed, epoch, purpose) for seed in range(5) for epoch in range(5) for purpose in ("order", "split")}
    assert len(every) == 50


def test_a_batch_of_a_part() -> None:
    part = numbered(10).part(torch.tensor([7, 2, 5]))
    batch = part.batch(torch.tensor([2, 0]))
    assert isinstance(batch, Batch)
    assert batch.labels.tolist() == [5, 7]
    assert part.to("cpu").batch(torch.tensor([1])).labels.tolist() == [2]
