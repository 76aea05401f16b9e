"""Specifies scoring by running the forward as it is written with the parent's outputs of unchanged layers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.workers.random_networks import (
    CHANNELS,
    BranchesOnValues,
    Case,
    Chain,
    Network,
    TakesAnything,
    TorchEncoder,
    WritesAfterRead,
    WritesThroughView,
    assert_outputs,
    assert_right,
    cases,
    families,
    make_case,
)
from workers import sliced_scorer
from workers.batch import accuracy
from workers.out_of_place import CannotBeCut
from workers.replaying_scorer import ReplayingScorer


def network(*blocks: type[nn.Module], seed: int = 0, **options: Any) -> Case:
    torch.manual_seed(seed)
    return make_case(Network(blocks, random.Random(seed)), seed, **options)


class Counting:
    """Counts the convolutions and linear layers that are really computed."""

    def __init__(self, scorer: ReplayingScorer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        compute = scorer._computation

        def counted(index: int, ranks: Any) -> Any:
            self.calls.append(index)
            return compute(index, ranks)

        # `_computation` makes the closure of every call, remembered or not; only used ones are run.
        def lazily(index: int, ranks: Any) -> Any:
            return lambda inputs: counted(index, ranks)(inputs)

        monkeypatch.setattr(scorer, "_computation", lazily)


@settings(max_examples=40)
@given(data=st.data())
def test_every_random_network_scores_as_assembled(data: st.DataObject) -> None:
    case = data.draw(cases())
    scorer = ReplayingScorer(*case.arguments, accuracy)
    parent, changes = data.draw(families(case))
    assert_right(case, parent, changes, scorer.score(parent, changes))
    assert_outputs(case, parent, changes, scorer.outputs(parent, changes))


@settings(max_examples=15)
@given(data=st.data(), limit=st.sampled_from([0, 1, 600, 3000]))
def test_what_does_not_fit_the_memory_limit_is_computed_again(data: st.DataObject, limit: int) -> None:
    case = data.draw(cases())
    scorer = ReplayingScorer(*case.arguments, accuracy, limit_bytes=limit, prepared_bytes=limit)
    parent, changes = data.draw(families(case))
    assert_outputs(case, parent, changes, scorer.outputs(parent, changes))


@settings(max_examples=15)
@given(data=st.data())
def test_order_and_grouping_do_not_matter(data: st.DataObject) -> None:
    case = data.draw(cases())
    scorer = ReplayingScorer(*case.arguments, accuracy)
    parent, changes = data.draw(families(case))
    together = [score.values for score in scorer.score(parent, changes)]
    assert [scorer.score(parent, [change])[0].values for change in changes] == together
    assert [score.values for score in scorer.score(parent, changes[::-1])] == together[::-1]


def test_layers_before_the_first_changed_one_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = network(Chain, Chain, Chain)  # layers 0 to 4
    scorer = ReplayingScorer(*case.arguments, accuracy, slice_size=7)
    counting = Counting(scorer, monkeypatch)
    scorer.score((None,) * 5, [{3: 1}, {4: 1}, {1: 1}])
    # The latest change goes first and leaves 0 to 3 to the others; then 3 and 4 are computed, then 1 to 4.
    assert counting.calls == [0, 1, 2, 3, 4, 3, 4, 1, 2, 3, 4]


def test_an_unchanged_child_costs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    case = network(Chain)
    scorer = ReplayingScorer(*case.arguments, accuracy, slice_size=7)
    counting = Counting(scorer, monkeypatch)
    first, second = scorer.score((1, 1, 1), [{}, {0: 1}])
    assert counting.calls == [0, 1, 2]
    assert first.values == second.values


def test_the_limit_bounds_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    case = network(Chain, Chain)
    one_output = 7 * CHANNELS * 6 * 6 * 4
    scorer = ReplayingScorer(*case.arguments, accuracy, slice_size=7, limit_bytes=one_output)
    counting = Counting(scorer, monkeypatch)
    scorer.score((None,) * 4, [{3: 1}, {2: 1}])
    assert counting.calls == [0, 1, 2, 3, 1, 2, 3]  # the stem's output fits, the next one does not


def test_slices_bound_memory_for_any_batch() -> None:
    case = network(Chain, samples=40)
    scorer = ReplayingScorer(*case.arguments, accuracy, slice_size=16)
    assert scorer.slice_sizes == [16, 16, 8]
    assert_right(case, (1, 1, None), [{0: 2}, {}], scorer.score((1, 1, None), [{0: 2}, {}]))


@pytest.mark.parametrize("block", [WritesAfterRead, WritesThroughView])
def test_outputs_that_the_model_writes_to_are_found_and_handed_out_as_copies(block: type[nn.Module]) -> None:
    case = network(Chain, block, Chain)
    scorer = ReplayingScorer(*case.arguments, accuracy, slice_size=3)
    parent = (2,) * len(case.layers)
    changes = [{index: 1} for index in range(len(case.layers))] * 2
    assert_outputs(case, parent, changes, scorer.outputs(parent, changes))
    assert scorer.written  # otherwise this test shows nothing


class WritesSometimes(nn.Module):
    """Writes to a layer's output only where a value says so, which the dense network never shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.bound = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y)
        if z.abs().sum() < self.bound:
            y.mul_(3.0)
        return self.head(y + z)


