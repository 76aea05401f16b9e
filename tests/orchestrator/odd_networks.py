"""Networks that misbehave on purpose."""

from __future__ import annotations

import torch
from torch import nn


class FailsWhenCompressed(nn.Module):
    """Its outputs are not finite once the singled-out layer loses its weakest direction."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.fragile = nn.Linear(16, 16, bias=False)
        with torch.no_grad():
            self.fragile.weight.copy_(torch.diag(torch.tensor([2.0] * 15 + [1.0])))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weakest = self.fragile(torch.eye(16))[15, 15]
        return self.head(self.body(x)) * torch.sqrt(weakest - 0.5)


class WritesToItself(nn.Module):
    """Its forward nudges a parameter in place, as a train-mode batch norm nudges its buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.scale = nn.Parameter(torch.ones(1, 512, 512))  # large enough not to travel inside the message

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale.data[0, 0, 0] += 1e-6
        return self.layers(x) * self.scale[0, 0, 0]
