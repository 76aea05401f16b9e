"""Removing filters: groups of channels that go together, what a network masked by them computes, and the smaller one.

What a mask of zeros and ones makes of a network, removal makes small: both compute the same (tested).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning
from torch import nn
from torch.func import functional_call

from workers.batch import Inputs, logits, run_model

__all__ = ["FilterGroup", "Member", "dependencies", "masking", "run_with", "spread", "without_filters"]


@dataclass(frozen=True)
class Member:
    """A module's share in a group.

    Attributes:
        name: of the module.
        side: whether the group's channels are what it puts out or what it takes in; a batch norm's are `out`.
        places: the module's channels that belong to the group.
        channels: aligned with `places`, the channel of the group that each of them is.
    """

    name: str
    side: Literal["out", "in"]
    places: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class FilterGroup:
    """Filters that are removed together: channel i of every member, or of none.

    Attributes:
        root: the layer by which the group is found again.
        size: number of channels.
        members: every module with weights that has one of the channels.
    """

    root: str
    size: int
    members: tuple[Member, ...]

    def on(self, side: Literal["out", "in"]) -> tuple[Member, ...]:
        """The members on one side."""
        return tuple(member for member in self.members if member.side == side)


def masking(
    model: nn.Module,
    groups: Sequence[FilterGroup],
    masks: Sequence[torch.Tensor],
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The parameters of a network whose channels are scaled by masks, by name; for `run_with`.

    What a channel's layers put out is scaled, and so are its batch norms' gain and shift: a filter scaled before a
    batch norm in training mode is scaled back by it, and one of zeros would still put out the norm's shift.

    Args:
        masks: one per group, `(size,)`.
        weights: parameters that differ from the model's own; they are among what is returned.
    """
    scaled = dict(weights or {})
    for group, mask in zip(groups, masks, strict=True):
        for member in group.on("out"):
            for kind in ("weight", "bias"):
                name = f"{member.name}.{kind}"
                value = scaled.get(name, getattr(model.get_submodule(member.name), kind))
                if value is not None:
                    scaled[name] = value * spread(member, mask, value)
    return scaled


def run_with(model: nn.Module, tensors: Mapping[str, torch.Tensor], inputs: Inputs) -> object:
    """One forward pass with other tensors in the places of some parameters; gradients reach them."""
    return functional_call(_Run(model), {f"model.{name}": tensor for name, tensor in tensors.items()}, (inputs,))


class _Run(nn.Module):
    """A model called as `run_model` calls it, whatever its inputs are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, inputs: Inputs) -> object:
        return run_model(self.model, inputs)


def spread(member: Member, mask: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A group's mask at a member's channels, ones elsewhere; broadcasts along the first dimension of `value`."""
    factors = torch.ones(value.shape[0], dtype=mask.dtype, device=mask.device)
    factors = factors.index_put((torch.tensor(member.places, device=mask.device),), mask[list(member.channels)])
    return factors.view(-1, *[1] * (value.dim() - 1)).to(value.dtype)


def dependencies(model: nn.Module, inputs: Inputs) -> Any:
    """Torch-pruning's graph of a model, which it puts into eval mode and whose parameters all get gradients."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.enable_grad():
        return torch_pruning.DependencyGraph().build_dependency(
            model, inputs, forward_fn=run_model, output_transform=logits, verbose=False
        )


def without_filters(
    model: nn.Module, inputs: Inputs, groups: Sequence[FilterGroup], kept: Sequence[torch.Tensor]
) -> nn.Module:
    """A copy of a network that lacks the filters that are not kept: ordinary, smaller layers.

    Args:
        inputs: a batch that the network can be run on.
        kept: per group, `(size,)` booleans; at least one of each is true.
    """
    thin = copy.deepcopy(model)
    wanted = {name: one.requires_grad for name, one in thin.named_parameters()}
    training = {name: one.training for name, one in thin.named_modules()}
    graph = dependencies(thin, inputs)
    for group, mask in zip(groups, kept, strict=True):
        removed = (~mask).nonzero().flatten().tolist()
        if removed:
            root = thin.get_submodule(group.root)
            function = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, function, removed).prune()
    for name, parameter in thin.named_parameters():
        parameter.requires_grad_(wanted[name])
        parameter.grad = None
    for name, module in thin.named_modules():
        module.training = training[name]
    return thin
