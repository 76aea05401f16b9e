"""Early stopping: who is stopped is certain to be below, and whoever is not has the score that it has anyway."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.candidates import Score
from tests.workers.random_networks import (
    TRACEABLE,
    UNTRACEABLE,
    BranchesOnValues,
    Case,
    Chain,
    Network,
    Residual,
    assert_right,
    families,
    make_case,
)
from workers import early_stop
from workers.batch import Batch, accuracy
from workers.early_stop import STOP_RULES, STOP_SLICE, OrderedSlice, SampleOrders, Tally, ordered_slices
from workers.replaying_scorer import ReplayingScorer
from workers.resuming_scorer import ResumingScorer
from workers.scorer import judge
from workers.scoring import choose_scoring, reason_against_stopping
from workers.ways import make_scorer

OBJECTIVES = tuple(STOP_RULES)
SIGNED = {"accuracy": ("accuracy", 1), "cross_entropy": ("loss", -1), "kl": ("kl", -1)}
SCORERS = (ResumingScorer, ReplayingScorer)


def network(*blocks: type[nn.Module], seed: int = 0, samples: int = 40) -> Case:
    torch.manual_seed(seed)
    return make_case(Network(blocks, random.Random(seed)), seed, samples=samples)


def objective(name: str, score: Score) -> float:
    value, sign = SIGNED[name]
    return sign * score.values[value]


def unbounded(scorer: Any, parent: Any, changes: Sequence[Any]) -> list[Score]:
    found: list[Score] = scorer.score(parent, changes, [-math.inf] * len(changes))
    return found


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(OBJECTIVES), seed=st.integers(0, 999))
def test_on_random_networks_nobody_is_stopped_wrongly_and_scores_stay(
    data: st.DataObject, name: str, seed: int
) -> None:
    kind = data.draw(st.sampled_from(SCORERS))
    blocks = TRACEABLE if kind is ResumingScorer else (*TRACEABLE, *UNTRACEABLE)
    case = network(*data.draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=2)), seed=seed)
    scorer = kind(*case.arguments, accuracy, stop_rule=STOP_RULES[name])
    parent, changes = data.draw(families(case))
    full = unbounded(scorer, parent, changes)
    assert_right(case, parent, changes, full)
    values = [objective(name, one) for one in full]
    near = st.sampled_from(values).flatmap(lambda value: st.sampled_from([value, value + 1e-9, value + 0.05]))
    bounds = [data.draw(st.one_of(near, st.none(), st.floats(-3, 3))) for _ in changes]
    again = scorer.score(parent, changes, bounds)
    if not scorer.stops_early:  # a forward that reads values
        assert all(one.ok for one in again)
        return
    for one, before, value, bound in zip(again, full, values, bounds, strict=True):
        if one.ok:
            assert one.values == before.values
        else:
            assert (one.status, one.ranks, dict(one.values)) == ("stopped", before.ranks, {})
            assert bound is not None
            assert value <= one.at_most < bound


@pytest.mark.parametrize("kind", SCORERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_score_does_not_depend_on_the_parent_by_which_samples_are_ordered(kind: Any, name: str) -> None:
    case = network(Residual, Chain)
    parents: list[Any] = [(1,) * len(case.layers), (None,) * len(case.layers), (2,) * len(case.layers)]
    child: Any = (1, *(2,) * (len(case.layers) - 1))
    found = []
    for parent in parents:
        scorer = kind(*case.arguments, accuracy, stop_rule=STOP_RULES[name])
        change = {index: rank for index, rank in enumerate(child) if rank != parent[index]}
        found.append(unbounded(scorer, parent, [change])[0].values)
    assert found[0] == found[1] == found[2]


def test_whoever_cannot_reach_its_bound_is_stopped_after_the_first_slice() -> None:
    case = network(Residual, Chain, samples=64)
    scorer = ResumingScorer(*case.arguments, accuracy, stop_rule=STOP_RULES["cross_entropy"])
    parent = (1,) * len(case.layers)
    seen: list[int] = []
    lay_out = scorer._laid_out
    scorer._laid_out = lambda part: (seen.append(len(part)), lay_out(part))[1]  # type: ignore[assignment, func-returns-value]
    assert unbounded(scorer, parent, [{0: 2}])[0].ok
    assert seen == [STOP_SLICE] * 8  # the parent's pass, which orders the samples, and the child's
    seen.clear()
    stopped, other = scorer.score(parent, [{0: 2}, {1: 2}], [-1e-6, -1e-6])
    assert (stopped.status, other.status, seen) == ("stopped", "stopped", [STOP_SLICE])
    assert stopped.reason.startswith("its loss is at least ")
    assert stopped.seconds > 0
    seen.clear()
    scorer.score((2, *parent[1:]), [{1: 2}], [-1e-6])
    assert seen == [STOP_SLICE]  # the parent was scored as a child: nothing is run to order the samples


@pytest.mark.parametrize("kind", SCORERS)
def test_failures_are_told_as_ever(kind: Any) -> None:
    case = network(Chain)
    scorer = kind(*case.arguments, accuracy, stop_rule=STOP_RULES["kl"])
    wrong = scorer.score((None,) * len(case.layers), [{0: 999}, {0: 1}], [-math.inf, None])
    assert [one.status for one in wrong] == ["error", "ok"]


def test_a_broken_parent_costs_no_child_its_score() -> None:
    """The parent's own pass fails; its samples stay in the order in which they are stored."""
    case = network(Chain)
    scorer = ReplayingScorer(*case.arguments, accuracy, stop_rule=STOP_RULES["accuracy"])
    (score,) = unbounded(scorer, (999, *(None,) * (len(case.layers) - 1)), [{0: 1}])
    assert score.ok


