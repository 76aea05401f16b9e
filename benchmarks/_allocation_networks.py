"""The networks that ranks are allocated to: CIFAR ResNets, trained where RANKRAY_DATA has them, and torchvision's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import nn

from orchestrator.searches.allocation.options import LayerOptions, layer_options
from search_spaces.costs import rank_space
from search_spaces.error_curves import ErrorCurve
from search_spaces.ladders import Frontier, with_ladders
from search_spaces.layers import Layer
from search_spaces.rank_space import RankSpace
from search_spaces.schemes.registry import schemes
from search_spaces.survey import Survey, survey
from workers.checkpoint import load_checkpoint
from workers.curves import curves_of
from workers.models import CifarResNet

__all__ = [
    "COST",
    "MEASURE",
    "Network",
    "curves",
    "network",
    "options",
    "shapes",
    "space",
    "wake_up",
    "with_sliced_linear",
]

COST = "parameters"
MEASURE = "max_slice"
"""What ALDS' code calls a layer's relative error."""


@dataclass(frozen=True)
class Network:
    """A network and its layers.

    Attributes:
        trained: whether the weights are trained ones; else they are as initialised from seed 0.
    """

    name: str
    model: nn.Module
    found: Survey
    trained: bool

    @property
    def weights(self) -> list[torch.Tensor]:
        """Of every layer, in their order."""
        return [self.model.get_parameter(f"{layer.name}.weight").detach() for layer in self.found.layers]

    @property
    def size(self) -> int:
        """Weights of all its convolutions and linear layers."""
        return sum(layer.dense.parameters for layer in self.found.layers)


def network(name: str) -> Network:
    """`resnet20` and so on are the CIFAR networks, `tv_resnet18` and so on torchvision's with random weights."""
    torch.manual_seed(0)
    trained = False
    if name.startswith("tv_"):
        model, side = torchvision.models.get_model(name.removeprefix("tv_"), weights=None), 64
    else:
        model, side = CifarResNet(int(name.removeprefix("resnet"))), 32
        checkpoint = Path(os.environ.get("RANKRAY_DATA", ""), "cifar10", f"{name}.pt")
        trained = "RANKRAY_DATA" in os.environ and checkpoint.is_file()
        if trained:
            load_checkpoint(model, checkpoint)
    model = model.eval().requires_grad_(False)
    found = survey(model, lambda copied: copied(torch.zeros(1, 3, side, side)))
    return Network(name, model, found, trained)


def with_sliced_linear(given: Network) -> Network:
    """The same layers with linear ones as 1 x 1 convolutions, which is how the authors slice them."""
    layers = tuple(replace(layer, dense=replace(layer.dense, linear=False)) for layer in given.found.layers)
    return replace(given, found=Survey(layers, given.found.left_out))


def space(given: Network, scheme: str) -> RankSpace:
    """The ranks that shrink its layers, without ladders."""
    return rank_space(given.found, [schemes().get(scheme, "scheme")] * len(given.found.layers), binding=(COST,))


def curves(given: Network, scheme: str, measure: str) -> list[ErrorCurve]:
    """The error of every layer at every rank, one layer after the other in this process: the local step."""
    return [
        _curve(layer, scheme, weight, measure) for layer, weight in zip(given.found.layers, given.weights, strict=True)
    ]


def _curve(layer: Layer, scheme: str, weight: torch.Tensor, measure: str) -> ErrorCurve:
    return curves_of(layer, scheme, weight, (measure,), None)[measure]


def shapes(given: Network, scheme: str) -> list[tuple[int, int]]:
    """(m, n) of every layer's matrix."""
    found = schemes().get(scheme, "scheme")
    return [found.matrix_shape(layer) for layer in given.found.layers]


def options(given: Network, whole: RankSpace, errors: Sequence[ErrorCurve]) -> list[LayerOptions]:
    """What an allocation of sliced layers chooses from: ladders are made as a run makes them.

    Args:
        whole: without ladders, from `space`.
    """
    laddered = with_ladders(whole, [Frontier(errors)], COST)
    return layer_options(laddered, errors, shapes(given, "sliced_svd"))


def wake_up() -> None:
    """Makes torch load its linear algebra, which the first decomposition of a process waits for."""
    tiny = torch.eye(8, dtype=torch.float64)
    torch.linalg.eigvalsh(tiny.expand(2, 8, 8))
    torch.linalg.svdvals(tiny)
