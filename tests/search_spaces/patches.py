"""Explicit patches of a layer's inputs: what moments are taken of, the slow, obvious way."""

from __future__ import annotations

import torch
from torch import nn

from search_spaces.moments import Moment


def moment_of(patches: torch.Tensor) -> Moment:
    """The moment of explicit patches, `(P, n)`."""
    wide = patches.double()
    return Moment(wide.T @ wide / len(wide), wide.mean(0), len(wide))


def patches_of(module: nn.Conv2d | nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Every patch, `(P, n)`, found by shifting a delta through the module.

    A convolution whose weight picks one number of the patch gives this number at every position.
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(-1, module.in_features)
    columns = []
    for index in range(module.weight[0].numel()):
        weight = torch.zeros_like(module.weight[:1]).flatten()
        weight[index] = 1.0
        columns.append(module._conv_forward(inputs, weight.view_as(module.weight[:1]), None).flatten())
    return torch.stack(columns, 1).detach()
