"""A new last layer, for a network that moves to a data set with other classes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from search_spaces.assembly import put_module
from search_spaces.errors import ConfigError

__all__ = ["with_classes"]


def with_classes(network: nn.Module, classes: int, seed: int = 0) -> nn.Module:
    """A copy whose last linear layer is a new one with other outputs, initialised as torch does, by the seed.

    Raises:
        ConfigError: the model has no linear layer below its top.
    """
    moved = copy.deepcopy(network)
    linear = [(name, module) for name, module in moved.named_modules() if name and isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(
            "model.new_classes",
            "the model has no linear layer that could be replaced; leave it out and have model.build make as many",
        )
    name, old = linear[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    put_module(moved, name, new.to(old.weight))
    return moved
