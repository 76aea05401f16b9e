"""The networks that devices are timed with: the CIFAR ResNet-20, torchvision's ResNet-18, a small one for short forms.

Latency depends on shapes alone, so random weights and images are all right for it. Allocations are made by error curves
of these weights; what networks they would make is another question, of `bench_quality.py`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from orchestrator.config.loading import check_config
from orchestrator.preparation import Prepared, prepare
from workers.models import CifarResNet
from workers.timing.workloads import LayerWorkload, layer_workloads

__all__ = ["NETWORKS", "config", "images", "layers_of", "prepared", "resnet18", "resnet20", "sample", "small"]


@dataclass(frozen=True)
class _Network:
    """Side of its images, its classes, how its example factorises it, and the layers left out."""

    side: int
    classes: int
    scheme: str
    exclude: tuple[str, ...]


NETWORKS: Mapping[str, _Network] = {
    "resnet20": _Network(32, 10, "spatial_svd", ()),
    "resnet18": _Network(224, 1000, "tucker2", ("conv1", "fc")),
    "small": _Network(32, 10, "spatial_svd", ()),
}
"""The first two as the examples `resnet20_latency.yaml` and `resnet18_latency.yaml` have them."""


def resnet20() -> nn.Module:
    """The CIFAR network; the same weights every time."""
    torch.manual_seed(0)
    return CifarResNet(20)


def resnet18() -> nn.Module:
    """Torchvision's; the same weights every time."""
    from torchvision.models import resnet18 as build  # here, because importing torchvision takes seconds

    torch.manual_seed(0)
    model: nn.Module = build(weights=None)
    return model


def small() -> nn.Module:
    """Few layers, so wide that low ranks are much faster; the same weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def images(count: int, side: int, classes: int) -> TensorDataset:
    """`count` random images `(3, side, side)` with random labels; the same every time."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    return TensorDataset(torch.randn(count, 3, side, side, generator=generator), labels)


def config(name: str, search: Mapping[str, Any], *, count: int = 8) -> dict[str, Any]:
    """A config without devices: the network on `count` random images.

    Args:
        name: one of `NETWORKS`.
        search: what differs from the example's scheme and left-out layers.
    """
    network = NETWORKS[name]
    arguments = {"count": 2 * count, "side": network.side, "classes": network.classes}
    return {
        "model": {"build": f"{__name__}:{name}"},
        "data": {
            "train": {"dataset": f"{__name__}:images", "arguments": arguments},
            "validation_size": count,
            "slice_size": count,
        },
        "search": {"scheme": network.scheme, "exclude": list(network.exclude), "objective": "kl", "seed": 0, **search},
    }


def prepared(raw: Mapping[str, Any]) -> Prepared:
    """The config checked and made real."""
    return prepare(check_config(dict(raw), "benchmark"))


def layers_of(name: str, batch_size: int) -> list[LayerWorkload]:
    """Every different layer of a network, dense and at half of the ranks that shrink it."""
    raw = config(name, {"method": "alds", "budget": {"macs": 0.5}, "exclude": []}, count=1)
    found = prepared(raw)
    workloads: dict[LayerWorkload, None] = {}
    for layer, scheme, ranks in zip(found.found.layers, found.schemes, found.space.layers, strict=True):
        for rank in (None, ranks.at(ranks.useful // 2) if ranks.useful > 1 else None):
            workloads.update(dict.fromkeys(layer_workloads(layer, scheme.name, rank, batch_size)))
    return list(workloads)


def sample(count: int, networks: Sequence[str], batch_sizes: Sequence[int] = (1, 8)) -> list[LayerWorkload]:
    """So many layers of some networks, dense ones and factorised ones, drawn from all; the same every time."""
    every = [one for name in networks for batch_size in batch_sizes for one in layers_of(name, batch_size)]
    return random.Random(0).sample(every, min(count, len(every)))
