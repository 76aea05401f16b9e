"""Fitting to a budget: never over, within 1 % below, and no worse than what a search over everything finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.budgets import Budget
from search_spaces.costs import rank_space
from search_spaces.errors import InfeasibleBudgetError
from search_spaces.fitting import WINDOW, fit_to_budget, used_share
from search_spaces.layers import Call, Layer, Stage
from search_spaces.rank_space import RankSpace
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.survey import Survey


def space_of(*channels: tuple[int, int], binding: tuple[str, ...] = ("parameters",)) -> RankSpace:
    """3 x 3 convolutions on 8 x 8 positions."""
    layers = tuple(
        Layer(f"conv{number}", Stage(inputs, out, (3, 3), padding=(1, 1)), False, (Call(8, 8),))
        for number, (inputs, out) in enumerate(channels)
    )
    return rank_space(Survey(layers, ()), (ChannelSVD(),) * len(layers), binding=binding)


def energies_lost(space: RankSpace, seed: int) -> list[list[float]]:
    """Convex, falling losses: the tails of random spectra."""
    draws = np.random.default_rng(seed)
    losses = []
    for layer in space.layers:
        energy = np.sort(draws.random(layer.full) ** 4)[::-1]
        tails = (energy.sum() - np.cumsum(energy))[: layer.useful] / energy.sum()
        losses.append([*tails.clip(min=0).tolist(), 0.0])
    return losses


NETWORK = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]


@given(target=st.floats(0.05, 0.9), seed=st.integers(0, 99), cost=st.sampled_from(["parameters", "macs"]))
def test_any_budget_is_met_and_used_up(target: float, seed: int, cost: str) -> None:
    space = space_of(*NETWORK, binding=(cost,))
    budget = Budget(((cost, target),))
    ranks = fit_to_budget(space, budget, energies_lost(space, seed))
    assert budget.gap(space, ranks) >= 0
    assert 1 - WINDOW <= used_share(space, budget, ranks) <= 1


@given(seed=st.integers(0, 99), start=st.lists(st.integers(-3, 80), min_size=6, max_size=6))
def test_from_any_start(seed: int, start: list[int]) -> None:
    space = space_of(*NETWORK)
    budget = Budget((("parameters", 0.6),))
    ranks = fit_to_budget(space, budget, energies_lost(space, seed), start)
    assert 1 - WINDOW <= used_share(space, budget, ranks) <= 1


@given(first=st.floats(0.2, 0.7), second=st.floats(0.2, 0.7), seed=st.integers(0, 99))
def test_two_limits_hold_together_and_one_of_them_is_used_up(first: float, second: float, seed: int) -> None:
    space = space_of(*NETWORK, binding=("parameters", "macs"))
    budget = Budget((("parameters", first), ("macs", second)))
    ranks = fit_to_budget(space, budget, energies_lost(space, seed))
    assert budget.gap(space, ranks) >= 0
    assert used_share(space, budget, ranks) >= 1 - WINDOW


@settings(max_examples=20)
@given(target=st.floats(0.2, 0.8), seed=st.integers(0, 99))
def test_it_is_the_best_of_all_rank_vectors(target: float, seed: int) -> None:
    space = space_of((4, 8), (8, 8), (8, 10))
    budget = Budget((("parameters", target),))
    losses = energies_lost(space, seed)
    every = list(itertools.product(*(range(1, layer.useful + 2) for layer in space.layers)))
    within = [rungs for rungs in every if budget.gap(space, space.at(rungs)) >= 0]
    used_up = [rungs for rungs in within if used_share(space, budget, space.at(rungs)) >= 1 - WINDOW]

    def lost(rungs: tuple[int, ...]) -> float:
        return sum(loss[rung - 1] for loss, rung in zip(losses, rungs, strict=True))

    best = min(used_up or within, key=lost)
    assert fit_to_budget(space, budget, losses) == space.at(best)
    start = every[seed * 7 % len(every)]
    nearest = min(sum(abs(one - other) for one, other in zip(rungs, start, strict=True)) for rungs in used_up or within)
    found = fit_to_budget(space, budget, losses, start)
    rungs = [layer.useful + 1 if rank is None else rank for layer, rank in zip(space.layers, found, strict=True)]
    assert sum(abs(one - other) for one, other in zip(rungs, start, strict=True)) == nearest


def test_what_fits_is_left_where_it_cannot_be_raised() -> None:
    space = space_of((4, 8))
    dense = space.dense_cost["parameters"]
    costs = [space.costs["parameters"].of(0, rank) for rank in (1, 2, 3)]
    budget = Budget((("parameters", 1 - costs[1] / dense),))
    losses = [np.linspace(1, 0, space.layers[0].useful + 1).tolist()]
    assert fit_to_budget(space, budget, losses) == (2,)
    assert fit_to_budget(space, budget, losses, start=[1]) == (2,)


def test_a_budget_out_of_reach_and_losses_that_are_none() -> None:
    space = space_of((4, 8))
    losses = energies_lost(space, 0)
    with pytest.raises(InfeasibleBudgetError, match="no rank vector meets all its limits") as raised:
        fit_to_budget(space, Budget((("parameters", 0.99),)), losses)
    assert raised.value.closest == {"parameters": pytest.approx(space.compression("parameters", space.smallest))}
    with pytest.raises(ValueError, match="conv0: expected 7 finite losses"):
        fit_to_budget(space, Budget((("parameters", 0.5),)), [[float("nan")] * 7])
