"""A layer that can take any rank at once: what an evaluator puts in place of every layer of the space."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from search_spaces.assembly import cascade, put_module
from search_spaces.layers import Layer
from search_spaces.rank_space import Rank
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.truncation import last_bias, stage_weights

__all__ = ["Slot", "open_slots"]


class Slot(nn.Module):
    """Stands for one layer; `rank` says what its forward computes: the dense layer, or the truncated cascade.

    Weights are slices of the factors, taken at every call: a change of rank costs nothing and no weight is copied.

    Args:
        module: the dense layer.
        factors: of this layer; views of the object store are fine, they are only read.

    Attributes:
        rank: the rank in force; None is dense.
        module, layer, scheme, factors: as given.
    """

    def __init__(self, module: nn.Conv2d | nn.Linear, layer: Layer, scheme: Scheme, factors: Factors) -> None:
        super().__init__()
        self.rank: Rank | None = None
        self.module = module
        self.layer, self.scheme, self.factors = layer, scheme, factors
        # Not registered: they are no part of the model.
        self.__dict__["_cascades"] = {}

    def stages(self, rank: Rank) -> nn.Sequential:
        """Modules that know strides, padding and groups of the cascade at a rank; weights come with each call."""
        shapes = self.scheme.stages(self.layer, rank)
        cascades: dict[tuple[int, ...], nn.Sequential] = self.__dict__["_cascades"]
        groups = tuple(stage.groups for stage in shapes)
        if groups not in cascades:
            cascades[groups] = cascade(self.layer, shapes, self.module).to("meta")
        return cascades[groups]

    def bias(self, rank: Rank | None) -> torch.Tensor | None:
        """The bias at a rank: that of the cascade's last stage, or the dense layer's; None where there is none."""
        own: torch.Tensor | None = self.module.bias
        return own if rank is None else last_bias(self.factors, rank, own)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output at the slot's rank; the argument is called what torch's layers call it."""
        if self.rank is None:
            output: torch.Tensor = self.module(input)
            return output
        weights = stage_weights(self.scheme, self.layer, self.factors, self.rank)
        biases = [*[None] * (len(weights) - 1), self.bias(self.rank)]
        for stage, weight, bias in zip(self.stages(self.rank), weights, biases, strict=True):
            if isinstance(stage, nn.Linear):
                input = functional.linear(input, weight, bias)
            else:
                input = stage._conv_forward(input, weight, bias)  # type: ignore[operator]
        return input


def open_slots(model: nn.Module, layers: list[Layer], schemes: list[Scheme], factors: dict[str, Factors]) -> list[Slot]:
    """Puts a slot in place of every layer of `model`, at all its names; returns them in the layers' order."""
    slots = []
    for layer, scheme in zip(layers, schemes, strict=True):
        slot = Slot(model.get_submodule(layer.name), layer, scheme, factors[layer.name])  # type: ignore[arg-type]
        for name in (layer.name, *layer.aliases):
            put_module(model, name, slot)
        slots.append(slot)
    return slots
