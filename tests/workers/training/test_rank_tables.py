"""Soft costs from tables: the table's own at measured ranks, linear between."""

import pytest
import torch

from workers.training.rank_tables import interpolated

TABLE = [
    (torch.tensor([4.0, 8.0, 16.0]), torch.tensor([0.1, 0.3, 0.5])),
    (torch.tensor([10.0]), torch.tensor([0.5])),  # stays dense
]


@pytest.mark.parametrize(("rank", "cost"), [(4, 0.1), (6, 0.2), (8, 0.3), (12, 0.4), (16, 0.5), (99, 0.5), (1, 0.1)])
def test_costs_are_linear_between_measured_ranks_and_constant_outside(rank, cost):
    found = interpolated(TABLE, [torch.tensor(float(rank)), torch.tensor(3.0)])
    assert found.item() == pytest.approx(cost + 0.5)


def test_soft_ranks_have_gradients():
    ranks = torch.tensor([5.5, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: interpolated(TABLE, one.unbind()), (ranks,))
