"""Specifies scoring in which children that go on alike go on together; here on a CPU, where it computes the same.

That every network scores as assembled is specified for this way and its parent's in `test_resuming_scorer.py`.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.workers.random_networks import (
    TRACEABLE,
    Branches,
    Case,
    Chain,
    Network,
    Residual,
    Shared,
    TakesNames,
    assert_outputs,
    assert_right,
    cases,
    families,
    make_case,
)
from workers import forward_graph
from workers.batch import accuracy
from workers.joining_scorer import JoiningScorer
from workers.out_of_place import CannotBeCut
from workers.scoring import choose_scoring, reason_against_stopping
from workers.ways import fast_ways, make_scorer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is seen here")


def network(*blocks: type[nn.Module], seed: int = 0, **options: Any) -> Case:
    torch.manual_seed(seed)
    return make_case(Network(blocks, random.Random(seed)), seed, **options)


@settings(max_examples=40)
@given(data=st.data())
def test_it_takes_every_network_of_plain_steps_that_calls_its_layers_once(data: st.DataObject) -> None:
    blocks = [block for block in TRACEABLE if block is not Shared]
    case = data.draw(cases(blocks, wrappers=[None, TakesNames]))
    scorer = JoiningScorer(*case.arguments, accuracy, slice_size=data.draw(st.integers(1, 10)))
    parent, changes = data.draw(families(case))
    assert_outputs(case, parent, changes, scorer.outputs(parent, changes))


def samples_by_call(scorer: JoiningScorer) -> list[tuple[str, int]]:
    """Fills up with every call of a layer: its name and the samples that it was given."""
    calls: list[tuple[str, int]] = []
    for step in scorer._graph.steps:
        if step.slot is not None:
            run, name = step.run, step.slot.layer.name
            step.run = lambda env, run=run, name=name: (out := run(env), calls.append((name, len(out))))[0]  # type: ignore[misc]
    return calls


def test_a_layer_is_called_once_for_every_rank_not_for_every_child() -> None:
    case = network(Chain, Chain, samples=7)
    scorer = JoiningScorer(*case.arguments, accuracy, slice_size=7)
    calls = samples_by_call(scorer)
    changes: list[Any] = [{0: 1}, {0: 2}, {1: 1}, {2: 1}, {}]
    scores = scorer.score((None,) * 4, changes)
    assert_right(case, (None,) * 4, changes, scores)
    stem = [("stem", 7)] * 3  # the parent, and two children with other ranks
    first = [("blocks.0.conv", 21), ("blocks.0.conv", 7)]  # the three of before, and one child with another rank
    second = [("blocks.1.conv", 28), ("blocks.1.conv", 7)]
    assert sorted(calls) == sorted([*stem, *first, *second, ("head", 35)])


def test_children_of_several_parents_go_together_too() -> None:
    case = network(Residual, Chain)
    scorer = JoiningScorer(*case.arguments, accuracy, slice_size=7)
    calls = samples_by_call(scorer)
    parents = [{1: 1}, {1: 2}]
    changes: list[Any] = [{**parent, index: rank} for parent in parents for index in (2, 3) for rank in (None, 1)]
    assert_right(case, (2,) * 5, changes, scorer.score((2,) * 5, changes))
    assert ("stem", 7) in calls
    assert ("head", 7 * 8) in calls


def test_what_memory_does_not_hold_goes_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    case = network(Chain, Residual)
    scorer = JoiningScorer(*case.arguments, accuracy, slice_size=7)
    monkeypatch.setattr(scorer, "_together", 14)  # samples: two children
    calls = samples_by_call(scorer)
    changes: list[Any] = [{index: 1} for index in range(len(case.layers))]
    assert_right(case, (None,) * 5, changes, scorer.score((None,) * 5, changes))
    assert max(samples for _, samples in calls) == 14


class Full(nn.Module):
    """As a GPU whose memory holds 21 samples."""

    def __init__(self, _dice: random.Random) -> None:
        super().__init__()
        self.conv, self.tried = nn.Conv2d(4, 4, 1), Tried()

    def forward(self, x: Tensor) -> Tensor:
        return self.tried(self.conv(x))


class Tried(nn.Module):
    """How many samples were tried at once."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[int] = []
        self.most = 21

    def forward(self, x: Tensor) -> Tensor:
        self.samples.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x + 0.0


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Case:
    """A network with it, which torch.fx takes for one operation."""
    is_leaf = forward_graph._Tracer.is_leaf_module
    monkeypatch.setattr(
        forward_graph._Tracer,
        "is_leaf_module",
        lambda self, module, name: isinstance(module, Tried) or is_leaf(self, module, name),
    )
    return network(Chain, Full)


