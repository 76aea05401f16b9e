"""Random budgets: what every method's result leaves unused of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from _record import show
from _trials_methods import method

from orchestrator.sweeps.material import Material
from orchestrator.sweeps.settings import plan_sweep
from search_spaces.errors import InfeasibleBudgetError
from workers.training.contract import Setup
from workers.training.registry import trainables

__all__ = ["meet_budgets", "show_budgets"]

IMAGES = 512
"""Of a selection's one epoch: a budget is met by whatever was learned."""


def meet_budgets(
    config: Mapping[str, Any], material: Material, names: Sequence[str], count: int, sgd: Mapping[str, Any]
) -> dict[str, Any]:
    """Has every method select under random limits on parameters or MACs, C(r) from 0.3 to 0.8.

    Returns:
        By method `unused`, the shares of the budgets that its results leave unused, negative where they exceed them;
        `infeasible`, how many budgets it refused, saying why.
    """
    draw = random.Random(0)
    budgets = [(draw.choice(["macs", "parameters"]), round(draw.uniform(0.3, 0.8), 4)) for _ in range(count)]
    found: dict[str, Any] = {}
    for name in names:
        unused, infeasible = [], 0
        for cost, target in budgets:
            try:
                reached = _reached(config, material, name, cost, target, sgd)
            except InfeasibleBudgetError:
                infeasible += 1
            else:
                unused.append((reached - target) / (1 - target))
        found[name] = {"unused": unused, "infeasible": infeasible}
    return found


def show_budgets(found: Mapping[str, Any]) -> None:
    """Prints the extremes."""
    rows = [
        [name, str(len(one["unused"])), *(f"{each(one['unused']):.3%}" for each in (min, max)), str(one["infeasible"])]
        for name, one in found.items()
    ]
    show("Share of random budgets left unused", ["", "budgets", "least", "most", "refused"], rows)


def _reached(
    config: Mapping[str, Any], material: Material, name: str, cost: str, target: float, sgd: Mapping[str, Any]
) -> float:
    """C(r) of the network that a method selects, no epoch fine-tuned."""
    block = {"methods": {name: method(name, 2, sgd)}, "budgets": [{cost: target}]}
    plan = plan_sweep({**config, "sweep": block}, "config")
    (planned,) = plan.methods
    trial = planned.trial(0, {}, plan.budgets[0], 0)
    registered = trainables().get(trial.trainable, name)
    setup = material.setup(trial)
    few = replace(setup, train=setup.train.part(torch.arange(min(IMAGES, len(setup.train)))))
    trainable = registered.start(registered.settings.model_validate(trial.settings), _with_ranks(few, name))
    while not trainable.done:
        trainable.step()
    result = trainable.finish()
    compression: Mapping[str, float] = result.structure.get("compression", {})
    return compression.get(cost, setup.space.compression(cost, result.ranks))


def _with_ranks(setup: Setup, name: str) -> Setup:
    """Every layer at half its largest useful rank, for methods that are given ranks and fit them to the budget."""
    ranks = tuple(
        layer.offered[(len(layer.offered) - 1) // 2] if layer.offered else None for layer in setup.space.layers
    )
    return replace(setup, ranks=ranks) if name in ("uniform", "alds", "bsr") else setup
