"""Filter groups: which filters of a network can only be removed together, and which not at all.

Channels are coupled: by residual sums, batch norms, concatenations, depthwise convolutions, flattening. torch-pruning
(Fang et al., CVPR 2023, arXiv 2301.12900) finds the couplings from the autograd graph. What it takes for an
element-wise operation may be something else (the zero-padded shortcuts of He et al.'s CIFAR ResNets shift channels),
so that every group is tried: half of its filters are removed from a copy, which must compute what the masked network
does.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning
from torch import nn

from workers.batch import Inputs, logits, run_model
from workers.causes import cause
from workers.training.filter_removal import FilterGroup, Member, dependencies, masking, run_with, without_filters

__all__ = ["FilterGroups", "filter_groups"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class FilterGroups:
    """The groups that can be removed, and by the name of its first layer why another group cannot.

    Where the model cannot be followed at all, there are no groups and one reason, under the empty name.
    """

    groups: tuple[FilterGroup, ...]
    refused: Mapping[str, str]


def filter_groups(
    model: nn.Module, inputs: Inputs, layers: Collection[str] | None = None, tolerance: float = 1e-6
) -> FilterGroups:
    """Finds the groups, and tries each.

    Args:
        model: stays as it is.
        inputs: at least two samples; the more alike they are to real ones, the more the trial says.
        layers: groups in which a convolution or linear layer other than these puts out channels are refused; a
            depthwise convolution goes with its inputs.
        tolerance: largest difference of outputs relative to the largest output; compared in float64.
    """
    exact = copy.deepcopy(model).cpu().double().eval()
    trial = _Trial(exact, _double(inputs), tolerance)
    names = {module: name for name, module in exact.named_modules()}
    candidates: list[FilterGroup] = []
    refused: dict[str, str] = {}
    try:
        graph = dependencies(exact, trial.inputs)
    except Exception as error:
        return FilterGroups((), {"": f"torch-pruning cannot follow the model's forward ({cause(error)})"})
    for found in graph.get_all_groups():
        root = names[found[0].dep.target.module]
        reason = _reason_against(found, names, layers)
        if reason:
            refused[root] = reason
        else:
            candidates.append(_group(root, found, names))
    if trial.reason_against(candidates):  # one of them is no good: which?
        for group in candidates:
            reason = trial.reason_against([group])
            if reason:
                refused[group.root] = reason
    return FilterGroups(tuple(group for group in candidates if group.root not in refused), refused)


def _double(inputs: Inputs) -> Inputs:
    if isinstance(inputs, torch.Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def _reason_against(found: Any, names: Mapping[nn.Module, str], layers: Collection[str] | None) -> str:
    """Why a group of torch-pruning's cannot be removed, as far as its members tell."""
    kinds = torch_pruning.ops.OPTYPE
    for item in found:
        module = item.dep.target.module
        if item.dep.target.type == kinds.OUTPUT or (_side(found._DG, item) == "out" and not item.dep.target.outputs):
            return "its channels are the network's outputs"
        if "ConstantPad" in type(item.dep.target.grad_fn).__name__:
            return "a shortcut pads its channels, so that they are not one to one those that they are added to"
        if item.dep.target.type == kinds.PARAMETER:
            return "a parameter outside torch's own layers has its channels"
        if not isinstance(module, nn.Module) or module not in names:
            continue  # torch-pruning's stand-ins for sums, concatenations and the like
        name = names[module]
        side = _side(found._DG, item)
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.out_channels:
            return f"{name} is a grouped convolution"
        if not isinstance(module, (*_LAYERS, *_NORMS)):
            if next(module.parameters(), None) is None:
                continue
            return f"{name} is a {type(module).__name__}"
        if isinstance(module, _NORMS) and module.weight is None:
            return f"batch norm {name} has no gain and shift that could be masked"
        alone = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if side == "out" and alone and layers is not None and name not in layers:
            return f"{name} is not among the layers that may change"
    return ""


def _side(graph: Any, item: Any) -> Literal["out", "in"]:
    """Norms and depthwise convolutions have one function for both sides: what they put out is pruned."""
    return "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"


def _group(root: str, found: Any, names: Mapping[nn.Module, str]) -> FilterGroup:
    members = []
    for item in found:
        module = item.dep.target.module
        if isinstance(module, (*_LAYERS, *_NORMS)):
            side = _side(found._DG, item)
            members.append(Member(names[module], side, tuple(item.idxs), tuple(item.root_idxs)))
    return FilterGroup(root, len(found[0].idxs), tuple(members))


class _Trial:
    """Removes every second channel of some groups, and compares with masking them."""

    def __init__(self, model: nn.Module, inputs: Inputs, tolerance: float) -> None:
        self._model, self.inputs = model, inputs
        with torch.no_grad():
            self._tolerance = tolerance * float(logits(run_model(model, inputs)).abs().max())

    def reason_against(self, groups: Sequence[FilterGroup]) -> str:
        """The reason if the network does not run without the channels or computes something else; else empty."""
        kept = [torch.arange(group.size) % 2 == 0 for group in groups]
        masks = [one.double() for one in kept]
        try:
            with torch.no_grad():
                tensors = masking(self._model, groups, masks)
                expected = logits(run_with(self._model, tensors, self.inputs))
                found = logits(run_model(without_filters(self._model, self.inputs, groups, kept), self.inputs))
        except Exception as error:
            return f"the network does not run without some of its channels ({cause(error)})"
        if found.shape != expected.shape or not bool((found - expected).abs().max() <= self._tolerance):
            return "without some of its channels the network computes something else than with them masked"
        return ""
