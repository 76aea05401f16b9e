"""Applies a rank vector to a model: an ordinary module with `Sequential`s of thin layers in place of some layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from search_spaces.layers import Layer, Stage
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme

__all__ = ["assemble", "cascade", "replace_layers"]


def cascade(layer: Layer, stages: Sequence[Stage], like: nn.Module) -> nn.Sequential:
    """Uninitialised stages as a `Sequential` of `Conv2d` or `Linear`; the last one has the layer's bias.

    Args:
        like: the module it stands for: dtype, device and training mode are taken from it.
    """
    options = {"dtype": like.weight.dtype, "device": like.weight.device}
    modules: list[nn.Module] = []
    for position, stage in enumerate(stages):
        bias = layer.bias and position == len(stages) - 1
        if stage.linear:
            modules.append(nn.utils.skip_init(nn.Linear, stage.in_channels, stage.out_channels, bias=bias, **options))
            continue
        modules.append(
            nn.utils.skip_init(
                nn.Conv2d,
                stage.in_channels,
                stage.out_channels,
                stage.kernel,
                stage.stride,
                stage.padding,
                stage.dilation,
                stage.groups,
                bias,
                stage.padding_mode,
                **options,
            )
        )
    return nn.Sequential(*modules).train(like.training)


def assemble(
    model: nn.Module,
    layers: Sequence[Layer],
    schemes: Sequence[Scheme],
    ranks: RankVector,
    factors: Mapping[str, Factors],
) -> nn.Module:
    """A copy of `model` in which every layer with a rank is a cascade with the truncated factors' weights.

    Args:
        layers, schemes, ranks: aligned; `None` leaves a layer as it is.
        factors: by layer name; only layers with a rank need theirs.

    Returns:
        A module of ordinary torch layers that shares no tensor with `model`.
    """
    compressed = replace_layers(copy.deepcopy(model), layers, schemes, ranks)
    for layer, scheme, rank in zip(layers, schemes, ranks, strict=True):
        if rank is None:
            continue
        stages = compressed.get_submodule(layer.name)
        original = model.get_submodule(layer.name)
        with torch.no_grad():
            for module, weight in zip(stages.children(), scheme.weights(layer, factors[layer.name], rank), strict=True):
                module.weight.copy_(weight)
            if layer.bias:
                stages[-1].bias.copy_(original.bias)  # type: ignore[index, union-attr]
    return compressed


def replace_layers(
    model: nn.Module, layers: Sequence[Layer], schemes: Sequence[Scheme], ranks: RankVector
) -> nn.Module:
    """Puts uninitialised cascades into `model` itself, at every name of every layer with a rank; returns it.

    This is the architecture alone: whoever loads saved weights needs no factors.
    """
    for layer, scheme, rank in zip(layers, schemes, ranks, strict=True):
        if rank is None:
            continue
        replacement = cascade(layer, scheme.stages(layer, rank), model.get_submodule(layer.name))
        for name in (layer.name, *layer.aliases):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], replacement)
            if isinstance(parent, nn.TransformerEncoderLayer):
                # Its fused path reads linear1.weight; this plain attribute sends it down the path that calls linear1.
                parent.activation_relu_or_gelu = 0
    return model
