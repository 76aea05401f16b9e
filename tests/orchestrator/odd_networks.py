"""Networks that misbehave on purpose."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from workers.digits import digits


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


class ViewsItsImages(nn.Module):
    """Its forward takes images of three channels as rows by `view`, which their memory layout may forbid."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.view(len(x), -1))


class Coloured(Dataset[tuple[torch.Tensor, int]]):
    """The digits as images of three channels, each of another brightness."""

    def __init__(self, split: str) -> None:
        self._digits = digits(split)

    def __len__(self) -> int:
        return len(self._digits)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self._digits[index]
        return image * torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1), label