def test_fewer_go_together_once_memory_runs_out(full: Case) -> None:
    arguments = full.arguments
    scorer = JoiningScorer(*arguments, accuracy, slice_size=7)
    tried = next(module for module in arguments[0].modules() if isinstance(module, Tried))
    tried.samples.clear()
    changes: list[Any] = [{0: 1}, {0: 2}, {1: 1}, {1: 2}, {2: 1}, {2: 2}]
    assert_right(full, (None,) * 4, changes, scorer.score((None,) * 4, changes))
    assert max(tried.samples) > tried.most
    tried.samples.clear()
    scorer.score((None,) * 4, changes)  # what did not fit is not tried again
    assert max(tried.samples) <= tried.most


def test_a_child_for_which_memory_does_not_do_says_so(full: Case) -> None:
    arguments = full.arguments
    scorer = JoiningScorer(*arguments, accuracy, slice_size=7)
    next(module for module in arguments[0].modules() if isinstance(module, Tried)).most = 6
    scores = scorer.score((None,) * 4, [{0: 1}, {}])
    assert [score.status for score in scores] == ["error", "error"]
    assert scores[0].reason == "OutOfMemoryError: CUDA out of memory"


def test_a_child_that_raises_says_so_and_the_others_are_scored() -> None:
    case = network(Chain, Chain)
    scores = JoiningScorer(*case.arguments, accuracy, slice_size=3).score((None,) * 4, [{2: 999}, {1: 1}, {3: 1}])
    assert [score.status for score in scores] == ["error", "ok", "ok"]
    assert scores[0].reason == "ValueError: blocks.1.conv has no rank 999"
    assert_right(case, (None,) * 4, [{1: 1}, {3: 1}], scores[1:])


def test_a_child_that_is_not_finite_says_so_and_the_others_are_scored() -> None:
    case = network(Chain, Chain)
    case.factors["blocks.0.conv"].encoder[1:].fill_(float("nan"))
    scores = JoiningScorer(*case.arguments, accuracy, slice_size=3).score((None,) * 4, [{1: 2}, {1: 1}, {2: 1}])
    assert [score.status for score in scores] == ["nan", "ok", "ok"]
    assert_right(case, (None,) * 4, [{1: 1}, {2: 1}], scores[1:])


def test_the_time_is_shared_out_evenly() -> None:
    scores = JoiningScorer(*network(Chain).arguments, accuracy).score((1, 1, 1), [{0: 2}, {}, {1: 2}])
    assert len({score.seconds for score in scores}) == 1
    assert scores[0].seconds > 0


def test_nobody_is_scored_where_nobody_is_asked_for() -> None:
    assert JoiningScorer(*network(Chain).arguments, accuracy).score((1, 1, 1), []) == []


class RemembersSize(nn.Module):
    """Needs the number of samples behind a layer."""

    def __init__(self, _dice: random.Random) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        samples = x.size(0)
        return self.mix(x).view(samples, 4, 6, 6)


class SequenceFirst(nn.Module):
    """Keeps a value over a layer in which samples lie in the second dimension."""

    def __init__(self, _dice: random.Random) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)
        return (tokens + self.mix(tokens)).permute(1, 2, 0).reshape(x.shape).contiguous()


class Summary(nn.Module):
    """Puts out a number for the whole batch beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network([Chain], random.Random(0))

    def forward(self, pixels: Tensor) -> Any:
        logits = self.network(pixels)
        return logits, logits.sum()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Network([Shared], random.Random(0)), "joined, its forward must call every layer once"),
        (Network([RemembersSize], random.Random(0)), "joined, its size would be needed for each network by itself"),
        (Network([SequenceFirst], random.Random(0)), "joined, its permute would be needed for each network by itself"),
        (Summary(), "joined, its output must be tensors with one entry a sample"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_one_clause(model: nn.Module, reason: str) -> None:
    with pytest.raises(CannotBeCut) as refused:
        JoiningScorer(*make_case(model).arguments, accuracy)
    assert str(refused.value) == reason


def test_bfloat16_is_within_its_digits() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not compute in bfloat16")
    case = network(Branches, Residual)
    changes: list[Any] = [{index: 1} for index in range(len(case.layers))]
    parent = (2,) * len(case.layers)
    one_by_one, joined = (make_scorer(way, case.subject(), "bfloat16") for way in ("resumed", "joined"))
    expected = [score.values["loss"] for score in one_by_one.score(parent, changes)]
    assert [score.values["loss"] for score in joined.score(parent, changes)] == pytest.approx(expected, rel=0.05)


def test_children_are_joined_on_gpus_alone() -> None:
    assert fast_ways(torch.device("cuda")) == ["joined", "resumed", "replayed"]
    assert fast_ways(torch.device("cpu")) == ["resumed", "replayed"]


@needs_gpu
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_on_a_gpu_every_network_scores_as_assembled_or_in_a_slower_way(data: st.DataObject) -> None:
    case = data.draw(cases())
    subject = case.subject().to("cuda")
    dense = (None,) * len(case.layers)
    way, _ = choose_scoring(subject, [dense])
    parent, changes = data.draw(families(case))
    assert_right(case, parent, changes, make_scorer(way, subject).score(parent, changes))
    assert reason_against_stopping(way, subject, dense)
