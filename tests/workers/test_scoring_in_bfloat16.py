"""Specifies scoring in bfloat16: within its digits of the plain pass, or refused in one clause."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.rank_space import RankVector
from tests.workers.random_networks import BranchesOnValues, Case, Chain, Network, Residual, cases, families, make_case
from workers.batch import Batch, accuracy, logits
from workers.scorer import child_of
from workers.scoring import choose_scoring, reason_against_bfloat16
from workers.ways import make_scorer

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor does not compute in bfloat16"
)


def candidates(case: Case) -> list[RankVector]:
    full = [len(scheme.ranks(layer)) for layer, scheme in zip(case.layers, case.schemes, strict=True)]
    return [(None,) * len(full), tuple(max(1, rank // 2) for rank in full)]


def network(*blocks: type[nn.Module]) -> Case:
    torch.manual_seed(0)
    return make_case(Network(blocks, random.Random(0)), dtype=torch.float32)


@needs_bfloat16
@settings(max_examples=25)
@given(data=st.data())
def test_outputs_are_within_its_digits_or_it_is_refused(data: st.DataObject) -> None:
    case = data.draw(cases())
    way, _ = choose_scoring(case.subject(), candidates(case))
    reason = reason_against_bfloat16(way, case.subject(), candidates(case))
    assert (way != "resumed") <= bool(reason)
    assert "\n" not in reason
    if reason:
        return
    parent, changes = data.draw(families(case))
    scores = make_scorer(way, case.subject(), "bfloat16").score(parent, changes)
    for change, score in zip(changes, scores, strict=True):
        expected = case.values(child_of(parent, change))
        largest = float(case.outputs(child_of(parent, change)).abs().max())
        assert score.ok, score.reason
        # A cross-entropy moves by at most twice what its logits move; networks that were not checked may differ more.
        assert abs(score.values["loss"] - expected["loss"]) <= 4 * torch.finfo(torch.bfloat16).eps ** 0.5 * largest


@needs_bfloat16
def test_outputs_are_judged_in_float32() -> None:
    case = network(Chain, Residual)
    seen: list[tuple[Tensor, int]] = []

    def metric(outputs: object, batch: Batch) -> float:
        seen.append((logits(outputs).clone(), len(batch)))
        return accuracy(outputs, batch)

    parent = candidates(case)[1]
    (score,) = make_scorer("resumed", case.subject(metric=metric), "bfloat16").score(parent, [{}])
    assert [outputs.dtype for outputs, _ in seen] == [torch.float32]
    outputs = seen[0][0]
    assert torch.equal(outputs, outputs.bfloat16().float())  # but computed in bfloat16
    assert not torch.equal(outputs, case.outputs(parent))
    assert score.values["loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, case.batch.labels)))


@needs_bfloat16
def test_the_model_and_the_factors_stay_what_they_are() -> None:
    case = network(Chain, Residual)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    make_scorer("resumed", case.subject(), "bfloat16").score(candidates(case)[1], [{0: None}])
    for name, tensor in case.model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


class Cancels(nn.Module):
    """The difference of large numbers that agree in more digits than bfloat16 has."""

    def __init__(self, _dice: random.Random) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.mix(x) + 1e4) - 1e4


class Transforms(nn.Module):
    """Calls what torch does not have in bfloat16."""

    def __init__(self, _dice: random.Random) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.mix(x)).real


@needs_bfloat16
@pytest.mark.parametrize(
    ("block", "clause"),
    [
        (Cancels, "what it computes there differs too much from what it computes in its own precision"),
        (Transforms, "its forward does not run step by step (NotImplementedError"),
        (BranchesOnValues, "that takes a forward that can be resumed at every layer"),
    ],
)
def test_what_it_cannot_compute_is_refused(block: type[nn.Module], clause: str) -> None:
    case = network(Chain, block)
    way, _ = choose_scoring(case.subject(), candidates(case))
    reason = reason_against_bfloat16(way, case.subject(), candidates(case))
    assert clause in reason
    assert "\n" not in reason


def test_a_processor_without_it_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    case = network(Chain)
    assert (
        reason_against_bfloat16("resumed", case.subject(), candidates(case)) == "this processor does not compute in it"
    )
