"""Batches: stacking samples, running models on them, judging outputs."""

from __future__ import annotations

import math
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from search_spaces.errors import ConfigError
from workers.batch import Batch, accuracy, cross_entropy, logits, run_model, stack

NamedOutputs = namedtuple("NamedOutputs", ["scores", "aux"])


def _dict_batch(size: int) -> Batch:
    ids = torch.arange(size * 3).view(size, 3)
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(size))


class TestBatch:
    @given(samples=st.integers(1, 20), size=st.integers(1, 25), as_dict=st.booleans())
    def test_parts_together_are_the_batch(self, samples: int, size: int, as_dict: bool) -> None:
        batch = _dict_batch(samples) if as_dict else Batch(torch.rand(samples, 2), torch.arange(samples))
        parts = list(batch.split(size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert 1 <= len(parts[-1]) <= size
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        if isinstance(batch.inputs, dict):
            for name, whole in batch.inputs.items():
                assert torch.equal(torch.cat([part.inputs[name] for part in parts]), whole)  # type: ignore[index]
        else:
            assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)  # type: ignore[misc]

    def test_parts_are_views(self) -> None:
        labels = torch.zeros(4)
        next(Batch(torch.zeros(4, 2), labels).split(2)).labels[0] = 1
        assert labels.tolist() == [1, 0, 0, 0]

    @pytest.mark.parametrize("size", [0, -1])
    def test_parts_have_at_least_one_sample(self, size: int) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            list(_dict_batch(2).split(size))

    def test_the_example_is_the_first_sample_as_a_batch(self) -> None:
        example = _dict_batch(4).example()
        assert example.labels.tolist() == [0]
        assert example.inputs["input_ids"].tolist() == [[0, 1, 2]]  # type: ignore[index]

    def test_to_a_device_moves_inputs_and_labels(self) -> None:
        moved = _dict_batch(2).to("meta")
        assert moved.labels.is_meta
        assert isinstance(moved.inputs, dict)
        assert all(tensor.is_meta for tensor in moved.inputs.values())
        assert Batch(torch.rand(1, 2), torch.tensor([0])).to("meta").inputs.is_meta  # type: ignore[union-attr]


class TestStack:
    def test_pairs(self) -> None:
        batch = stack(
            [(torch.zeros(3, 2, 2), 7), (torch.ones(3, 2, 2), np.int64(1)), [torch.ones(3, 2, 2), torch.tensor(2)]]
        )
        assert batch.inputs.shape == (3, 3, 2, 2)  # type: ignore[union-attr]
        assert batch.labels.tolist() == [7, 1, 2]
        assert batch.labels.dtype == torch.int64

    @pytest.mark.parametrize("name", ["labels", "label"])
    def test_dicts_of_lists_arrays_and_tensors(self, name: str) -> None:
        batch = stack([{"ids": [1, 2], "mask": np.ones(2), name: 0}, {"mask": torch.zeros(2), "ids": [3, 4], name: 1}])
        assert batch.inputs["ids"].tolist() == [[1, 2], [3, 4]]  # type: ignore[index]
        assert batch.inputs["mask"].tolist() == [[1, 1], [0, 0]]  # type: ignore[index]
        assert batch.labels.tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("second", "said"),
        [
            (torch.zeros(3, 40, 32), "inputs of sample 0 is 3 x 32 x 32, of sample 1 3 x 40 x 32: images of different"),
            (torch.zeros(3, 40, 32), "set data.image_size"),
            (torch.zeros(1, 32, 32), "grey and colour images; give data.normalize 3 means"),
            (torch.zeros(5), "all must have one shape"),
        ],
    )
    def test_shapes_that_differ(self, second: torch.Tensor, said: str) -> None:
        with pytest.raises(ConfigError) as raised:
            stack([(torch.zeros(3, 32, 32), 0), (second, 1)], "data.train")
        assert raised.value.key == "data.train"
        assert said in raised.value.message

    @pytest.mark.parametrize(
        ("samples", "said"),
        [
            ([], "no samples"),
            ([torch.zeros(2)], "sample 0 is a Tensor; expected (input, label) or a dict with 'labels'"),
            ([(1, 2, 3)], "sample 0 is a tuple of 3"),
            ([{"ids": [1]}], "sample 0 has no 'labels', only ['ids']"),
            ([{"text": "hello", "labels": 0}], "text of sample 0 is str, no tensor or number"),
            ([(torch.zeros(1), 0), (torch.zeros(1), None)], "labels of sample 1 is NoneType"),
            ([{"a": 1, "labels": 0}, {"b": 1, "labels": 0}], "sample 0 has the entries ['a'], sample 1 has ['b']"),
            ([{"a": 1, "labels": 0}, (1, 2)], "sample 0 has the entries ['a'], sample 1 has int"),
        ],
    )
    def test_samples_of_another_kind(self, samples: list[Any], said: str) -> None:
        with pytest.raises(ConfigError) as raised:
            stack(samples)
        assert said in raised.value.message


class _ByName(nn.Module):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> str:
        assert attention_mask is not None
        return "by name"


