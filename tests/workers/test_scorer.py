"""Specifies the plain way of scoring, and how outputs are judged: against sums written out in float64."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.candidates import Score
from tests.workers.random_networks import Chain, Network, assert_right, cases, families, make_case
from workers.batch import Batch, accuracy
from workers.scorer import PlainScorer, child_of, judge, judge_in_slices


def batch_of(labels: list[int]) -> Batch:
    return Batch(torch.zeros(len(labels), 1), torch.tensor(labels))


def log_softmax(row: list[float]) -> list[float]:
    largest = max(row)
    total = math.log(math.fsum(math.exp(value - largest) for value in row))
    return [value - largest - total for value in row]


rows = st.lists(st.lists(st.floats(-30, 30, width=16), min_size=4, max_size=4), min_size=1, max_size=6)


@given(outputs=rows, data=st.data())
def test_loss_and_divergence_are_what_their_definitions_say(outputs: list[list[float]], data: st.DataObject) -> None:
    size = len(outputs)
    same_size = st.lists(st.floats(-30, 30, width=16), min_size=4, max_size=4)
    dense = data.draw(st.lists(same_size, min_size=size, max_size=size))
    labels = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    reference = torch.log_softmax(torch.tensor(dense), -1)
    found = judge(torch.tensor(outputs), batch_of(labels), accuracy, reference)
    assert found is not None
    ours, theirs = [log_softmax(row) for row in outputs], [log_softmax(row) for row in dense]
    loss = -math.fsum(row[label] for row, label in zip(ours, labels, strict=True)) / size
    kl = math.fsum(
        math.exp(p) * (p - q) for row, other in zip(theirs, ours, strict=True) for p, q in zip(row, other, strict=True)
    )
    assert found["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-5)
    assert found["kl"] == pytest.approx(kl / size, rel=1e-4, abs=1e-4)
    assert found["accuracy"] == accuracy(torch.tensor(outputs), batch_of(labels))


def test_a_case_by_hand() -> None:
    outputs = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # 3/4 and 1/4, then halves
    reference = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    found = judge(outputs, batch_of([0, 1]), accuracy, reference)
    assert found == pytest.approx(
        {
            "accuracy": 0.5,
            "loss": (math.log(4 / 3) + math.log(2)) / 2,
            "kl": (0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2,
        }
    )


def test_the_same_outputs_have_no_divergence() -> None:
    outputs = torch.randn(5, 3) * 10
    found = judge(outputs, batch_of([0] * 5), accuracy, torch.log_softmax(outputs, -1))
    assert found is not None
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)


def test_without_a_reference_there_is_no_divergence() -> None:
    assert set(judge(torch.zeros(1, 2), batch_of([0]), accuracy, None) or {}) == {"accuracy", "loss"}


def test_labels_of_every_position_are_judged() -> None:
    outputs, labels = torch.randn(2, 5, 4), torch.randint(0, 4, (2, 5))
    found = judge(outputs, Batch(torch.zeros(2, 1), labels), accuracy, torch.log_softmax(outputs, -1))
    assert found is not None
    expected = [-log_softmax(outputs[n, t].tolist())[int(labels[n, t])] for n in range(2) for t in range(5)]
    assert found["loss"] == pytest.approx(math.fsum(expected) / 10, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_have_no_values(bad: float) -> None:
    outputs = torch.zeros(3, 2)
    outputs[1, 0] = bad
    assert judge(outputs, batch_of([0, 0, 0]), lambda outputs, batch: 1.0, None) is None
    assert judge({"logits": outputs}, batch_of([0, 0, 0]), lambda outputs, batch: 1.0, None) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_judged_in_float32(dtype: torch.dtype) -> None:
    outputs = (torch.randn(50, 10) * 5).to(dtype)
    half, single = (judge(one, batch_of([1] * 50), accuracy, None) for one in (outputs, outputs.float()))
    assert half == single


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_slices_of_any_sizes_give_the_mean_over_samples(sizes: list[int]) -> None:
    torch.manual_seed(0)
    model, total = nn.Linear(4, 3), sum(sizes)
    inputs, labels = torch.randn(total, 4), torch.randint(0, 3, (total,))
    parts = [Batch(a, b) for a, b in zip(inputs.split(sizes), labels.split(sizes), strict=True)]
    with torch.inference_mode():
        whole = judge(model(inputs), Batch(inputs, labels), accuracy, None)
    assert judge_in_slices(model, parts, accuracy) == pytest.approx(whole, rel=1e-5)


def test_one_slice_that_is_not_finite_spoils_the_batch() -> None:
    inputs = torch.ones(4, 2)
    inputs[3] = math.nan
    parts = list(Batch(inputs, torch.zeros(4, dtype=torch.int64)).split(2))
    assert judge_in_slices(nn.Linear(2, 2), parts, accuracy) is None


@settings(max_examples=20)
@given(data=st.data())
def test_the_plain_way_scores_as_assembled(data: st.DataObject) -> None:
    case = data.draw(cases())
    parent, changes = data.draw(families(case))
    assert_right(case, parent, changes, PlainScorer(*case.arguments, accuracy).score(parent, changes))


def test_failures_are_scores_that_say_so() -> None:
    case = make_case(Network([Chain, Chain], random.Random(0)))
    case.factors["blocks.0.conv"].encoder[1:].fill_(float("nan"))
    scores = PlainScorer(*case.arguments, accuracy).score((None,) * 4, [{1: 2}, {2: 999}, {1: 1}])
    assert [score.status for score in scores] == ["nan", "error", "ok"]
    assert scores[0].reason == "the network's outputs are not finite"
    assert scores[1].reason.startswith("RuntimeError: ")
    assert all(score.seconds > 0 for score in scores)
    assert isinstance(scores[1], Score)
    assert not scores[1].values


def test_a_metric_that_raises_is_an_error_of_the_candidate() -> None:
    def broken(outputs: object, batch: Batch) -> float:
        raise KeyError("top5")

    case = make_case(Network([Chain], random.Random(0)))
    score = PlainScorer(*case.arguments, broken).score((None,) * 3, [{}])[0]
    assert (score.status, score.reason) == ("error", "KeyError: 'top5'")


def test_a_metric_sees_outputs_and_batch_as_they_are() -> None:
    seen: list[Any] = []

    def metric(outputs: object, batch: Batch) -> float:
        seen.append((outputs, batch))
        return 0.25

    case = make_case(Network([Chain], random.Random(0)))
    score = PlainScorer(*case.arguments, metric, slice_size=4).score((None,) * 3, [{}])[0]
    assert score.values["accuracy"] == 0.25
    assert [len(batch) for _, batch in seen] == [4, 3]
    assert all(isinstance(outputs, Tensor) and outputs.shape == (len(batch), 3) for outputs, batch in seen)


def test_a_child_is_its_parent_with_the_change() -> None:
    assert child_of((1, None, 3), {1: 2, 2: None}) == (1, 2, None)
    assert child_of((1, None, 3), {}) == (1, None, 3)
