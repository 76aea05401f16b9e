"""Batch norms of a factorised network: their statistics, taken again from unlabelled inputs.

Factorising shifts what the layers put out, and batch norms go on with the statistics of the dense network. They are
re-estimated once for a network that is handed over; candidates are normalised by the batch that they are scored on.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.assembly import put_module
from search_spaces.errors import ConfigError
from workers.batch import Inputs, run_model

__all__ = ["BatchStatistics", "check_batch_statistics", "normalise_by_batch", "reestimate"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class BatchStatistics(nn.Module):
    """A batch norm that always normalises by the mean and (biased) variance of the batch at hand.

    Args:
        norm: whose weight, bias and eps it takes; they stay shared.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: _Norm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        self.training = norm.training

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(N, C, ...)`, at least two numbers for each channel; the argument is called what torch's norms call it."""
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


def reestimate(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Takes the statistics of every batch norm again, as the average over batches of inputs.

    Each batch counts the same, and the variance is the unbiased one, as torch has it; the former statistics play no
    part. All other modules stay in eval mode. Where it raises, the statistics are what they were.

    Args:
        model: its batch norms' buffers are written to, nothing else; left in eval mode. A network without batch norms
            stays as it is, and `batches` is not read.
        batches: at least one; each of more than one value per channel at every norm.

    Raises:
        ConfigError: there is no batch, one is too small, or statistics come out NaN or infinite.
    """
    model.eval()
    norms = {name: module for name, module in model.named_modules() if _keeps_statistics(module)}
    if not norms:
        return
    before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms.values()]
    momenta = [norm.momentum for norm in norms.values()]
    try:
        _average(model, norms, batches)
    except BaseException:
        for norm, saved in zip(norms.values(), before, strict=True):
            for buffer, value in zip(norm.buffers(recurse=False), saved, strict=True):
                buffer.copy_(value)
        raise
    finally:
        model.eval()
        for norm, momentum in zip(norms.values(), momenta, strict=True):
            norm.momentum = momentum


def _average(model: nn.Module, norms: dict[str, Any], batches: Iterable[Inputs]) -> None:
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for a cumulative average
        norm.training = True
    seen = 0
    with ExitStack() as stack, torch.no_grad():
        for name, norm in norms.items():
            stack.callback(_refuse_single_values(norm, name, "data.calibration_size"))
        for inputs in batches:
            run_model(model, inputs)
            seen += 1
    if not seen:
        raise ConfigError("data.calibration_size", "no inputs to take batch norms' statistics from; give at least 2")
    for name, norm in norms.items():
        if not bool(torch.isfinite(norm.running_mean).all() and torch.isfinite(norm.running_var).all()):
            raise ConfigError("model", f"the inputs of batch norm {name} are NaN or infinite on the calibration batch")


def normalise_by_batch(model: nn.Module) -> int:
    """Puts a `BatchStatistics` in place of every batch norm that has running statistics; how many it replaced.

    A norm with several names counts once and stays one module. Parameters are taken over as they are.

    Raises:
        ConfigError: a batch norm that computes something else than torch's, or that is the whole model.
    """
    replacements: dict[nn.Module, BatchStatistics] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not _keeps_statistics(module):
            continue
        reason = _reason_against(module, name)
        if reason:
            raise ConfigError("model", f"batch norm {name or 'that is the model'} cannot be replaced: {reason}")
        if module not in replacements:
            replacements[module] = BatchStatistics(module)
        put_module(model, name, replacements[module])
    return len(replacements)


def check_batch_statistics(model: nn.Module, inputs: Inputs, key: str = "data.validation_size") -> None:
    """Every `BatchStatistics` of `model` can normalise this batch: one number per channel has no variance.

    Args:
        key: config key of the batch's size, for messages.

    Raises:
        ConfigError: it cannot.
    """
    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, BatchStatistics):
                stack.callback(_refuse_single_values(module, name, key))
        run_model(model, inputs)


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and module.running_mean is not None


def _reason_against(module: nn.Module, name: str) -> str:
    if not name:
        return "it has no parent; wrap it in torch.nn.Sequential"
    if "forward" in vars(module) or not any(type(module).forward is norm.forward for norm in _NORMS):
        return f"{type(module).__name__} has its own forward"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks"
    return ""


def _refuse_single_values(module: nn.Module, name: str, key: str) -> Any:
    """Has a norm raise a ConfigError where torch would raise its own; returns what takes that back."""

    def refuse(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value: torch.Tensor = args[0] if args else kwargs["input"]
        if value.numel() <= value.shape[1]:
            raise ConfigError(
                key, f"a batch of {len(value)} leaves batch norm {name} one value per channel; give 2 samples or more"
            )

    return module.register_forward_pre_hook(refuse, with_kwargs=True).remove
