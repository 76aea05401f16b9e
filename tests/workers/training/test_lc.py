"""LC: the network moves onto its own truncation as mu grows."""

from __future__ import annotations

import pytest
import torch

from search_spaces.fitting import used_share
from tests.workers.training.digit_setups import QUICK, digit_setup
from workers.training.lc import LCSettings, LearningCompression
from workers.training.sgd import evaluate


def selection(**training: float) -> LearningCompression:
    settings = LCSettings.model_validate({"training": {**QUICK, "steps": 6, "learning_rate": 0.05, **training}})
    return LearningCompression(settings, digit_setup({"parameters": 0.6}))


def test_weights_end_where_their_truncations_are() -> None:
    lc = selection()
    setup = digit_setup({"parameters": 0.6})
    metrics = [lc.step() for _ in range(lc.epochs)]
    assert metrics[-1].more["distance"] < 0.02 < 0.2 < metrics[0].more["distance"]
    accuracy, _ = evaluate(lc.compress().network, setup.held_out)
    assert accuracy == pytest.approx(metrics[-1].accuracy, abs=0.05)


def test_ranks_meet_the_budget_in_every_step() -> None:
    lc, setup = selection(), digit_setup({"parameters": 0.6})
    for _ in range(lc.epochs):
        assert 0.99 <= used_share(setup.space, setup.budget, lc.ranks) <= 1
        lc.step()


def test_mu_grows_by_a_factor_and_bounds_the_learning_rate() -> None:
    lc = selection(mu_start=0.01, mu_end=1000.0)
    metrics = [lc.step() for _ in range(6)]
    assert [one.more["mu"] for one in metrics] == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])
    assert [one.learning_rate for one in metrics] == pytest.approx([0.05] * 4 + [0.01, 0.001], rel=0.02)


def test_the_penaltys_gradient_is_that_of_the_augmented_lagrangian() -> None:
    lc = selection()
    for _ in range(3):
        lc.step()
    mu = lc._mu(3)
    assert lc._targets
    for name, target in lc._targets.items():
        weight = lc._weights[name]
        free = weight.detach().clone().requires_grad_(True)
        (mu / 2 * (free - target - lc._multipliers[name] / mu).square().sum()).backward()
        weight.grad = torch.zeros_like(weight)
        expected = free.grad
        assert expected is not None
        for other in lc._targets:
            if other != name:
                lc._weights[other].grad = torch.zeros_like(lc._weights[other])
        lc._add_gradients(0)
        torch.testing.assert_close(weight.grad, expected)


def test_multipliers_follow_the_c_step() -> None:
    lc = selection()
    before = {name: one.clone() for name, one in lc._multipliers.items()}
    mu = lc._mu(0)
    lc.step()
    for name, target in lc._targets.items():
        expected = before[name] - mu * (lc._weights[name] - target)
        torch.testing.assert_close(lc._multipliers[name], expected.detach())
    for name in set(lc._weights) - set(lc._targets):
        assert not lc._multipliers[name].any()
