"""The scheduled sigmoid and rounding."""

import pytest
import torch

from workers.training.masks import ScheduledSigmoid, rounded


def test_the_steepness_grows_up_to_its_limit():
    schedule = ScheduledSigmoid(start=5, growth=4, most=50)
    assert [schedule.steepness(i) for i in (0, 1, 11, 12, 99)] == [5, 9, 49, 50, 50]


def test_a_logit_of_1_starts_at_0_924():
    assert ScheduledSigmoid()(torch.tensor(1.0), 0).item() == pytest.approx(0.924, abs=5e-4)


def test_it_hardens_to_what_rounding_gives():
    logits = torch.tensor([-0.4, 0.2, 0.8, 1.3], dtype=torch.float64)
    torch.testing.assert_close(ScheduledSigmoid()(logits, 99), rounded(logits), atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", [0, 3, 20])
def test_gradients_are_the_finite_differences(index):
    logits = torch.linspace(-0.5, 1.5, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ScheduledSigmoid()(x, index), (logits,))


def test_half_open_counts_as_open():
    assert rounded(torch.tensor([0.49, 0.5, 0.51])).tolist() == [0, 1, 1]


def test_without_a_growth_it_is_at_its_limit_in_the_last_epoch():
    schedule = ScheduledSigmoid.over(10, 5, None, 50)
    assert schedule.steepness(0) == 5
    assert schedule.steepness(8) < 50
    assert schedule.steepness(9) == pytest.approx(50)
    assert ScheduledSigmoid.over(10, 5, 8, 50).growth == 8
    assert ScheduledSigmoid.over(None, 5, None, 50).growth == 4
