"""The methods that learn what to keep, as their tests start them: few samples, two epochs."""

from __future__ import annotations

from typing import Any

import torch

from search_spaces.survey import survey
from workers.training.contract import Compressed, Setup
from workers.training.registry import trainables
from workers.training.selection import SelectThenFineTune

from .digit_setups import QUICK, digit_setup

SCHEMES = {"haloc": "tucker2", "less": "channel_svd", "transfer_masks": "channel_svd"}


def few(setup: Setup, count: int = 192) -> dict[str, Any]:
    """The first training samples only."""
    numbers = torch.arange(count)
    return {"train": setup.train.part(numbers), "held_out": setup.held_out.part(numbers[:64])}


def start(method: str, budget: dict[str, float], setup: Setup | None = None, **settings: Any) -> SelectThenFineTune:
    """A method on digits with one epoch of selection and one of fine-tuning unless told otherwise."""
    if setup is None:
        setup = digit_setup(budget, SCHEMES[method])
        setup = digit_setup(budget, SCHEMES[method], **few(setup))
    known = trainables().get(method, "sweep.methods")
    given = {"epochs": 1, "selection_epochs": 1, **QUICK, **settings}
    return known.start(known.settings(**given), setup)


def trained(method: str, budget: dict[str, float], **settings: Any) -> Compressed:
    """What a method ends in."""
    trainable = start(method, budget, **settings)
    while not trainable.done:
        trainable.step()
    return trainable.finish()


def costs(network: torch.nn.Module) -> dict[str, int]:
    """Weights, multiply-accumulates and outputs of a network's convolutions and linear layers, counted on itself."""
    layers = survey(network, lambda model: model(torch.zeros(1, 1, 8, 8))).layers
    return {
        "parameters": sum(layer.parameters((layer.dense,)) for layer in layers),
        "macs": sum(layer.macs((layer.dense,)) for layer in layers),
        "volume": sum(layer.volume((layer.dense,)) for layer in layers),
    }
