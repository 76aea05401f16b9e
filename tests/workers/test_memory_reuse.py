"""Specifies which steps write over another value: those whose overwritten value no child can need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.rank_space import RankVector
from tests.workers.random_networks import assert_outputs, make_case
from workers.batch import accuracy
from workers.resuming_scorer import ResumingScorer


class Written(nn.Module):
    def __init__(self, write: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.write = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), write
        self.shift = nn.Parameter(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.write(self, x))


def between_cuts(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).relu()).relu() + x


def across_a_cut(m: Any, x: Tensor) -> Tensor:
    a = m.a(x)
    b = m.b(x)
    return a.relu() + b  # the ReLU's input is the parent's for children that change b; the sum's is not


def read_twice(m: Any, x: Tensor) -> Tensor:
    a = m.a(x)
    return m.b(a.relu()) * a


def a_view(m: Any, x: Tensor) -> Tensor:
    a = m.a(x)
    return m.b(a)[:, [0, 1, 2, 3]] + a[:, :].relu()


def broadcast(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(m.shift) + x)  # the first operand is a new tensor, and too small for the sum


def inputs_and_weights(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x.relu() + m.shift.relu()))


def doubled(m: Any, x: Tensor) -> Tensor:
    a = m.a(x)
    return m.b(a + a)


@pytest.mark.parametrize(
    ("write", "count"),
    [
        (between_cuts, 3),
        (across_a_cut, 1),
        (read_twice, 0),
        (a_view, 1),
        (broadcast, 0),
        (inputs_and_weights, 1),
        (doubled, 1),
    ],
)
def test_memory_is_reused_where_nobody_can_see_it(write: Callable[[Any, Tensor], Tensor], count: int) -> None:
    torch.manual_seed(0)
    case = make_case(Written(write), inputs=torch.randn(7, 4))
    scorer = ResumingScorer(*case.arguments, accuracy)
    assert scorer.reused == count
    layers = len(case.layers)
    parent: RankVector = (None,) * layers
    changes = [{index: 1} for index in range(layers)] + [{}, {0: 2}, {layers - 1: 2}]
    for order in (changes, changes[::-1]):
        assert_outputs(case, parent, order, scorer.outputs(parent, order))


class Folded(nn.Module):
    """Both convolutions come before the batch norm that is folded into the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head((self.norm(a) + b).mean((2, 3)))


def test_a_folded_batch_norm_hands_on_memory_from_before_the_cut() -> None:
    torch.manual_seed(0)
    case = make_case(Folded())
    scorer = ResumingScorer(*case.arguments, accuracy)
    assert scorer.reused == 1  # over what the second convolution gave, not over what the first one did
    changes = [{1: 1}, {1: 2}, {1: 3}, {0: 1}, {2: 1}]
    assert_outputs(case, (None,) * 3, changes, scorer.outputs((None,) * 3, changes))
