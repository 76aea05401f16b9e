"""Tries a model with thin cascades in its layers' places: which layers cannot be replaced, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from search_spaces.assembly import replace_layers
from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.schemes.channel_svd import ChannelSVD

__all__ = ["copy_of_structure", "irreplaceable"]

Forward = Callable[[nn.Module], object]


def copy_of_structure(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode with its own modules and buffers, that shares the parameters: nearly free.

    Raises:
        ConfigError: the model cannot be copied.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, shared).eval()
    except Exception as error:
        raise ConfigError("model", f"cannot be copied ({_one_line(error)}); it must work with copy.deepcopy") from error


def irreplaceable(model: nn.Module, forward: Forward, layers: Sequence[Layer]) -> dict[str, str]:
    """The layers that no cascade can stand in for, with the reason, by layer name.

    A parent that also reads its layer's `.weight`, or that keeps the layer under a second, unregistered reference,
    shows only when the layer is replaced. So the model is run with a rank-1 cascade in every layer's place; if that
    fails, once per layer, keeping the replacements that work: those left together are known to run together.

    Args:
        model: left as it is.
        forward: runs a model on one sample.
        layers: layers of `model`; each was called in a plain forward pass.
    """
    try:
        return _run_replaced(model, forward, layers)
    except Exception:
        reasons: dict[str, str] = {}
        kept: list[Layer] = []
        for layer in layers:
            try:
                uncalled = _run_replaced(model, forward, [*kept, layer])
            except Exception as error:
                reasons[layer.name] = f"the model does not run with it replaced: {_one_line(error)}"
                continue
            reasons.update(uncalled)
            kept = [one for one in (*kept, layer) if one.name not in uncalled]
        return reasons


def _run_replaced(model: nn.Module, forward: Forward, layers: Sequence[Layer]) -> dict[str, str]:
    """Runs a copy with rank-1 cascades; the layers whose cascade was not called. Raises what the forward raises."""
    thin = replace_layers(copy_of_structure(model), layers, [ChannelSVD()] * len(layers), (1,) * len(layers))
    called: set[str] = set()
    for layer in layers:
        cascade = thin.get_submodule(layer.name)
        _average_inputs(cascade)
        cascade.register_forward_pre_hook(lambda module, inputs, name=layer.name: called.add(name))
    with torch.no_grad():
        forward(thin)
    reason = "replacing it changes nothing: the model calls it through a reference that is not registered"
    return {layer.name: reason for layer in layers if layer.name not in called}


def _average_inputs(cascade: nn.Module) -> None:
    """Harmless finite weights: every stage averages what comes in, so that no forward trips over its own values."""
    with torch.no_grad():
        for parameter in cascade.parameters():
            parameter.fill_(1.0 / parameter[0].numel() if parameter.dim() > 1 else 0.0)


def _one_line(error: Exception) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
