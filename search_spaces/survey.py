"""Finds the layers of a model: what may be factorised, and of the rest, why not."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from search_spaces.errors import ConfigError
from search_spaces.layers import Call, Layer, Stage
from search_spaces.registry import nearest
from search_spaces.replaceable import copy_of_structure, irreplaceable

__all__ = ["LeftOut", "Survey", "survey"]

Forward = Callable[[nn.Module], object]


@dataclass(frozen=True)
class LeftOut:
    """A layer that is not factorised, and why.

    Attributes:
        stage: its shape where it is a convolution or linear layer (its cost is part of the network's), else None.
        calls: its uses in one forward pass of one sample.
    """

    name: str
    reason: str
    stage: Stage | None = None
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Survey:
    """The layers that may be factorised, in the model's order, and those left out."""

    layers: tuple[Layer, ...]
    left_out: tuple[LeftOut, ...]


def survey(
    model: nn.Module,
    forward: Forward,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Survey:
    """Finds every `Conv2d` (groups = 1) and `Linear`; a shared module is one layer.

    Args:
        model: left as it was: a copy that shares its parameters is run, in eval mode.
        forward: runs the model that it is given on one sample (batch size 1). It is called at least twice: on the
            model, and with cascades in the layers' places, to find the layers that cannot be replaced.
        include, exclude: shell patterns over dotted names (`layer3.*`); a layer is considered if one of
            `include` and none of `exclude` matches one of its names.

    Raises:
        ConfigError: a pattern that matches no convolution or linear layer, a model without any layer, or one that
            cannot be copied.
    """
    probe = copy_of_structure(model)
    names = _names_by_module(probe)
    calls = _record_calls(probe, forward, list(names))
    every_name = [name for aliases in names.values() for name in aliases]
    for key, patterns in (("search.include", include), ("search.exclude", exclude)):
        for pattern in patterns:
            if every_name and not fnmatch.filter(every_name, pattern):
                raise ConfigError(
                    key, f"pattern {pattern!r} matches no convolution or linear layer{nearest(pattern, every_name)}"
                )
    owners = _parameter_owners(probe)
    layers: list[Layer] = []
    left_out: list[LeftOut] = []
    for module, aliases in names.items():
        stage = stage_of(module)
        reason = _reason_against(module, aliases, calls[module], owners, include, exclude)
        if reason is not None or stage is None:
            left_out.append(LeftOut(aliases[0], reason or "", stage, tuple(calls[module])))
            continue
        layers.append(Layer(aliases[0], stage, module.bias is not None, tuple(calls[module]), tuple(aliases[1:])))
    for name, reason in irreplaceable(model, forward, layers).items():
        layer = next(one for one in layers if one.name == name)
        layers.remove(layer)
        left_out.append(LeftOut(name, reason, layer.dense, layer.calls))
    if not layers:
        reasons = "; ".join(f"{one.name or 'the model itself'}: {one.reason}" for one in left_out[:3])
        raise ConfigError("model", f"no layer can be factorised ({reasons or 'it has no Conv2d and no Linear'})")
    return Survey(tuple(layers), tuple(left_out))


def _names_by_module(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module with a matrix-like weight of its own, with all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() >= 2 and not isinstance(module, nn.Embedding):
            names.setdefault(module, []).append(name)
    return names


def _parameter_owners(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Names of the distinct modules that hold each parameter."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append(name)
    return owners


def _record_calls(model: nn.Module, forward: Forward, modules: list[nn.Module]) -> dict[nn.Module, list[Call]]:
    """Input sizes of every use of every module in one forward pass of one sample."""
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def record(module: nn.Module, inputs: tuple[object, ...], named: dict[str, object], output: object) -> None:
        value = inputs[0] if inputs else named.get("input")
        if not isinstance(value, torch.Tensor):
            return
        if isinstance(module, nn.Conv2d):
            count = value.shape[0] if value.dim() == 4 else 1
            calls[module].append(Call(value.shape[-2], value.shape[-1], count))
        elif isinstance(module, nn.Linear):
            calls[module].append(Call(1, value[..., 0].numel()))
        else:
            calls[module].append(Call(0, 0))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with without_fused_attention(), torch.no_grad():
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Torch's fused transformer layer reads its linear layers' weights directly; the plain path calls them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def stage_of(module: nn.Module) -> Stage | None:
    """Shape of a convolution or linear layer; None for anything else."""
    if isinstance(module, nn.Linear):
        return Stage(module.in_features, module.out_features, linear=True)
    if not isinstance(module, nn.Conv2d):
        return None
    padding = module.padding if isinstance(module.padding, str) else (module.padding[0], module.padding[1])
    return Stage(
        module.in_channels,
        module.out_channels,
        (module.kernel_size[0], module.kernel_size[1]),
        (module.stride[0], module.stride[1]),
        padding,  # type: ignore[arg-type]  # torch types it as str, but only "same" and "valid" exist
        (module.dilation[0], module.dilation[1]),
        module.groups,
        module.padding_mode,
    )


def _reason_against(
    module: nn.Module,
    aliases: list[str],
    calls: list[Call],
    owners: dict[nn.Parameter, list[str]],
    include: Sequence[str],
    exclude: Sequence[str],
) -> str | None:
    """Why a module is not a layer of the space; None if it is."""
    kind = type(module).__name__
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"{kind}: only Conv2d and Linear are factorised"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"grouped convolution (groups = {module.groups})"
    if not any(fnmatch.fnmatchcase(name, pattern) for name in aliases for pattern in include):
        return "matches no pattern of search.include"
    hit = next((pattern for pattern in exclude for name in aliases if fnmatch.fnmatchcase(name, pattern)), None)
    if hit is not None:
        return f"search.exclude has {hit!r}"
    return _reason_in_the_model(module, aliases, calls, owners)


def _reason_in_the_model(
    module: nn.Conv2d | nn.Linear, aliases: list[str], calls: list[Call], owners: dict[nn.Parameter, list[str]]
) -> str | None:
    """Why a Conv2d or Linear cannot be swapped for a cascade without changing what the model computes."""
    kind = type(module).__name__
    if "" in aliases:
        return "it is the whole model and has no parent to replace it in; wrap it in torch.nn.Sequential"
    if parametrize.is_parametrized(module):
        return "its weight is computed by a parametrization; remove that first (remove_parametrizations)"
    changed = _changed_method(module)
    if changed:
        return f"{kind} has its own {changed}"
    if module._forward_pre_hooks or module._forward_hooks:
        return "it has forward hooks"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is no parameter of its own"
    if weight.numel() == 0:
        return "its weight is empty"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    if not calls:
        return "never called in a forward pass: its weight is read directly, or it is unused"
    sharers = owners[weight]
    if len(sharers) > 1:
        return f"its weight is tied between {' and '.join(sharers)}"
    return None


def _changed_method(module: nn.Conv2d | nn.Linear) -> str | None:
    """The method by which a subclass or a patched instance computes something else than torch's layer does."""
    base = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    for method in ("forward", "_conv_forward", "__call__"):
        if method in vars(module) or getattr(type(module), method, None) is not getattr(base, method, None):
            return method
    return None
