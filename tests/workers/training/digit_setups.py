"""A small network trained on digits, with its set-up: what the training methods are tested on."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from search_spaces.budgets import Budget
from search_spaces.costs import rank_space
from search_spaces.schemes.registry import schemes
from search_spaces.survey import Survey, survey
from workers.datasets import digits
from workers.training.contract import Setup
from workers.training.samples import Samples, read_samples
from workers.training.sgd import SGDSettings, SGDTraining

QUICK: dict[str, Any] = {"batch_size": 64, "crop_padding": 1, "flip": False, "precision": "float32"}
"""Digits are 8 x 8 and not symmetric; bfloat16 depends on the machine."""


def small_cnn() -> nn.Sequential:
    """Three convolutions and a linear layer for digits: a tenth of a second an epoch."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


@cache
def _digits() -> tuple[Samples, Samples]:
    train, held_out = read_samples(digits("train")).split([0.4, 0.2], seed=1)
    return train, held_out


@cache
def _trained() -> nn.Sequential:
    torch.manual_seed(0)
    network = small_cnn()
    training = SGDTraining(network, _digits()[0], SGDSettings(epochs=8, learning_rate=0.1, **QUICK), seed=0)
    for _ in range(8):
        training.epoch()
    return network.eval()


def _survey(network: nn.Module) -> Survey:
    return survey(network, lambda model: model(torch.zeros(1, 1, 8, 8)))


@cache
def _surveyed() -> Survey:
    return _survey(_trained())


def digit_setup(budget: dict[str, float] | None = None, scheme: str = "channel_svd", **changes: Any) -> Setup:
    """A set-up with a budget, C(r) by cost name, by default half of the parameters; `changes` are fields of `Setup`."""
    train, held_out = _digits()
    network = changes.pop("network", None)
    found = _surveyed() if network is None else _survey(network)
    network = network or _trained()
    chosen = (schemes().get(scheme, "search.scheme"),) * len(found.layers)
    limits = budget or {"parameters": 0.5}
    space = rank_space(found, chosen, binding=list(limits))
    given: dict[str, Any] = {"train": train, "held_out": held_out, **changes}
    return Setup(network, found.layers, chosen, space, Budget(tuple(limits.items())), **given)