def slices(samples: int, seed: int, name: str) -> tuple[list[tuple[OrderedSlice, Tensor]], Batch, Tensor, Tensor]:
    """Random logits of a batch, cut in a random order."""
    generator = torch.Generator().manual_seed(seed)
    outputs, dense = (torch.randn(samples, 3, generator=generator) * 4 for _ in range(2))
    batch = Batch(torch.arange(samples)[:, None], torch.randint(0, 3, (samples,), generator=generator))
    order = torch.randperm(samples, generator=generator)
    reference = torch.log_softmax(dense, -1)
    cut = [(one, outputs[_places(one)]) for one in ordered_slices(batch, reference, order)]
    return cut, batch, outputs, reference


def _places(one: OrderedSlice) -> Tensor:
    """Where all samples of the slice stand, those too that another had: it is what the made-up batch has for inputs."""
    assert isinstance(one.part.inputs, Tensor)
    return one.part.inputs[:, 0]


@given(st.integers(1, 90), st.integers(0, 2**16), st.sampled_from(OBJECTIVES), st.floats(0, 1))
def test_sums_over_samples_are_what_judging_them_at_once_gives(
    samples: int, seed: int, name: str, share: float
) -> None:
    """And at every moment the objective is at most what is said; it is hopeless only below the bound."""
    cut, batch, outputs, reference = slices(samples, seed, name)
    expected = judge(outputs, batch, accuracy, reference)
    assert expected is not None
    value, sign = SIGNED[name]
    reached = sign * expected[value]
    tally = Tally(STOP_RULES[name], reached + share * 0.2 - 0.1, samples)
    most = []
    for one, own in cut:
        values = one.values(own)
        assert values is not None
        tally.add(one.places, values)
        most.append(tally.at_most)
        assert reached <= tally.at_most + 1e-6
        assert not tally.hopeless or share > 0.49
    assert most == sorted(most, reverse=True)
    assert {name: total / samples for name, total in tally.totals().items()} == pytest.approx(expected, abs=1e-6)
    assert not tally.hopeless  # it is complete


def test_sums_do_not_depend_on_the_order() -> None:
    totals = []
    for _ in range(2):
        cut, *_ = slices(64, 3, "kl")
        tally = Tally(STOP_RULES["kl"], 0.0, 64)
        random.Random(len(totals)).shuffle(cut)
        for one, own in cut:
            tally.add(one.places, one.values(own) or {})
        totals.append(tally.totals())
    assert totals[0] == totals[1]


class TestOrders:
    def test_are_by_hardness_the_first_of_equals_first(self) -> None:
        orders = SampleOrders()
        orders.remember((1,), torch.tensor([0.1, 0.9, 0.1, 2.0]))
        found = orders.of((1,))
        assert found is not None
        assert found.tolist() == [3, 1, 0, 2]
        assert orders.of((2,)) is None

    def test_of_those_not_used_lately_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(early_stop, "REMEMBERED_BYTES", 2 * 40)
        orders = SampleOrders()
        for rank in (1, 2, 1, 3):
            orders.remember((rank,), torch.zeros(10))
        assert [rank for rank in (1, 2, 3) if orders.of((rank,)) is not None] == [1, 3]


class Centred(nn.Module):
    """What a sample gives depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(y - y.mean(0))


def tenths(outputs: object, batch: Batch) -> float:
    return round(accuracy(outputs, batch), 1)


class TestWhereItIsPossible:
    def reason(self, case: Case, **changed: Any) -> str:
        subject = replace(case.subject(changed.pop("metric", accuracy)), **{"stop_by": "accuracy", **changed})
        candidates: list[Any] = [(None,) * len(case.layers)]
        way, _ = choose_scoring(subject, candidates)
        reason = reason_against_stopping(way, subject, candidates[0])
        score = make_scorer(way, subject).score(candidates[0], [{0: 1}], [2.0])[0]
        assert score.stopped == (not reason and len(subject.batch) > STOP_SLICE)
        return reason

    def test_for_ordinary_networks(self) -> None:
        assert self.reason(network(Residual)) == ""
        assert self.reason(network(Residual, samples=5)) == ""

    def test_not_for_a_users_metric_or_slices(self) -> None:
        assert self.reason(network(Chain), metric=tenths) == "the metric may be no mean over samples"
        assert self.reason(network(Chain), slice_size=40) == "the slices of the batch are given"

    def test_not_where_control_flow_reads_values(self) -> None:
        assert self.reason(network(BranchesOnValues)) == "scores are no sums over samples of one label each"

    def test_not_for_objectives_that_have_no_rule(self) -> None:
        assert self.reason(network(Chain), stop_by="f1") == "scores are no sums over samples of one label each"

    def test_not_where_labels_are_left_out_of_the_mean(self) -> None:
        case = network(Chain)
        case.batch.labels[3] = -100
        assert self.reason(case) == "scores are no sums over samples of one label each"

    def test_not_where_samples_depend_on_each_other(self) -> None:
        case = make_case(Centred(), samples=40, inputs=torch.randn(40, 4))
        subject = replace(case.subject(), stop_by="accuracy")
        reason = "what the model gives for a sample depends on the others in the batch"
        assert reason_against_stopping("resumed", subject, (None, None)) == reason
