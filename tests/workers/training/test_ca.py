"""CA: singular values are lowered after every epoch, and ranks keep the same share of energy everywhere."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.workers.training.digit_setups import QUICK, digit_setup
from workers.training.ca import CASettings, NuclearNormTraining, energy_rungs


def selection(**training: float) -> NuclearNormTraining:
    settings = CASettings.model_validate({"training": {**QUICK, "epochs": 3, **training}})
    return NuclearNormTraining(settings, digit_setup({"parameters": 0.6}))


def test_the_proximal_step_lowers_every_singular_value_alike() -> None:
    ca = selection()
    before = {name: torch.linalg.svdvals(copy.deepcopy(one.detach()).flatten(1)) for name, one in ca._weights.items()}
    zero = ca._shrink(0.1)
    shares = []
    for name, weight in ca._weights.items():
        expected = (before[name] - 0.1 * before[name][0]).clamp(min=0)
        torch.testing.assert_close(torch.linalg.svdvals(weight.detach().flatten(1)), expected, rtol=1e-4, atol=1e-5)
        shares.append(float((expected == 0).double().mean()))
    assert zero == pytest.approx(sum(shares) / len(shares))


def test_it_is_the_minimum_that_a_proximal_step_is() -> None:
    """No matrix near it is lower in |V - W|^2 / 2 + t |V|_*."""
    ca = selection()
    weight = ca._weights["3"]
    old = weight.detach().clone().flatten(1).double()
    threshold = 0.2 * ca._largest["3"]
    ca._shrink(0.2)

    def lagrangian(matrix: torch.Tensor) -> float:
        return float((matrix - old).square().sum() / 2 + threshold * torch.linalg.svdvals(matrix).sum())

    new = weight.detach().flatten(1).double()
    least = lagrangian(new)
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        change = torch.randn(new.shape, generator=draw, dtype=torch.float64)
        assert lagrangian(new + 1e-2 * change) > least


def test_the_threshold_follows_the_learning_rate() -> None:
    without, with_it = (selection(shrinkage=share, learning_rate=1e-6) for share in (0.0, 0.2))
    for one in (without, with_it):
        for _ in range(3):
            last = one.step()
    total = 0.2 * sum(0.5 * (1 + torch.cos(torch.tensor(torch.pi * (e + 7 / 8) / 3))) for e in range(3))
    lost = float(torch.linalg.matrix_norm(without._weights["3"].detach().flatten(1), 2)) - float(
        torch.linalg.matrix_norm(with_it._weights["3"].detach().flatten(1), 2)
    )
    assert lost / with_it._largest["3"] == pytest.approx(float(total), abs=0.01)
    assert last.more["zero_share"] > 0


def test_the_same_share_of_energy_in_every_layer() -> None:
    losses = [[0.5, 0.2, 0.1, 0.0], [0.3, 0.05, 0.0]]
    assert energy_rungs(losses, 0.2) == [2, 2]
    assert energy_rungs(losses, 0.0) == [4, 3]
    assert energy_rungs(losses, 0.6) == [1, 1]