class _AnyName(nn.Module):
    def forward(self, **inputs: torch.Tensor) -> str:
        return "any name: " + " ".join(inputs)


class _OneDict(nn.Module):
    def forward(self, inputs: dict[str, torch.Tensor]) -> str:
        return "one dict: " + " ".join(inputs)


class _IdsOnly(nn.Module):
    def forward(self, input_ids: torch.Tensor) -> str:
        return "ids"


class TestRunModel:
    def test_a_tensor_is_the_first_argument(self) -> None:
        assert run_model(nn.Flatten(), torch.zeros(2, 3, 4)).shape == (2, 12)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            (_ByName(), "by name"),
            (_AnyName(), "any name: input_ids attention_mask"),
            (_OneDict(), "one dict: input_ids attention_mask"),
        ],
    )
    def test_a_dict_goes_where_the_forward_wants_it(self, model: nn.Module, said: str) -> None:
        assert run_model(model, _dict_batch(2).inputs) == said

    def test_an_entry_that_the_forward_does_not_take(self) -> None:
        with pytest.raises(ConfigError, match="forward has no argument 'attention_mask'; drop it from the samples"):
            run_model(_IdsOnly(), _dict_batch(2).inputs)


class TestLogits:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda scores: scores,
            lambda scores: SimpleNamespace(loss=None, logits=scores),
            lambda scores: {"logits": scores, "hidden": None},
            lambda scores: (scores, "cache"),
            lambda scores: [scores],
            lambda scores: NamedOutputs(scores, None),
        ],
    )
    def test_wherever_models_put_them(self, wrap: Any) -> None:
        scores = torch.rand(2, 3)
        assert logits(wrap(scores)) is scores

    @pytest.mark.parametrize(
        ("outputs", "said"),
        [
            (None, "type NoneType"),
            ((), "type tuple"),
            (("a", torch.zeros(1)), "type tuple"),
            ({"out": torch.zeros(1)}, "type dict with the entries ['out']"),
        ],
    )
    def test_outputs_without_any(self, outputs: object, said: str) -> None:
        with pytest.raises(ConfigError) as raised:
            logits(outputs)
        assert said in raised.value.message


class TestAccuracy:
    def test_the_share_of_labels_that_the_largest_logit_names(self) -> None:
        scores = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
        assert accuracy(scores, Batch(scores, torch.tensor([1, 0, 0, 0]))) == 0.75

    def test_several_labels_a_sample(self) -> None:
        scores = torch.eye(3).expand(2, 3, 3)
        assert accuracy({"logits": scores}, Batch(scores, torch.tensor([[0, 1, 2], [0, 0, 0]]))) == pytest.approx(4 / 6)

    def test_nan_has_no_accuracy(self) -> None:
        scores = torch.full((2, 3), float("nan"))
        assert math.isnan(accuracy(scores, Batch(scores, torch.tensor([0, 0]))))

    @pytest.mark.parametrize("labels", [torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64), torch.tensor(0)])
    def test_labels_that_do_not_fit_are_not_broadcast(self, labels: torch.Tensor) -> None:
        with pytest.raises(ConfigError, match="its logits are 2 x 3 for labels"):
            accuracy(torch.rand(2, 3), Batch(torch.rand(2), labels))


class TestCrossEntropy:
    def test_by_hand(self) -> None:
        scores = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
        expected = (math.log(2) + math.log(4 / 3)) / 2
        assert cross_entropy(scores, torch.tensor([0, 1])).item() == pytest.approx(expected)

    @given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), classes=st.integers(1, 5))
    def test_equal_logits_cost_the_logarithm_of_the_classes(self, shape: list[int], classes: int) -> None:
        loss = cross_entropy(torch.zeros(*shape, classes), torch.zeros(shape, dtype=torch.int64))
        assert loss.item() == pytest.approx(math.log(classes), abs=1e-6)

    def test_half_precision_is_summed_in_float32(self) -> None:
        assert cross_entropy(torch.zeros(2, 3).half(), torch.tensor([0, 1])).dtype == torch.float32

    def test_it_can_be_differentiated(self) -> None:
        scores = torch.zeros(1, 2, requires_grad=True)
        cross_entropy(scores, torch.tensor([0])).backward()
        assert scores.grad is not None
        assert scores.grad.tolist() == [[-0.5, 0.5]]


def test_a_pil_image_is_stacked_only_after_it_became_a_tensor() -> None:
    with pytest.raises(ConfigError, match="inputs of sample 0 is Image, no tensor or number"):
        stack([(Image.new("RGB", (2, 2)), 0)])


def test_images_alone_are_laid_out_anew() -> None:
    inputs = {"pixels": torch.randn(2, 3, 4, 4), "mask": torch.ones(2, 5)}
    laid_out = Batch(inputs, torch.zeros(2)).channels_last().inputs
    assert isinstance(laid_out, dict)
    assert laid_out["pixels"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid_out["pixels"], inputs["pixels"])
    assert laid_out["mask"] is inputs["mask"]
