"""Specifies scoring by going on from the parent's values at the changed layer."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from search_spaces.candidates import Score
from tests.workers.random_networks import (
    TRACEABLE,
    Attention,
    Branches,
    Case,
    Chain,
    Depthwise,
    Network,
    PreActivation,
    Residual,
    Shared,
    TakesNames,
    assert_outputs,
    assert_right,
    cases,
    families,
    make_case,
)
from workers.batch import Batch, accuracy
from workers.joining_scorer import JoiningScorer
from workers.out_of_place import CannotBeCut
from workers.resuming_scorer import ResumingScorer
from workers.scorer import PlainScorer


def network(*blocks: type[nn.Module], seed: int = 0, **options: Any) -> Case:
    torch.manual_seed(seed)
    return make_case(Network(blocks, random.Random(seed)), seed, **options)


@pytest.mark.parametrize("way", [ResumingScorer, JoiningScorer])
@settings(max_examples=50)
@given(data=st.data())
def test_every_network_that_it_takes_scores_as_assembled(way: type[ResumingScorer], data: st.DataObject) -> None:
    case = data.draw(cases())
    try:
        scorer = way(*case.arguments, accuracy)
    except CannotBeCut:
        assume(False)
    parent, changes = data.draw(families(case))
    assert_right(case, parent, changes, scorer.score(parent, changes))
    assert_outputs(case, parent, changes, scorer.outputs(parent, changes))


@settings(max_examples=40)
@given(data=st.data())
def test_it_takes_every_network_of_plain_steps(data: st.DataObject) -> None:
    case = data.draw(cases(TRACEABLE, wrappers=[None, TakesNames]))
    scorer = ResumingScorer(*case.arguments, accuracy)
    parent, changes = data.draw(families(case))
    assert_outputs(case, parent, changes, scorer.outputs(parent, changes))


@settings(max_examples=15)
@given(data=st.data())
def test_order_and_grouping_do_not_matter(data: st.DataObject) -> None:
    case = data.draw(cases(TRACEABLE, wrappers=[None]))
    scorer = ResumingScorer(*case.arguments, accuracy)
    parent, changes = data.draw(families(case))
    together = [score.values for score in scorer.score(parent, changes)]
    assert [scorer.score(parent, [change])[0].values for change in changes] == together
    assert [score.values for score in scorer.score(parent, changes[::-1])] == together[::-1]


@pytest.mark.parametrize("slice_size", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("block", [Residual, Attention])
def test_slices_give_what_the_whole_batch_gives(block: type[nn.Module], slice_size: int) -> None:
    case = network(block, Chain)
    scorer = ResumingScorer(*case.arguments, accuracy, slice_size=slice_size)
    parent = (1,) * len(case.layers)
    changes = [{index: None} for index in range(len(case.layers))]
    assert_right(case, parent, changes, scorer.score(parent, changes))


def test_children_with_the_same_hits_tie_exactly_however_the_slices_fall() -> None:
    case = network(Chain, samples=97)
    ranks = [(a, b, c) for a in (1, 2, None) for b in (1, 2, 3, None) for c in (1, 2, None)]
    changes = [dict(enumerate(one)) for one in ranks]
    whole = PlainScorer(*case.arguments, accuracy).score((None,) * 3, changes)
    for slice_size in (7, 11, 26):
        scores = ResumingScorer(*case.arguments, accuracy, slice_size=slice_size).score((None,) * 3, changes)
        assert [score.values["accuracy"] for score in scores] == [score.values["accuracy"] for score in whole]


def test_a_user_s_metric_sees_the_whole_batch_where_slices_are_the_whole_batch() -> None:
    seen: list[int] = []

    def largest_class(outputs: object, batch: Batch) -> float:
        assert isinstance(outputs, Tensor)
        seen.append(len(batch))
        return float(outputs.argmax(-1).bincount().max())  # no mean over samples

    case = network(Chain)
    score = ResumingScorer(*case.arguments, largest_class, slice_size=7).score((1, 1, 1), [{}])[0]
    assert seen == [7]
    assert score.values["accuracy"] == case.values((1, 1, 1), largest_class)["accuracy"]


def test_half_precision_agrees_to_its_own_rounding() -> None:
    case = network(Residual, Chain, dtype=torch.bfloat16)
    scorer = ResumingScorer(*case.arguments, accuracy)
    parent = (2,) * len(case.layers)
    changes = [{index: 1} for index in range(len(case.layers))]
    for change, found in zip(changes, scorer.outputs(parent, changes), strict=True):
        expected = case.outputs(tuple(change.get(index, rank) for index, rank in enumerate(parent)))
        assert found is not None
        assert found.dtype == torch.bfloat16
        assert float((found - expected).abs().max()) <= 0.05 * float(expected.abs().max())


def live(env: list[Any]) -> int:
    return sum(isinstance(value, Tensor) for value in env)


def test_only_values_that_are_still_needed_are_held() -> None:
    case = network(*[Residual] * 6)
    scorer = ResumingScorer(*case.arguments, accuracy)
    graph = scorer._graph
    with torch.inference_mode():
        env = graph.begin(case.batch.inputs)
        held = []
        for index in range(len(graph.steps)):
            graph.run(env, index, index + 1)
            held.append(live(env))
    assert max(held) <= 3  # the block's input, its convolution's, and the sum's
    assert held[-1] == 1  # the outputs


def test_the_slices_bound_memory_for_any_batch() -> None:
    largest: list[int] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network([Chain], random.Random(0))

        def forward(self, pixels: Tensor) -> Any:
            return self.network(pixels)

    case = make_case(Watching(), samples=33)
    scorer = ResumingScorer(*case.arguments, accuracy, slice_size=8)
    for step in scorer._graph.steps:
        if step.slot is not None:
            run = step.run
            step.run = lambda env, run=run: (largest.append(len(out := run(env))), out)[1]  # type: ignore[misc]
    scorer.score((1, 1, 1), [{0: 2}, {2: 2}])
    assert max(largest) == 8
    assert scorer.slice_sizes == [8, 8, 8, 8, 1]


def calls_of_layers(scorer: ResumingScorer) -> list[int]:
    """Fills up with the index of every step that calls a layer, as they run."""
    calls: list[int] = []
    for index, step in enumerate(scorer._graph.steps):
        if step.slot is not None:
            run = step.run
            step.run = lambda env, run=run, index=index: (calls.append(index), run(env))[1]  # type: ignore[misc]
    return calls


def test_the_parent_s_steps_before_a_cut_run_once_for_all_children() -> None:
    case = network(Chain, Chain)
    scorer = ResumingScorer(*case.arguments, accuracy, slice_size=7)
    calls = calls_of_layers(scorer)
    stem, first, second, head = scorer._graph.first_call.values()
    scorer.score((None,) * 4, [{3: 1}, {1: 1}, {1: 2}, {}])
    suffix = [first, second, head]
    assert calls == [stem, *suffix, *suffix, first, second, head, head]


def test_what_children_of_several_parents_have_in_common_runs_once() -> None:
    case = network(Chain, Chain)
    scorer = ResumingScorer(*case.arguments, accuracy, slice_size=7)
    calls = calls_of_layers(scorer)
    stem, first, second, head = scorer._graph.first_call.values()
    one, other = {1: 1}, {1: 2}  # the parents, and each with two children
    changes = [{**one, 2: 1}, {**one, 3: 1}, {**other, 2: 1}, {**other, 3: 1}]
    scores = scorer.score((None,) * 4, changes)
    family = [first, second, head, second, head]
    assert calls == [stem, *family, *family]
    assert_right(case, (None,) * 4, changes, scores)


def test_nobody_is_scored_where_nobody_is_asked_for() -> None:
    assert ResumingScorer(*network(Chain).arguments, accuracy).score((1, 1, 1), []) == []


def nan_weights(case: Case, layer: int) -> None:
    """Rank 2 and more of a layer give NaN; rank 1 does not."""
    case.factors[case.layers[layer].name].encoder[1:].fill_(float("nan"))


def test_a_child_that_is_not_finite_says_so_and_the_others_are_scored() -> None:
    case = network(Chain, Chain)
    nan_weights(case, 1)
    scorer = ResumingScorer(*case.arguments, accuracy, slice_size=3)
    scores = scorer.score((None,) * 4, [{1: 2}, {1: 1}, {2: 1}])
    assert [score.status for score in scores] == ["nan", "ok", "ok"]
    assert scores[0] == Score(
        (None, 2, None, None), {}, scores[0].seconds, status="nan", reason="the network's outputs are not finite"
    )
    assert_right(case, (None,) * 4, [{1: 1}, {2: 1}], scores[1:])


def test_a_child_that_raises_says_so_and_the_others_are_scored() -> None:
    case = network(Chain, Chain)
    scorer = ResumingScorer(*case.arguments, accuracy, slice_size=3)
    scores = scorer.score((None,) * 4, [{2: 999}, {1: 1}, {3: 1}])
    assert [score.status for score in scores] == ["error", "ok", "ok"]
    assert scores[0].reason == "ValueError: blocks.1.conv has no rank 999"
    assert_right(case, (None,) * 4, [{1: 1}, {3: 1}], scores[1:])


def test_a_parent_that_raises_gives_every_child_behind_it_that_reason() -> None:
    case = network(Chain, Chain)
    scorer = ResumingScorer(*case.arguments, accuracy, slice_size=3)
    scores = scorer.score((None, 999, None, None), [{2: 1}, {0: 1}, {1: 1}, {3: 1}])
    assert [score.status for score in scores] == ["error", "error", "ok", "error"]
    assert len({score.reason for score in scores if not score.ok}) == 1
    assert_right(case, (None,) * 4, [{1: 1}], [scores[2]])


def test_seconds_are_measured() -> None:
    case = network(Chain)
    assert all(score.seconds > 0 for score in ResumingScorer(*case.arguments, accuracy).score((1, 1, 1), [{0: 2}, {}]))


@pytest.mark.parametrize(
    ("block", "folded"),
    [
        (Chain, 1),
        (Residual, 2),
        (Branches, 2),
        (PreActivation, 0),  # its norm reads a convolution that the sum reads too
        (Depthwise, 0),  # after a grouped convolution, which is no layer of the space
        (Shared, 0),  # the norm and the convolution are called twice
    ],
)
def test_batch_norm_is_folded_where_it_alone_reads_a_layer(block: type[nn.Module], folded: int) -> None:
    case = network(block)
    scorer = ResumingScorer(*case.arguments, accuracy)
    assert len(scorer._prepared._folds) == folded


def test_sums_and_relus_work_in_place_where_no_cut_lies_between() -> None:
    case = network(Residual)
    assert ResumingScorer(*case.arguments, accuracy).reused == 3  # two ReLUs and the sum


def halve_in_place(x: Tensor) -> Tensor:
    return x.mul_(0.5)


fx.wrap("halve_in_place")  # torch.fx takes it for one operation and does not look inside


class HiddenWrite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(self.second(y) + halve_in_place(y))


def test_writes_that_the_graph_does_not_show_are_found_on_the_first_pass() -> None:
    case = make_case(HiddenWrite(), inputs=torch.randn(7, 4))
    with pytest.raises(CannotBeCut, match="halve_in_place writes to a value that it was given"):
        ResumingScorer(*case.arguments, accuracy)


def test_weights_beyond_the_limit_are_not_prepared_but_viewed() -> None:
    case = network(Residual, Chain)
    scorer = ResumingScorer(*case.arguments, accuracy, limit_bytes=100)
    assert not scorer._prepared._kept
    parent = (1,) * len(case.layers)
    changes = [{0: None}, {3: 2}, {}]
    assert_right(case, parent, changes, scorer.score(parent, changes))
    assert not scorer._prepared._kept


@pytest.mark.parametrize(("limit_bytes", "first"), [(0, True), (1 << 20, False)])
def test_images_keep_their_layout_where_weights_are_viewed(limit_bytes: int, first: bool) -> None:
    """Shared weights lie as they were stored: for images with the channels last, every call would copy them."""
    case = network(Residual, Chain)
    scorer = ResumingScorer(*case.arguments, accuracy, limit_bytes=limit_bytes)
    assert [part.inputs.is_contiguous() for part in scorer._slices] == [first] * len(scorer._slices)
