"""Applies a rank vector to a model: an ordinary module with `Sequential`s of thin layers in place of some layers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from search_spaces.layers import Layer, Stage
from search_spaces.rank_space import RankVector
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.truncation import last_bias, stage_weights

__all__ = ["assemble", "cascade", "put_module", "replace_layers"]


def cascade(layer: Layer, stages: Sequence[Stage], like: nn.Module, *, corrected: bool = False) -> nn.Sequential:
    """Uninitialised stages as a `Sequential` of `Conv2d` or `Linear`; the last one has a bias if the layer has.

    Args:
        like: the module it stands for: dtype, device and training mode are taken from it.
        corrected: the bias is corrected: the last stage has one in any case.
    """
    weight = like.get_parameter("weight")
    options: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    modules: list[nn.Module] = []
    for position, stage in enumerate(stages):
        bias = (layer.bias or corrected) and position == len(stages) - 1
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
    corrected = [
        layer.name
        for layer, rank in zip(layers, ranks, strict=True)
        if rank is not None and rank in factors[layer.name].bias_corrections
    ]
    compressed = replace_layers(copy.deepcopy(model), layers, schemes, ranks, corrected)
    for layer, scheme, rank in zip(layers, schemes, ranks, strict=True):
        if rank is None:
            continue
        weights = stage_weights(scheme, layer, factors[layer.name], rank)
        with torch.no_grad():
            for position, weight in enumerate(weights):
                compressed.get_parameter(f"{layer.name}.{position}.weight").copy_(weight)
            own = model.get_parameter(f"{layer.name}.bias") if layer.bias else None
            bias = last_bias(factors[layer.name], rank, own)
            if bias is not None:
                compressed.get_parameter(f"{layer.name}.{len(weights) - 1}.bias").copy_(bias)
    return compressed


def replace_layers(
    model: nn.Module,
    layers: Sequence[Layer],
    schemes: Sequence[Scheme],
    ranks: RankVector,
    corrected: Collection[str] = (),
) -> nn.Module:
    """Puts uninitialised cascades into `model` itself, at every name of every layer with a rank; returns it.

    This is the architecture alone: whoever loads saved weights needs no factors.

    Args:
        corrected: names of the layers whose bias is corrected: their cascades have one in any case.
    """
    for layer, scheme, rank in zip(layers, schemes, ranks, strict=True):
        if rank is None:
            continue
        like = model.get_submodule(layer.name)
        replacement = cascade(layer, scheme.stages(layer, rank), like, corrected=layer.name in corrected)
        for name in (layer.name, *layer.aliases):
            put_module(model, name, replacement)
    return model


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` into `model` under a dotted name, where another one was."""
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], module)
    if isinstance(parent, nn.TransformerEncoderLayer):
        # Its fused path reads linear1.weight; this plain attribute sends it down the path that calls linear1.
        parent.activation_relu_or_gelu = 0
        for encoder in model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and any(block is parent for block in encoder.layers):
                # Nested tensors serve the fused path alone, and the check for them reads linear1.weight too.
                encoder.use_nested_tensor = False
