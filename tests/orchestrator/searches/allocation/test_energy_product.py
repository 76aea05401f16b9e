"""The product of kept energies: the greedy way and the exact one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given

from orchestrator.searches.allocation.energy_product import energy_product, energy_product_exact
from orchestrator.searches.allocation.integer_program import Effort
from orchestrator.searches.allocation.options import LayerOptions
from search_spaces.errors import InfeasibleBudgetError
from tests.orchestrator.searches.allocation.small_spaces import (
    choice_of,
    cost_of,
    every_choice,
    layer,
    nothing_can_be_improved,
    problems,
    values_of,
    within,
)

EXACT = Effort(relative_gap=0.0)


def _losses(options: list[LayerOptions]) -> list[list[float]]:
    """-log of the kept energy; infinite where an option keeps none."""
    return [[-math.log1p(-(e**2)) if e < 1 else math.inf for e in one.errors.tolist()] for one in options]


@given(problems())
def test_the_integer_program_finds_the_largest_product(problem):
    options, capacities = problem
    losses = _losses(options)
    best = min((sum(values_of(losses, c)) for c in every_choice(options, capacities, losses)), default=None)
    if best is None:
        with pytest.raises(InfeasibleBudgetError):
            energy_product_exact(options, capacities, effort=EXACT)
        return
    allocation = energy_product_exact(options, capacities, effort=EXACT)
    choice = choice_of(options, allocation)
    assert within(options, choice, capacities)
    assert sum(values_of(losses, choice)) == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert allocation.note["log_energy"] == pytest.approx(-best, rel=1e-9, abs=1e-9)
    assert allocation.note["status"] == "optimal"
    assert allocation.note["bound"] == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert allocation == energy_product_exact(options, capacities, effort=EXACT)


@given(problems())
def test_greedy_is_within_the_budget_and_leaves_nothing_that_fits(problem):
    options, capacities = problem
    losses = _losses(options)
    try:
        allocation = energy_product(options, capacities)
    except InfeasibleBudgetError:
        if len(capacities) == 1:
            assert not any(every_choice(options, capacities, losses))
        return
    choice = choice_of(options, allocation)
    assert within(options, choice, capacities)
    assert nothing_can_be_improved(options, choice, capacities, losses)
    assert allocation.note["log_energy"] == pytest.approx(-sum(values_of(losses, choice)))
    assert (
        allocation.note["log_energy"]
        <= energy_product_exact(options, capacities, effort=EXACT).note["log_energy"] + 1e-9
    )
    assert allocation == energy_product(options, capacities)


def _greedy(options: list[LayerOptions], most: float) -> list[int]:
    """Eq. 2.2 step by step: down the convex hulls from dense, then back up by gain per cost."""
    losses, costs = _losses(options), [one.costs["parameters"].tolist() for one in options]
    choice = [len(one.ranks) - 1 for one in options]

    def loss_per_saving(at: int, index: int) -> float:
        saved = costs[at][choice[at]] - costs[at][index]
        return (losses[at][index] - losses[at][choice[at]]) / saved if saved > 0 else math.inf

    def down(at: int) -> int:
        return min(range(len(costs[at])), key=lambda index: loss_per_saving(at, index))

    while cost_of(options, choice, "parameters") > most:
        at = min(range(len(options)), key=lambda at: loss_per_saving(at, down(at)))
        choice[at] = down(at)
    return _filled(options, choice, most, losses, costs)


def _filled(options, choice, most, losses, costs) -> list[int]:
    given_up: set[int] = set()
    while True:
        steps = []
        for at in set(range(len(options))) - given_up:
            better = [
                index
                for index, loss in enumerate(losses[at])
                if loss < losses[at][choice[at]]
                and not any(losses[at][i] <= loss and costs[at][i] < costs[at][index] for i in range(len(losses[at])))
            ]
            if better:
                index = max(better, key=lambda index: losses[at][index])
                gain = (losses[at][choice[at]] - losses[at][index]) / (costs[at][index] - costs[at][choice[at]])
                steps.append((gain, at, index))
        if not steps:
            return choice
        _, at, index = max(steps)
        changed = [*choice[:at], index, *choice[at + 1 :]]
        if cost_of(options, changed, "parameters") <= most:
            choice = changed
        else:
            given_up.add(at)


@pytest.mark.parametrize("seed", range(60))
def test_greedy_takes_the_steps_of_the_equation(seed):
    # Random numbers have no ties, so the order of the steps is settled.
    generator = np.random.default_rng(seed)
    options = []
    for index in range(4):
        costs = np.sort(generator.integers(1, 10**6, 6))
        options.append(layer(f"layer{index}", generator.random(5), parameters=costs))
    least = sum(one.costs["parameters"].min() for one in options)
    most = float(least + generator.random() * (cost_of(options, [-1] * 4, "parameters") - least))
    assert choice_of(options, energy_product(options, {"parameters": most})) == _greedy(options, most)


def test_options_without_energy_are_never_taken():
    options = [layer("a", [1.0, 0.9], parameters=[1, 5, 10])]
    for solve in (energy_product, energy_product_exact):
        assert solve(options, {"parameters": 6.0}).ranks == (2,)
        with pytest.raises(InfeasibleBudgetError, match=r"closest that can be reached is 0\.5000"):
            solve(options, {"parameters": 4.0})
