"""Specifies the choice of the way of scoring: never a wrong score, and refusals in one clear line."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.rank_space import RankVector
from tests.workers.random_networks import (
    BranchesOnValues,
    Case,
    Chain,
    Network,
    Padded,
    Residual,
    TakesAnything,
    TakesDict,
    TorchEncoder,
    WritesAfterRead,
    WritesThroughView,
    assert_right,
    cases,
    families,
    make_case,
)
from workers.batch import Batch, accuracy
from workers.out_of_place import CannotBeCut
from workers.replaying_scorer import ReplayingScorer
from workers.resuming_scorer import ResumingScorer
from workers.scorer import PlainScorer
from workers.scoring import choose_scoring
from workers.ways import make_scorer


def candidates(case: Case) -> list[RankVector]:
    full = [len(scheme.ranks(layer)) for layer, scheme in zip(case.layers, case.schemes, strict=True)]
    return [(None,) * len(full), tuple(max(1, rank // 2) for rank in full)]


def network(*blocks: type[nn.Module], **options: Any) -> Case:
    torch.manual_seed(0)
    return make_case(Network(blocks, random.Random(0)), **options)


@settings(max_examples=20)
@given(data=st.data())
def test_whatever_is_chosen_scores_as_assembled(data: st.DataObject) -> None:
    case = data.draw(cases())
    way, reason = choose_scoring(case.subject(), candidates(case))
    assert way in ("resumed", "replayed"), reason  # none of these networks needs the plain way
    assert (way == "resumed") == (reason == "")
    parent, changes = data.draw(families(case))
    assert_right(case, parent, changes, make_scorer(way, case.subject()).score(parent, changes))


def test_the_way_is_all_that_has_to_be_sent() -> None:
    case = network(Residual)
    way, _ = choose_scoring(case.subject(), candidates(case))
    assert pickle.loads(pickle.dumps(way)) == way == "resumed"
    kinds = {"resumed": ResumingScorer, "replayed": ReplayingScorer, "plain": PlainScorer}
    for name, kind in kinds.items():
        assert type(make_scorer(name, case.subject())) is kind  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block", "clause"),
    [
        (
            BranchesOnValues,
            "torch.fx cannot trace its forward (TraceError: symbolically traced variables cannot be used",
        ),
        (Padded, "torch.fx cannot trace its forward (TraceError"),  # control flow on shapes
        (TorchEncoder, "torch.fx does not look into torch's TransformerEncoderLayer, which calls layers"),
        (WritesThroughView, "it writes into a part of a tensor"),
        (WritesAfterRead, "writes in place to a value that was read before"),
    ],
)
def test_what_torch_fx_cannot_cut_is_replayed_and_the_reason_said(block: type[nn.Module], clause: str) -> None:
    case = network(block, Chain)
    way, reason = choose_scoring(case.subject(), candidates(case))
    assert way == "replayed"
    assert clause in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("wrapper", "clause"),
    [
        (TakesDict, "its forward takes its inputs as one dict"),
        (TakesAnything, "its forward takes *args or **kwargs"),
    ],
)
def test_arguments_that_torch_fx_does_not_take_are_replayed(wrapper: type[TakesDict], clause: str) -> None:
    inputs = {"pixels": torch.randn(9, 3, 6, 6), "shift": torch.randn(9, 3)}
    case = make_case(wrapper(Network([Chain], random.Random(0))), samples=9, inputs=inputs)
    assert choose_scoring(case.subject(), candidates(case)) == ("replayed", clause)


class Head(nn.Module):
    """Two layers, and in between whatever a test is about."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(6, 5), nn.Linear(5, 3), between
        self.calls = 0
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self, self.first(x)))


def head(between: Callable[[Any, Tensor], Tensor], samples: int = 40) -> Case:
    torch.manual_seed(0)
    return make_case(Head(between), samples=samples, inputs=torch.randn(samples, 6))


def counted(module: Any, x: Tensor) -> Tensor:
    module.calls += 1
    return x * module.calls


def counted_late(module: Any, x: Tensor) -> Tensor:
    module.calls += 1
    return x if module.calls < 9 else -x


def averaged(module: Any, x: Tensor) -> Tensor:
    module.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x - module.mean