def test_a_write_that_only_one_child_causes_harms_no_other() -> None:
    torch.manual_seed(0)
    model = WritesSometimes()
    case = make_case(model, inputs=torch.randn(7, 4))
    model.second.bias.data.zero_()
    with torch.no_grad():
        hidden = model.first(case.batch.inputs)
        norms = {rank: float(model.second(hidden).abs().sum()) for rank in (None,)}
    thin = case.factors["second"]
    rank_1 = float((hidden @ (thin.decoder[:1].T @ thin.encoder[:1]).T).abs().sum())
    assert rank_1 < float(norms[None])
    model.bound = (rank_1 + norms[None]) / 2  # rank 1 of the second layer writes, the dense layer does not
    scorer = ReplayingScorer(*case.arguments, accuracy)
    changes = [{2: 1}, {1: 1}, {1: 1}, {1: 4}, {2: 2}, {0: 1}, {}]
    for order in (changes, changes[::-1]):
        assert_outputs(case, (None,) * 3, order, scorer.outputs((None,) * 3, order))


@pytest.mark.parametrize(("block", "slices"), [(BranchesOnValues, 1), (Chain, 9)])
def test_a_forward_that_reads_values_gets_the_whole_batch(
    block: type[nn.Module], slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_scorer, "SLICE_BYTES", 1)  # else all of these small images fit one slice
    case = network(block, samples=9)
    assert len(ReplayingScorer(*case.arguments, accuracy).slice_sizes) == slices


def test_what_torch_fx_does_not_look_into_works() -> None:
    case = network(TorchEncoder)
    scorer = ReplayingScorer(*case.arguments, accuracy)
    changes = [{index: 1} for index in range(len(case.layers))]
    assert len(changes) > 3  # the encoder's own linear layers among them
    assert_right(case, (None,) * len(changes), changes, scorer.score((None,) * len(changes), changes))


@pytest.mark.parametrize(
    ("block", "prepared_bytes", "last"),
    [(Chain, 1 << 20, True), (Chain, 0, False), (WritesThroughView, 1 << 20, False)],
    ids=["fast", "weights viewed", "layout matters"],
)
def test_channels_go_last_where_that_is_fast_and_right(block: type[nn.Module], prepared_bytes: int, last: bool) -> None:
    """Viewed weights would be copied at every call; `flatten` of images laid out anew is a copy, not a view."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = block(random.Random(0)), nn.Linear(CHANNELS, 3)  # type: ignore[call-arg]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x).mean((2, 3)))

    torch.manual_seed(0)
    case = make_case(Pooled(), inputs=torch.randn(7, CHANNELS, 6, 6))
    scorer = ReplayingScorer(*case.arguments, accuracy, prepared_bytes=prepared_bytes)
    assert [part.inputs.is_contiguous() for part in scorer._slices] == [not last]  # type: ignore[union-attr]
    parent = (1,) * len(case.layers)
    assert_outputs(case, parent, [{0: 2}, {}], scorer.outputs(parent, [{0: 2}, {}]))


def test_any_arguments_work() -> None:
    inputs = {"pixels": torch.randn(5, 3, 6, 6), "shift": torch.randn(5, 3)}
    case = make_case(TakesAnything(Network([Chain], random.Random(0))), samples=5, inputs=inputs)
    scorer = ReplayingScorer(*case.arguments, accuracy)
    assert_right(case, (1, 2, 1), [{1: 1}, {2: None}], scorer.score((1, 2, 1), [{1: 1}, {2: None}]))


class ReachesMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.data.mul_(2.0)
        return self.head(y)


def test_a_forward_that_could_write_unseen_is_refused() -> None:
    case = make_case(ReachesMemory(), inputs=torch.randn(7, 4))
    with pytest.raises(CannotBeCut, match=r"\.data or an array"):
        ReplayingScorer(*case.arguments, accuracy)


class InInferenceMode(ReachesMemory):
    """Tensors of inference mode do not count writes."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = self.first(x)
            y.mul_(2.0)
            return self.head(y)


def test_a_forward_with_an_inference_mode_of_its_own_works() -> None:
    case = make_case(InInferenceMode(), inputs=torch.randn(7, 4))
    scorer = ReplayingScorer(*case.arguments, accuracy)
    changes = [{1: 1}, {1: 2}, {0: 1}, {}]
    assert_outputs(case, (None, None), changes, scorer.outputs((None, None), changes))


class Forgetful(ReachesMemory):
    """Calls its layers in another order every second time."""

    def forward(self, x: Tensor) -> Tensor:
        self.swapped = not getattr(self, "swapped", False)
        layers = (self.first, self.last) if self.swapped else (self.last, self.first)
        return self.head(layers[0](x) + layers[1](x))

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)


def test_another_order_of_calls_is_an_error_never_a_score() -> None:
    case = make_case(Forgetful(), inputs=torch.randn(7, 4))
    scorer = ReplayingScorer(*case.arguments, accuracy)
    scores = scorer.score((None,) * 3, [{1: 1}, {1: 2}])
    assert [score.status for score in scores] == ["ok", "error"]
    assert "another order" in scores[1].reason


class Stumbles(ReachesMemory):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.abs().max() < 1e-3:
            raise ValueError("too small")
        return self.head(y)


def test_a_child_whose_forward_raises_says_so_and_ends_nothing() -> None:
    torch.manual_seed(0)
    model = Stumbles()
    with torch.no_grad():
        model.first.weight.mul_(torch.tensor([1.0, 0, 0, 0])).fill_diagonal_(0)
        model.first.weight[0, 0] = 1.0
        model.first.bias.zero_()
    case = make_case(model, inputs=torch.randn(7, 4))
    zero = case.factors["first"].encoder
    zero[0].zero_()  # rank 1 of the first layer gives nothing
    scorer = ReplayingScorer(*case.arguments, accuracy)
    bad, good = scorer.score((None, None), [{0: 1}, {1: 1}])
    assert (bad.status, bad.reason) == ("error", "ValueError: too small")
    assert good.ok
