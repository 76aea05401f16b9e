"""A layer that can take any rank at once: what an evaluator puts in place of every layer of the space."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from search_spaces.assembly import cascade, put_module
from search_spaces.layers import Layer
from search_spaces.rank_space import Rank
from search_spaces.schemes.contract import Factors, Scheme

__all__ = ["Slot", "open_slots"]


class Slot(nn.Module):
    """Stands for one layer; `rank` says what its forward computes: the dense layer, or the truncated cascade.

    Weights are slices of the factors, taken at every call: a change of rank costs nothing and no weight is copied.

    Args:
        module: the dense layer.
        factors: of this layer; views of the object store are fine, they are only read.
    """

    def __init__(self, module: nn.Conv2d | nn.Linear, layer: Layer, scheme: Scheme, factors: Factors) -> None:
        super().__init__()
        self.rank: Rank | None = None
        self.module = module
        self._layer, self._scheme, self._factors = layer, scheme, factors
        # Shapes alone: strides, padding and its mode are those of these modules, the weights come with each call.
        self._stages = [cascade(layer, scheme.stages(layer, 1), module).to("meta")]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's output at the slot's rank."""
        if self.rank is None:
            output: torch.Tensor = self.module(inputs)
            return output
        weights = self._scheme.weights(self._layer, self._factors, self.rank)
        stages = self._stages[0]
        for position, (stage, weight) in enumerate(zip(stages, weights, strict=True)):
            bias = self.module.bias if position == len(stages) - 1 else None
            if isinstance(stage, nn.Linear):
                inputs = functional.linear(inputs, weight, bias)
            else:
                inputs = stage._conv_forward(inputs, weight, bias)  # type: ignore[operator]
        return inputs


def open_slots(model: nn.Module, layers: list[Layer], schemes: list[Scheme], factors: dict[str, Factors]) -> list[Slot]:
    """Puts a slot in place of every layer of `model`, at all its names; returns them in the layers' order."""
    slots = []
    for layer, scheme in zip(layers, schemes, strict=True):
        slot = Slot(model.get_submodule(layer.name), layer, scheme, factors[layer.name])  # type: ignore[arg-type]
        for name in (layer.name, *layer.aliases):
            put_module(model, name, slot)
        slots.append(slot)
    return slots