def noisy(_module: Any, x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def noisy_in_python(_module: Any, x: Tensor) -> Tensor:
    return x * random.random()


def dropped(_module: Any, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=True)


def dropped_seldom(_module: Any, x: Tensor) -> Tensor:
    return F.dropout(x, 0.02, training=True)


@pytest.mark.parametrize("between", [noisy, noisy_in_python, dropped, dropped_seldom])
def test_random_outputs_and_dropout_left_on_are_refused(between: Callable[[Any, Tensor], Tensor]) -> None:
    case = head(between)
    with pytest.raises(ConfigError, match="two passes over the same samples give different outputs: dropout left on"):
        choose_scoring(case.subject(), candidates(case))


@pytest.mark.parametrize("between", [counted, averaged])
def test_outputs_that_depend_on_former_passes_are_refused(between: Callable[[Any, Tensor], Tensor]) -> None:
    case = head(between)
    with pytest.raises(ConfigError, match="keeps state from pass to pass"):
        choose_scoring(case.subject(), candidates(case))


def test_state_that_shows_after_some_passes_is_refused() -> None:
    case = head(counted_late)
    with pytest.raises(ConfigError, match="its forward keeps state"):
        choose_scoring(case.subject(), candidates(case))


def scaled_input(x: Tensor) -> Tensor:
    return x.mul_(0.5)


def clamped_input(x: Tensor) -> Tensor:
    return x.clamp_(-9, 9)  # changes nothing, and is a write all the same


@pytest.mark.parametrize("write", [scaled_input, clamped_input])
def test_a_forward_that_writes_to_its_inputs_is_refused(write: Callable[[Tensor], Tensor]) -> None:
    class Writes(Head):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(write(x)))

    case = make_case(Writes(lambda _, x: x), samples=9, inputs=torch.randn(9, 6))
    before = case.batch.inputs.clone()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="its forward writes to its inputs"):
        choose_scoring(case.subject(), candidates(case))
    assert torch.equal(case.batch.inputs, before)  # type: ignore[arg-type]


def centred(_module: Any, x: Tensor) -> Tensor:
    return x - x.mean(0)


def test_a_model_that_mixes_samples_is_scored_in_one_slice_or_plainly() -> None:
    """The mean over the batch is another one in every slice."""
    case = head(centred, samples=200_000)
    way, reason = choose_scoring(case.subject(), candidates(case))
    assert (way, reason) == ("plain", "what it gives for a sample depends on the others in the batch")
    small = head(centred)  # one slice: nothing is mixed wrongly
    assert choose_scoring(small.subject(), candidates(small)) == ("resumed", "")


def large_batches_only(_module: Any, x: Tensor) -> Tensor:
    return x if len(x) < 150_000 else -x


def test_control_flow_on_the_batch_s_size_is_found_on_the_whole_batch() -> None:
    case = head(large_batches_only, samples=200_000)
    way, reason = choose_scoring(case.subject(), candidates(case))
    assert way == "plain"
    assert reason.endswith("what it gives for a sample depends on the others in the batch")


def writes_unseen(_module: Any, x: Tensor) -> Tensor:
    x.data.mul_(0.5)
    return x


def test_writes_that_torch_does_not_count_leave_the_plain_way() -> None:
    case = head(writes_unseen)
    way, reason = choose_scoring(case.subject(), candidates(case))
    assert way == "plain"
    assert "could write unseen" in reason


def softmax_in_place(outputs: object, batch: Batch) -> float:
    assert isinstance(outputs, Tensor)
    outputs.sub_(outputs.max())
    return accuracy(outputs, batch)


def test_a_metric_that_writes_to_outputs_leaves_the_plain_way() -> None:
    case = network(Chain)
    way, reason = choose_scoring(case.subject(softmax_in_place), candidates(case))
    assert (way, reason) == ("plain", "the metric writes to the outputs that it judges")


def test_a_metric_of_the_user_s_is_judged_on_the_whole_batch() -> None:
    def spread(outputs: object, _batch: Batch) -> float:
        assert isinstance(outputs, Tensor)
        return float(outputs.std())

    case = network(Chain, samples=9)
    subject = case.subject(spread)
    way, _ = choose_scoring(subject, candidates(case))
    assert way == "resumed"
    score = make_scorer(way, subject).score((1, None, 1), [{0: 2}])[0]
    assert score.values["accuracy"] == pytest.approx(case.values((2, None, 1), spread)["accuracy"], rel=1e-5)


def test_the_size_of_slices_that_the_user_set_is_kept() -> None:
    case = network(Chain, samples=9)
    subject = case.subject(slice_size=4)
    assert choose_scoring(subject, candidates(case)) == ("resumed", "")
    scorer = make_scorer("resumed", subject)
    assert isinstance(scorer, ResumingScorer)
    assert scorer.slice_sizes == [4, 4, 1]


def test_weights_and_batch_are_left_as_they_were() -> None:
    case = network(WritesAfterRead, Residual, TorchEncoder)
    model, inputs = copy.deepcopy(case.model.state_dict()), case.batch.inputs.clone()  # type: ignore[union-attr]
    factors = copy.deepcopy(case.factors)
    shared = case.subject()
    choose_scoring(shared, candidates(case))
    assert all(torch.equal(value, model[name]) for name, value in case.model.state_dict().items())
    assert torch.equal(case.batch.inputs, inputs)  # type: ignore[arg-type]
    for name, one in case.factors.items():
        assert all(torch.equal(value, factors[name].tensors()[key]) for key, value in one.tensors().items())


def test_what_cannot_be_made_says_why() -> None:
    case = network(TorchEncoder)
    with pytest.raises(CannotBeCut, match="does not look into"):
        make_scorer("resumed", case.subject())


def test_half_precision_is_taken() -> None:
    case = network(Residual, dtype=torch.bfloat16)
    assert choose_scoring(case.subject(), candidates(case)) == ("resumed", "")
